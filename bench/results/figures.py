"""The drawing of a report of results: accuracy against latency.

In:  rows of a table.
Out: SVG for a page, PNG for elsewhere; the rows that no other row beats.
Elsewhere: how a drawing becomes SVG (runtime.cli.page.drawing), the page (bench.results.page).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runtime.cli.page import drawing
from runtime.cli.page.drawing import COLORS, PAGE_COLOR, cut

from ..table import Row

SIZE = (6.4, 4.0)
WIDE = 8.0
"""Ratio of latencies from which the axis is logarithmic."""
PALE = 0.35
COLOR_OF = {"teacher": COLORS[3], "control": COLORS[1], "student": COLORS[0]}
LABEL = "accuracy against latency: one mark for each artifact, bars are 95 % intervals"


def is_shown(row: Row) -> bool:
    """Was both accuracy and latency measured?"""
    return row.top1_percent is not None and bool(row.latency_p50_ms)


def beaten_by(row: Row, rows: Sequence[Row]) -> Row | None:
    """A row at least as accurate and as fast, and better in one of the two; None on the Pareto front."""
    own = _place(row)
    for other in rows:
        place = _place(other)
        if place != own and place[0] <= own[0] and place[1] >= own[1]:
            return other
    return None


def _place(row: Row) -> tuple[float, float]:
    return row.latency_p50_ms or 0.0, row.top1_percent or 0.0


def svg(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Rows that have both figures, at least one."""
    return drawing.drawing(lambda axes: draw(axes, rows, names), SIZE, LABEL)


def png(rows: Sequence[Row], names: Sequence[str]) -> bytes:
    """The same as a file."""
    return drawing.png(lambda axes: draw(axes, rows, names), SIZE)


def draw(axes: Any, rows: Sequence[Row], names: Sequence[str]) -> None:
    """Marks with intervals, the front as a line, what the teacher added as an arrow to the student."""
    _front(axes, rows)
    _gain(axes, rows)
    for row, name in zip(rows, names, strict=True):
        alpha = PALE if beaten_by(row, rows) else 1.0
        color = COLOR_OF.get(row.role or "", COLORS[0])
        x, y = _place(row)
        axes.errorbar(x, y, xerr=_bars(x, row.latency_low_ms, row.latency_high_ms), color=color, alpha=alpha)
        axes.errorbar(
            x, y, yerr=_bars(y, row.top1_low_percent, row.top1_high_percent), color=color, alpha=alpha
        )
        mark = "*" if row.role == "teacher" else "s" if row.precision != "fp32" else "o"
        size = 11 if row.role == "teacher" else 6
        axes.plot(x, y, mark, markersize=size, color=color, alpha=alpha)
        look = {"textcoords": "offset points", "fontsize": 8, "alpha": max(alpha, 0.6)}
        axes.annotate(cut(name), (x, y), (6, -12 if alpha < 1 else 5), **look)
    _finish(axes, [_place(row)[0] for row in rows])


def _bars(value: float, low: float | None, high: float | None) -> list[list[float]] | None:
    if low is None or high is None:
        return None
    return [[max(value - low, 0.0)], [max(high - value, 0.0)]]


def _front(axes: Any, rows: Sequence[Row]) -> None:
    places = sorted(_place(row) for row in rows if beaten_by(row, rows) is None)
    axes.step(
        *zip(*places, strict=True), where="post", color=PAGE_COLOR, alpha=0.4, linewidth=1, linestyle="--"
    )


def _gain(axes: Any, rows: Sequence[Row]) -> None:
    """Between control and the student of its precision, where there is one of each."""
    control = next((row for row in rows if row.role == "control"), None)
    student = control and next(
        (row for row in rows if row.role == "student" and row.precision == control.precision), None
    )
    if control and student:
        arrow = {"arrowstyle": "->", "color": COLORS[2], "linewidth": 1.4}
        axes.annotate("", _place(student), _place(control), arrowprops=arrow)


def _finish(axes: Any, latencies: Sequence[float]) -> None:
    if max(latencies) > WIDE * min(latencies):
        axes.set_xscale("log")
    axes.margins(x=0.18, y=0.12)
    axes.set_xlabel("median latency, ms (boundary compute)")
    axes.set_ylabel("top-1, percent")
    axes.grid(color=PAGE_COLOR, alpha=0.12)
