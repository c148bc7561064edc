"""How sure one can be of a difference in accuracy between two artifacts that saw the same images.

In:  two `AccuracyResult`s.
Out: `Paired`: the difference with its interval, images that only one of them gets right, McNemar's test,
agreement, calibration errors, the class that lost most.
Elsewhere: accuracies themselves (bench.accuracy), the formulas of the intervals (runtime.intervals), times
(bench.comparing.ratios).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..accuracy import AccuracyResult, difference, ranks

CONFIDENCE_BINS = 15


@dataclass(frozen=True)
class Paired:
    """This artifact against a reference, on the same images. The names are keys of the JSON result."""

    top1_percent: float
    top1_low_percent: float
    """Wilson's 95 % interval of this one's accuracy."""
    top1_high_percent: float
    reference_top1_percent: float
    difference_points: float
    """Of this one minus the reference."""
    difference_low_points: float
    """Newcombe's 95 % interval for pairs."""
    difference_high_points: float
    only_this_right: int
    only_reference_right: int
    mcnemar_p: float
    """Chance of flips as uneven as these, or more, if both were equally good: exact, two-sided."""
    agreement_percent: float
    """Images with the same best class."""
    calibration_error_percent: float
    """Mean distance of confidence and accuracy, over bins of confidence."""
    reference_calibration_error_percent: float
    worst_class: str | None
    """The class that lost most images against the reference; None where none lost any."""
    worst_class_lost: int
    worst_class_images: int
    images: int

    @property
    def is_clear(self) -> bool:
        """Does the difference's interval leave out zero?"""
        return self.difference_low_points > 0 or self.difference_high_points < 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def paired(
    this: AccuracyResult, reference: AccuracyResult, class_names: list[str] | tuple[str, ...]
) -> Paired:
    """Compare two results. Raises ValueError when they are of different images."""
    gained, lost, below, above = difference(this, reference)
    low, high = this.top1_interval
    net = np.bincount(
        this.labels, reference.right.astype(int) - this.right.astype(int), minlength=len(class_names)
    )
    worst = int(net.argmax())
    return Paired(
        top1_percent=this.top1,
        top1_low_percent=low,
        top1_high_percent=high,
        reference_top1_percent=reference.top1,
        difference_points=this.top1 - reference.top1,
        difference_low_points=below,
        difference_high_points=above,
        only_this_right=gained,
        only_reference_right=lost,
        mcnemar_p=mcnemar(gained, lost),
        agreement_percent=100 * float(np.mean(this.logits.argmax(1) == reference.logits.argmax(1))),
        calibration_error_percent=calibration_error(this.logits, this.labels),
        reference_calibration_error_percent=calibration_error(reference.logits, reference.labels),
        worst_class=class_names[worst] if net[worst] > 0 else None,
        worst_class_lost=max(int(net[worst]), 0),
        worst_class_images=int(np.sum(this.labels == worst)) if net[worst] > 0 else 0,
        images=this.n,
    )


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p of as uneven a split of the images that changed sides (McNemar, Psychometrika 12,
    1947; binomial with share 1/2).
    """
    n, fewer = gained + lost, min(gained, lost)
    if n == 0:
        return 1.0
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(fewer + 1)]
    largest = max(logs)
    tail = math.exp(largest - n * math.log(2)) * math.fsum(math.exp(each - largest) for each in logs)
    return min(1.0, 2 * tail)


def calibration_error(logits: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error, percent: 15 bins of equal width (Guo et al., ICML 2017)."""
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    confidence = 1 / np.exp(z).sum(axis=1)
    right = ranks(logits, labels) < 1
    bins = np.minimum(np.ceil(confidence * CONFIDENCE_BINS).astype(int) - 1, CONFIDENCE_BINS - 1)
    gaps = np.bincount(bins, confidence - right, minlength=CONFIDENCE_BINS)
    return 100 * float(np.abs(gaps).sum() / len(labels))
