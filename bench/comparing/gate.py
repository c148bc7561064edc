"""Limits that an artifact is held to: what was measured against what was allowed, and the reasons.

In:  limits; what was measured of the artifact and of the one before it.
Out: a `Verdict` of `Check`s; the same as JUnit's XML.
Elsewhere: measuring (bench.measuring, bench.comparing.race), the flags (bench.gating.options).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np

from runtime.cli.terminal import printable
from runtime.intervals import newcombe, wilson

from .. import stats
from ..accuracy import Answers
from .ratios import Ratio


@dataclass(frozen=True)
class Check:
    """One limit. The names are keys of the JSON result."""

    name: str
    """latency, memory, drop, agreement or slowdown."""
    measured: float
    limit: float
    unit: str
    passed: bool
    text: str
    """One sentence with the figures."""


@dataclass(frozen=True)
class Verdict:
    """All checks of one artifact."""

    file: str
    checks: list[Check]

    @property
    def reasons(self) -> list[str]:
        """What did not hold."""
        return [check.text for check in self.checks if not check.passed]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"passed": not self.reasons, "checks": [asdict(check) for check in self.checks]}


def latency(samples_ns: np.ndarray, limit_ms: float) -> Check:
    """The median of the durations (n,) in ns against a limit."""
    p50 = stats.percentile(samples_ns, 50) / stats.NS_PER_MS
    low, high = stats.interval_of_median(samples_ns)
    between = f" (95 % interval {low:.4g} to {high:.4g})" if low is not None else ""
    text = f"median latency {p50:.4g} ms{between}, at most {limit_ms:g} allowed, n={len(samples_ns)}"
    return Check("latency", p50, limit_ms, "ms", p50 <= limit_ms, text)


def memory(peak_bytes: int, limit_bytes: float) -> Check:
    """The peak of a new process that answers, against a limit."""
    text = (
        f"peak resident memory {peak_bytes / 1e6:.1f} MB of a new process that answers, interpreter and"
        f" engine included, at most {limit_bytes / 1e6:g} allowed"
    )
    return Check("memory", peak_bytes / 1e6, limit_bytes / 1e6, "MB", peak_bytes <= limit_bytes, text)


def drop(this: Answers, before: Answers, limit_points: float) -> Check:
    """Top-1 lost on the same images, points."""
    gained = int((this.right & ~before.right).sum())
    lost = int((before.right & ~this.right).sum())
    n = len(this.right)
    low, high = newcombe(int((this.right & before.right).sum()), lost, gained, n)
    points = 100 * (lost - gained) / n
    text = (
        f"top-1 drop {points:.2f} points (95 % interval {100 * low:+.2f} to {100 * high:+.2f}; {lost} of {n}"
        f" images become wrong, {gained} right), at most {limit_points:g} allowed"
    )
    return Check("drop", points, limit_points, "points", points <= limit_points, text)


def agreement(this: Answers, before: Answers, limit_percent: float) -> Check:
    """The share of images with the same best class, percent."""
    same, n = int((this.classes == before.classes).sum()), len(this.classes)
    low, high = wilson(same, n)
    percent = 100 * same / n
    text = (
        f"agreement {percent:.2f} % (95 % interval {100 * low:.2f} to {100 * high:.2f}; {n - same} of {n}"
        f" images get another class), at least {limit_percent:g} asked for"
    )
    return Check("agreement", percent, limit_percent, "percent", percent >= limit_percent, text)


def slowdown(ratio: Ratio, limit_percent: float, floor: Ratio | None = None) -> Check:
    """How much longer it takes than before, percent: too long only where the whole interval is beyond the
    limit, and beyond what the artifact before differs from itself.
    """
    allowed = 1 + limit_percent / 100
    noise = max(floor.value, 1 / floor.value) if floor else 1.0
    text = (
        f"takes {ratio.value:.3f} x the time of before (95 % interval {ratio.low:.3f} to {ratio.high:.3f}),"
        f" at most {allowed:.3f} allowed"
    )
    too_slow = ratio.low > max(allowed, noise)
    return Check("slowdown", 100 * (ratio.value - 1), limit_percent, "percent", not too_slow, text)


def ratio_of_runs(this_ns: np.ndarray, before_ns: np.ndarray) -> Ratio | None:
    """The ratio of two medians that were measured at different times, its interval as wide as both allow."""
    low, high = stats.interval_of_median(this_ns)
    least, most = stats.interval_of_median(before_ns)
    if low is None or high is None or least is None or most is None:
        return None
    return Ratio(float(np.median(this_ns) / np.median(before_ns)), low / most, high / least)


def to_junit(verdict: Verdict, seconds: float, notes: Sequence[str] = ()) -> str:
    """The checks as test cases, in the form that CI systems read."""
    failures = str(len(verdict.reasons))
    count = {"tests": str(len(verdict.checks)), "failures": failures, "errors": "0", "time": f"{seconds:.3f}"}
    root = ElementTree.Element("testsuites", count)
    suite = ElementTree.SubElement(root, "testsuite", {"name": "distill bench gate"} | count)
    for check in verdict.checks:
        about = {"classname": printable(verdict.file), "name": check.name, "time": "0"}
        case = ElementTree.SubElement(suite, "testcase", about)
        if check.passed:
            ElementTree.SubElement(case, "system-out").text = printable(check.text)
        else:
            failed = ElementTree.SubElement(case, "failure", {"message": printable(check.text)})
            failed.text = printable(check.text)
    if notes:
        ElementTree.SubElement(suite, "system-out").text = "\n".join(map(printable, notes))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
