"""How sure one can be of a difference in accuracy that was measured on the same images.

In:  for each image whether either network is right.
Out: a 95 % interval of the difference.
Elsewhere: the formula (runtime.intervals), the sentence that is made of it (distill.run.result).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from runtime.intervals import newcombe


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
    """first, second (N,) bool: right or wrong, on the same images, with Newcombe's interval for pairs."""
    n, both = len(first), int((first & second).sum())
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    low, high = newcombe(both, only_first, only_second, n)
    return Paired(100 * (only_first - only_second) / n, 100 * low, 100 * high, only_first, only_second, n)
