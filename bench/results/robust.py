"""A saved robustness as rows of a page.

In:  what `bench robustness` saved.
Out: the texts of its table, every figure with the interval that the file has.
Elsewhere: the figures themselves (bench.comparing.robustness.figures), the page (bench.results.page).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runtime import ArtifactError
from runtime.cli.terminal import printable

from .. import report
from .saved import AGAIN, Saved

HEADINGS = (
    *("clean error %", "corrupted error %", "difference, points", "mCE %", "relative mCE %"),
    *("occlusion area %", "shuffle area %", "steady, shifts %", "steady, crops %"),
)


def rows(saved: Saved) -> list[Sequence[str]]:
    """For each artifact its name and a text per heading. Raises ArtifactError for a damaged file."""
    found = saved.need("artifacts", list)
    if not all(isinstance(each, Mapping) for each in found):
        raise ArtifactError(f"{saved.path}: artifacts: expected objects. {AGAIN}")
    names = report.short_names([saved.need("file", str, each) for each in found])
    return [(printable(name), *_cells(saved, each)) for name, each in zip(names, found, strict=True)]


def conditions(saved: Saved) -> str:
    """Images, data, and what mCE is relative to, in one line."""
    n, data, split = (saved.need(key, kind) for key, kind in (("n", int), ("data", str), ("split", str)))
    return printable(f"n={n} of {data}, {split}; relative to {saved.need('relative_to', str)}")


def _cells(saved: Saved, each: Mapping[str, Any]) -> list[str]:
    whole = [_interval(saved, each, name) for name in ("clean_error", "mean_error")]
    difference = _interval(saved, each, "mean_error_difference", sign=True)
    relative = _number(saved, each, "relative_mce_percent")
    areas = [_interval(saved, each.get(part), "area") for part in ("occlusion", "shuffle")]
    steady = [_number(saved, each.get(part), "mean_consistency_percent") for part in ("shifts", "crops")]
    return [*whole, difference, _interval(saved, each, "mce"), relative, *areas, *steady]


def _interval(saved: Saved, within: Any, name: str, sign: bool = False) -> str:
    if not isinstance(within, Mapping) or within.get(name) is None:
        return report.UNKNOWN
    figure = saved.need(name, dict, within)
    value, low, high = (
        report.number(saved.need(key, float, figure), sign=sign)
        for key in ("percent", "low_percent", "high_percent")
    )
    return f"{value} ({low} to {high})"


def _number(saved: Saved, within: Any, name: str) -> str:
    if not isinstance(within, Mapping) or within.get(name) is None:
        return report.UNKNOWN
    return report.number(saved.need(name, float, within))
