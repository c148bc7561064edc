"""How sure one can be of a difference in accuracy that was measured on the same images.

In:  for each image whether either network is right.
Out: a 95 % interval of the difference.
Elsewhere: the sentence that is made of it (distill.run.result).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Z = 1.959963984540054
"""Two-sided 95 % of a normal distribution."""


@dataclass(frozen=True)
class Paired:
    """A difference of two accuracies on the same images, in points, with its 95 % interval."""

    points: float
    low: float
    high: float
    only_first: int
    """Images on which only the first network is right."""
    only_second: int
    images: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0

    def to_dict(self) -> dict[str, Any]:
        """What result.json says."""
        return {
            "gain_low_points": self.low,
            "gain_high_points": self.high,
            "only_student_right": self.only_first,
            "only_control_right": self.only_second,
        }


def paired(first: Tensor, second: Tensor) -> Paired:
    """first, second (N,) bool: right or wrong. Newcombe's interval for paired proportions, "Improved
    confidence intervals for the difference between binomial proportions based on paired data", Statistics
    in Medicine 17 (1998), method 10.
    """
    n = len(first)
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    b, c = int((first & ~second).sum()), int((second & ~first).sum())
    p1, p2 = (both + b) / n, (both + c) / n
    (low1, high1), (low2, high2) = wilson(both + b, n), wilson(both + c, n)
    phi = _correlation(both, b, c, neither)
    points = 100 * (p1 - p2)
    below, above = _length(p1 - low1, high2 - p2, phi), _length(high1 - p1, p2 - low2, phi)
    return Paired(points, points - 100 * below, points + 100 * above, b, c, n)


def _length(one: float, other: float, phi: float) -> float:
    """Of the difference of two steps whose correlation is phi."""
    return math.sqrt(one * one + other * other - 2 * phi * one * other)


def wilson(right: int, n: int) -> tuple[float, float]:
    """95 % interval of a share, right of n (Wilson 1927)."""
    middle = (right + Z * Z / 2) / (n + Z * Z)
    half = Z / (n + Z * Z) * math.sqrt(right * (n - right) / n + Z * Z / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def _correlation(a: int, b: int, c: int, d: int) -> float:
    """Phi of the table of both right, only the first, only the second, none; with a continuity correction."""
    product = (a + b) * (c + d) * (a + c) * (b + d)
    if not product:
        return 0.0
    excess = a * d - b * c
    half = (a + b + c + d) / 2
    corrected = max(excess - half, 0) if excess > 0 else excess
    return corrected / math.sqrt(product)
