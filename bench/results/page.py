"""One page about saved results: accuracy against latency, the table, comparisons, limits, robustness.

In:  results that `bench` saved.
Out: an HTML file that needs nothing else, the same as Markdown, and its drawing as PNG.
Elsewhere: tables of several files (bench.results.gathered), the drawing (bench.results.figures), the look of
all pages (runtime.cli.page).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime import ArtifactError, files
from runtime.cli.page.html import render, require_installed
from runtime.cli.terminal import printable

from .. import report, tables
from ..table import Row
from . import figures, gathered, robust
from .saved import AGAIN, Saved


@dataclass(frozen=True)
class Line:
    """A row of the table as it is shown."""

    name: str
    cells: Sequence[str]
    beaten_by: str
    """The artifact that is as accurate and as fast; empty on the front."""


@dataclass(frozen=True)
class Compared:
    """One artifact of a saved comparison."""

    name: str
    verdict: str
    time: str
    p99: str
    accuracy: str


@dataclass(frozen=True)
class Page:
    """Everything that is shown."""

    headings: Sequence[str]
    lines: Sequence[Line]
    notes: Sequence[str]
    warnings: Sequence[str]
    comparisons: Sequence[tuple[str, Sequence[Compared]]]
    """(file, artifacts with the reference first)."""
    gates: Sequence[tuple[str, Sequence[tuple[str, bool, str]]]]
    """(artifact, (limit, holds, text))."""
    robust: Sequence[tuple[str, str, Sequence[Sequence[str]]]]
    """(file, conditions, name and figures of each artifact)."""
    robust_headings: Sequence[str]
    commands: Sequence[tuple[str, str, str]]
    """(file, when, command)."""
    shown: Sequence[Row]
    """Rows of the drawing."""
    names: Sequence[str]


def outputs(output: Path) -> list[Path]:
    """The three files: the page, .md, .png."""
    return [output, *(output.with_suffix(suffix) for suffix in (".md", ".png"))]


def write(results: Sequence[Saved], output: Path, mixed: bool) -> list[Path]:
    """Write the page; what was written. Without a row that has both figures there is no drawing.

    Raises MissingError without matplotlib and jinja2, and what putting results together raises.
    """
    require_installed()
    page = page_of(results, mixed)
    html, markdown, png = outputs(output)
    drawing = figures.svg(page.shown, page.names) if page.shown else ""
    files.write_text(html, render("bench.results", "page.html.j2", {"page": page, "drawing": drawing}))
    files.write_text(markdown, to_markdown(page, png.name if page.shown else ""))
    if page.shown:
        files.write_bytes(png, figures.png(page.shown, page.names))
    return [html, markdown, *([png] if page.shown else [])]


def page_of(results: Sequence[Saved], mixed: bool) -> Page:
    """Everything that these results say. Raises UsageError where they cannot be in one table."""
    rows = [saved for saved in results if saved.kind in gathered.KINDS]
    table = gathered.gather(rows, mixed) if rows else None
    names = [printable(name) for name in tables.names(table)] if table else []
    every = list(zip(table.rows if table else [], names, strict=True))
    drawn = [(row, name) for row, name in every if figures.is_shown(row)]
    warned = list(table.conditions.warnings) if table else []
    return Page(
        headings=["top-1 %", "95 % interval", *(column.one_line for column in tables.COLUMNS[1:])],
        lines=[_line(row, name, drawn) for row, name in every],
        notes=[printable(line) for line in gathered.machines(rows)] if rows else [],
        warnings=[
            *(printable(each.text) for each in warned),
            *(line for saved in results for line in _warned(saved)),
        ],
        comparisons=[_comparison(saved) for saved in results if saved.kind == "compare"],
        gates=[_gate(saved) for saved in results if saved.kind == "gate"],
        robust=[
            (printable(saved.path.name), robust.conditions(saved), robust.rows(saved))
            for saved in results
            if saved.kind == "robustness"
        ],
        robust_headings=robust.HEADINGS,
        commands=[
            (printable(saved.path.name), printable(saved.made), printable(saved.command)) for saved in results
        ],
        shown=[row for row, _ in drawn],
        names=[name for _, name in drawn],
    )


def _line(row: Row, name: str, drawn: Sequence[tuple[Row, str]]) -> Line:
    better = figures.beaten_by(row, [each for each, _ in drawn]) if figures.is_shown(row) else None
    first, *others = [column.shown(row) for column in tables.COLUMNS]
    interval = report.UNKNOWN
    if row.top1_low_percent is not None and row.top1_high_percent is not None:
        interval = f"{row.top1_low_percent:.2f} to {row.top1_high_percent:.2f}"
    return Line(
        printable(f"{row.artifact}{tables.mark(row)} ({name})"),
        [first, interval, *others],
        next((each for other, each in drawn if other is better), "") if better else "",
    )


def _warned(saved: Saved) -> list[str]:
    """Warnings of results that are not rows of the table."""
    if saved.kind in gathered.KINDS:
        return []
    found = saved.values.get("warnings")
    known = found if isinstance(found, list) else []
    return [
        printable(f"{saved.path.name}: {each.get('text')}") for each in known if isinstance(each, Mapping)
    ]


def _comparison(saved: Saved) -> tuple[str, list[Compared]]:
    found = [each for each in saved.need("artifacts", list) if isinstance(each, Mapping)]
    return printable(saved.path.name), [_compared(saved, each) for each in found]


def _compared(saved: Saved, each: Mapping[str, Any]) -> Compared:
    against, judged = each.get("against_reference"), each.get("accuracy_against_reference")
    name = printable(saved.need("name", str, each))
    if not isinstance(against, Mapping):
        return Compared(name, "reference", "", "", "")
    accuracy = ""
    if isinstance(judged, Mapping):
        points, low, high, same = (
            saved.need(key, float, judged)
            for key in (
                "difference_points",
                "difference_low_points",
                "difference_high_points",
                "agreement_percent",
            )
        )
        accuracy = f"{points:+.2f} points ({low:+.2f} to {high:+.2f}), agreement {same:.2f} %"
    return Compared(
        name,
        printable(saved.need("verdict", str, against)),
        _ratio(saved, against.get("median_ratio")),
        _ratio(saved, against.get("p99_ratio")),
        accuracy,
    )


def _ratio(saved: Saved, ratio: Any) -> str:
    if ratio is None:
        return "–"
    if not isinstance(ratio, Mapping):
        raise ArtifactError(f"{saved.path}: a ratio is not an object. {AGAIN}")
    value, low, high = (saved.need(key, float, ratio) for key in ("value", "low", "high"))
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def _gate(saved: Saved) -> tuple[str, list[tuple[str, bool, str]]]:
    checks = [each for each in saved.need("checks", list) if isinstance(each, Mapping)]
    return printable(saved.need("file", str)), [
        (
            printable(saved.need("name", str, each)),
            each.get("passed") is True,
            printable(saved.need("text", str, each)),
        )
        for each in checks
    ]


def to_markdown(page: Page, picture: str) -> str:
    """The same page as Markdown; picture: the name of the drawing beside it, empty where there is none."""
    parts = ["# Accuracy against latency"]
    if picture:
        parts.append(f"![{figures.LABEL}]({picture})")
    if page.lines:
        heading = ["artifact", *page.headings, "beaten by"]
        rows = [[line.name, *line.cells, line.beaten_by] for line in page.lines]
        parts.append(_markdown_table(heading, rows))
    for name, compared in page.comparisons:
        parts.append(f"## Compared: {name}")
        heading = ["artifact", "verdict", "time, ratio", "p99, ratio", "accuracy"]
        parts.append(
            _markdown_table(
                heading, [[each.name, each.verdict, each.time, each.p99, each.accuracy] for each in compared]
            )
        )
    for name, checks in page.gates:
        parts.append(f"## Limits of {name}")
        parts.append(
            _markdown_table(
                ["limit", "holds", "measured"],
                [[limit, "yes" if holds else "NO", text] for limit, holds, text in checks],
            )
        )
    for name, conditions, figures_of in page.robust:
        parts += [f"## Robustness: {name}", conditions]
        parts.append(_markdown_table(["artifact", *page.robust_headings], figures_of))
    parts += [f"Warning: {text}" for text in page.warnings]
    parts += ["## Measured on", *page.notes] if page.notes else []
    parts.append("## Commands")
    parts.append(
        _markdown_table(["file", "when", "command"], [[a, b, f"`{c}`"] for a, b, c in page.commands])
    )
    return "\n\n".join(parts) + "\n"


def _markdown_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return report.markdown([list(heading), ["---"] * len(heading), *rows])
