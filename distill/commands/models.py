"""`distill models`: which networks there are, timm's and this project's own.

In:  a pattern such as 'convnext*'.
Out: name, parameters (where few match), input, published weights, and how large the kernels are. With --json
     one object.
Elsewhere: the facts (distill.models.catalog), building a network (distill.models).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

from runtime import files
from runtime.cli.settings import Flag
from runtime.cli.terminal import loading, screen

if TYPE_CHECKING:
    from ..models.catalog import Entry

SUMMARY = "list networks: parameters, input size, published weights"
DESCRIPTION = """Parameters are counted where at most 24 networks match, because each has to be built for it.

examples:
  {prog} 'convnext*'
  {prog} --ours
  {prog} --teachers --json"""


@dataclass(frozen=True)
class Options:
    """Flags of `distill models`."""

    pattern: Annotated[str, Flag("PATTERN", positional=True)] = ""
    """Names to list, with * for any letters, or one of a hub or a folder (hf-hub:OWNER/NAME, local-dir:DIR);
    without it all."""
    teachers: bool = False
    """List networks built on large kernels alone: depthwise convolutions of 7 x 7 or more."""
    ours: bool = False
    """List networks of this project alone, which timm does not have."""
    json: bool = False
    """Print the result as one JSON object and nothing else."""


def run(options: Options) -> None:
    """Print the networks that match. Raises UsageError when there are none."""
    with loading("loading torch"):
        from ..models import catalog

    found = catalog.entries(options.pattern, large_kernel=options.teachers, ours=options.ours)
    if options.json:
        print(files.json_text({"models": [asdict(each) for each in found]}))
    elif sys.stdout.isatty():
        _show(found)
    else:
        for row in [HEADINGS, *map(_cells, found)]:
            print("\t".join(row))


HEADINGS = ("name", "parameters", "input", "published weights", "large kernel")


def _cells(each: Entry) -> tuple[str, ...]:
    return (
        each.name,
        "" if each.parameters is None else f"{each.parameters / 1e6:.1f}M",
        " x ".join(map(str, each.input_size)),
        "yes" if each.published else "no",
        each.kernel,
    )


def _show(found: Sequence[Entry]) -> None:
    from rich.table import Table

    table = Table(*HEADINGS, box=None, pad_edge=False)
    table.columns[0].overflow = "fold"
    table.columns[1].justify = "right"
    for each in found:
        table.add_row(*_cells(each))
    screen().print(table)
