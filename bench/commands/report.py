"""`distill bench report`: saved results on one page.

In:  `Options`: files that --save wrote.
Out: an HTML file that needs nothing else, the same as Markdown, the drawing as PNG; their names on stdout.
Elsewhere: the page (bench.results.page).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from runtime import UsageError, files
from runtime.cli.settings import Flag
from runtime.cli.terminal import loading

from ..results import page, saved

SUMMARY = "show saved results in one HTML file, as Markdown and as PNG"
DESCRIPTION = """Accuracy against latency with intervals and the Pareto front, the table, comparisons, limits,
robustness, machines, commands.

examples:
  {prog} table.json
  {prog} latency.json accuracy.json compare.json gate.json --output results.html"""


@dataclass(frozen=True)
class Options:
    """Flags of `distill bench report`."""

    results: Annotated[tuple[Path, ...], Flag("FILE", positional=True)]
    """Results of bench latency, accuracy, table, compare, gate and robustness: one or more .json files
    that --save wrote."""
    output: Annotated[Path, Flag("FILE.html", aliases=("-o",))] = Path("report.html")
    """Page to write; the same name with .md and .png for the others."""
    mixed: bool = False
    """Put results of different machines or engines into one table, each row marked with its own."""
    overwrite: bool = False
    """Replace existing files."""

    def __post_init__(self) -> None:
        if not self.results:
            raise UsageError("no result given. Expected files that distill bench --save wrote")
        if self.output.suffix not in (".html", ".htm"):
            raise UsageError(f"--output {self.output}: expected a name that ends in .html")


def run(options: Options) -> None:
    """Write the page, and print where it is."""
    for path in do(options):
        print(path)


def do(options: Options) -> list[Path]:
    """Write the page; the files that were written."""
    for path in page.outputs(options.output):
        files.refuse_existing(path, options.overwrite)
        files.require_writable(path)
    with loading("making the report"):
        return page.write([saved.read(path) for path in options.results], options.output, options.mixed)
