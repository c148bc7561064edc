"""Numbers for people and for programs: short forms, one console, one JSON object, the conditions.

In:  plain values; None where nothing was measured.
Out: short strings; text on stdout.
Elsewhere: measuring (bench.clock.latency, bench.accuracy), the tables themselves (bench.tables).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from runtime import files
from runtime.cli.terminal import printable, screen

UNKNOWN = "–"
"""What is shown for None: not measured, not known."""

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula."""
PIPE_WIDTH = 100
"""Columns of output that goes to a file or a pipe, where rich would assume 80."""


def count(value: int | None) -> str:
    """Parameters and MACs: 12345 -> 12.3k, 4500000 -> 4.5M."""
    return UNKNOWN if value is None else _scaled(value, ("", "k", "M", "G", "T"))


def size(value: int | None) -> str:
    """Bytes in decimal units, as file managers show them: 1234567 -> 1.2 MB."""
    return UNKNOWN if value is None else _scaled(value, (" B", " kB", " MB", " GB", " TB"))


def number(value: float | None, digits: int = 2, sign: bool = False) -> str:
    """Fixed decimals, with a sign when it is a difference."""
    return UNKNOWN if value is None else f"{value:{'+' if sign else ''}.{digits}f}"


def significant(value: float | None) -> str:
    """Milliseconds and the like, with the digits that count: 0.012, 1.91, 12.3, 1234."""
    return (
        number(value, 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3)
        if value is not None
        else UNKNOWN
    )


def rate(value: float | None) -> str:
    """Images per second: 1.91, 1234, 12.3k."""
    return count(round(value)) if value is not None and value >= 10_000 else significant(value)


def _scaled(value: float, units: tuple[str, ...]) -> str:
    power = 0
    while (
        round(value, 1 if value < 100 else 0) >= 1000 and power < len(units) - 1
    ):  # rounded: 999,999 is 1.0M, not 1000k
        value, power = value / 1000, power + 1
    return f"{value:.{1 if power and value < 100 else 0}f}{units[power]}"


def short_names(files: Sequence[str]) -> list[str]:
    """The name of each file, with as many of its folders as tell it from another file of the same name:
    a/best.onnx and b/best.onnx.
    """
    parts = [Path(os.path.abspath(file)).parts for file in files]
    return [_short(own, [other for other in parts if other != own]) for own in parts]


def _short(own: tuple[str, ...], others: Sequence[tuple[str, ...]]) -> str:
    count = next(
        count for count in range(1, len(own) + 1) if all(other[-count:] != own[-count:] for other in others)
    )
    return str(Path(*own[-count:]))


def console() -> Any:
    """A rich console on stdout that keeps tables readable when the output is not a terminal."""
    return screen(width=None if sys.stdout.isatty() else PIPE_WIDTH)


def table(title: str, left: Sequence[str], right: Sequence[str]) -> Any:
    """An empty rich table without lines between columns, names to the left and numbers to the right."""
    from rich import box
    from rich.table import Table

    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in left:
        made.add_column(heading, overflow="fold")
    for heading in right:
        made.add_column(heading, justify="right", no_wrap=True)
    return made


def plain_text(lines: str) -> Any:
    """Lines for a cell in which nothing is taken for markup or moves the cursor, whatever a file says."""
    from rich.text import Text

    return Text("\n".join(printable(line) for line in lines.split("\n")))


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Rows of a Markdown table, the line below the heading included; no cell ends its row."""
    rows = ([printable(cell).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def csv_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """A row for a CSV file: text that a spreadsheet would take for a formula begins with an apostrophe."""
    return {
        name: f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
        for name, value in values.items()
    }


def with_notes(tables: Sequence[Any], notes: Sequence[str]) -> Any:
    """The tables with their conditions below, each note in the full width of the console."""
    from rich.console import Group
    from rich.text import Text

    return Group(*tables, *(Text(printable(note)) for note in notes))


def require_place(results_file: Path | None, overwrite: bool) -> None:
    """Raise UsageError where the result cannot be saved: now, and not after the measurement."""
    if results_file:
        files.refuse_existing(results_file, overwrite)
        files.require_writable(results_file)


class Result(Protocol):
    """What a command found."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""


def deliver(found: Result, as_json: bool, shown: Callable[[], Any] | None, keep: Callable[[], None]) -> None:
    """Show a result to a person, keep it, print it as JSON. Shown first: what was measured is not lost when
    it cannot be written; JSON last: stdout is one object, this one or that of an error.

    shown: what rich prints; None for what the caller prints in another form.
    """
    if not as_json and shown:
        console().print(shown())
    keep()
    if as_json:
        print_json(found.to_dict())


def print_json(values: dict[str, Any]) -> None:
    """One JSON object on stdout, nothing else."""
    print(to_json(values), end="")


def to_json(values: dict[str, Any]) -> str:
    """The object as indented text with a final newline."""
    return files.json_text(values, indent=2) + "\n"


def machine(fingerprint: dict[str, Any]) -> str:
    """The machine of `runtime.env.fingerprint()` on one line; the engine is each report's own to name."""
    parts = [
        fingerprint["cpu"] or "unknown CPU",
        f"{fingerprint['cores']} cores",
        fingerprint["gpu"],
        f"Python {fingerprint['python']}",
        fingerprint["system"],
    ]
    return ", ".join(part for part in parts if part)
