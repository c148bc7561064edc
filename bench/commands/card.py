"""`distill bench card`: a model card of one artifact.

In:  `Options`: the artifact, and results that --save wrote of it.
Out: a Markdown file; its name on stdout.
Elsewhere: what the card says (bench.results.card).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from runtime import UsageError, files
from runtime.cli.settings import Flag

from ..results import card, saved

SUMMARY = "write a model card: what a file is, and what was measured of it"
DESCRIPTION = """Markdown with measured numbers only, each with its conditions; what was not measured is
named, with the command that measures it.

examples:
  {prog} student.int8.onnx accuracy.json latency.json
  {prog} student.int8.onnx table.json robustness.json --output MODEL_CARD.md"""


@dataclass(frozen=True)
class Options:
    """Flags of `distill bench card`."""

    artifact: Annotated[Path, Flag("FILE", positional=True)]
    """Artifact to write the card of, .onnx or .plan."""
    results: Annotated[tuple[Path, ...], Flag("FILE", positional=True)] = ()
    """Results of bench latency, accuracy, table, compare, gate and robustness about it, .json files that
    --save wrote."""
    output: Annotated[Path, Flag("FILE.md", aliases=("-o",))] = Path("MODEL_CARD.md")
    """Card to write."""
    mixed: bool = False
    """Take results of different machines or engines, each in a row of its own."""
    overwrite: bool = False
    """Replace an existing card."""

    def __post_init__(self) -> None:
        if self.artifact.suffix not in (".onnx", ".plan"):
            raise UsageError(f"{self.artifact}: expected an artifact, a file that ends in .onnx or .plan")


def run(options: Options) -> None:
    """Write the card, and print where it is."""
    print(do(options))


def do(options: Options) -> Path:
    """Write the card. Raises what reading the artifact and the results raises."""
    files.refuse_existing(options.output, options.overwrite)
    files.require_writable(options.output)
    about = card.subject(options.artifact, [saved.read(path) for path in options.results], options.mixed)
    files.write_text(options.output, card.to_markdown(about))
    return options.output
