"""How sure one can be of an accuracy, or of a difference of two, that was measured on so many images.

In:  counts of images; or values, such as durations.
Out: 95 % intervals of shares, 0 to 1, of differences of shares, -1 to 1, and of medians.
Elsewhere: the sentences that are made of them (distill.run.interval, bench.comparing.paired).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Z = 1.959963984540054
"""Two-sided 95 % of a normal distribution."""


def wilson(right: int, n: int) -> tuple[float, float]:
    """Interval of the share right / n, n > 0 (Wilson, JASA 22, 1927)."""
    middle = (right + Z * Z / 2) / (n + Z * Z)
    half = Z / (n + Z * Z) * math.sqrt(right * (n - right) / n + Z * Z / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def newcombe(both: int, only_first: int, only_second: int, n: int) -> tuple[float, float]:
    """Interval of the first's share minus the second's, on the same n > 0 images: paired proportions.

    both: images on which both are right. (Newcombe, "Improved confidence intervals for the difference between
    binomial proportions based on paired data", Statistics in Medicine 17, 1998, method 10.)
    """
    first, second = both + only_first, both + only_second
    p1, p2 = first / n, second / n
    (low1, high1), (low2, high2) = wilson(first, n), wilson(second, n)
    phi = _correlation(both, only_first, only_second, n - both - only_first - only_second)
    below = _third_side(p1 - low1, high2 - p2, phi)
    above = _third_side(high1 - p1, p2 - low2, phi)
    return p1 - p2 - below, p1 - p2 + above


def median_interval(values: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """Interval of the median by the sign test: two of the values in order, whatever the distribution. None of
    fewer than six values.
    """
    ordered, n = sorted(values), len(values)
    tail, left = 0.0, 0
    while left < n and (tail := tail + math.comb(n, left) / 2**n) <= 0.025:
        left += 1
    return (ordered[left - 1], ordered[n - left]) if left else (None, None)


def _third_side(one: float, other: float, cosine: float) -> float:
    return math.sqrt(max(one * one + other * other - 2 * cosine * one * other, 0.0))


def _correlation(both: int, first: int, second: int, neither: int) -> float:
    """Of the two being right, with Newcombe's correction for continuity where it is positive."""
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    if not margins:
        return 0.0
    excess: float = both * neither - first * second
    if excess > 0:
        excess = max(excess - (both + first + second + neither) / 2, 0)
    return excess / math.sqrt(margins)
