"""Which calibration method is best for this network, judged on labeled images that it was not calibrated on.

In:  `logits_of(method)`, the int8 network's logits on the selection images; fp32's logits there; their
labels.
Out: the best method and a `Score` of each.
Elsewhere: the methods (export.int8.ranges), building the graphs (export.int8.quantizer), which images
(export.int8.images).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..checks.verify import agreement, hits, mean_kl, top1
from . import ranges


@dataclass(frozen=True)
class Score:
    """One calibration method on the selection images."""

    method: str
    top1: float
    """Percent."""
    agreement: float
    """Share of images with fp32's class, percent."""
    kl: float
    """Mean KL divergence from fp32's probabilities, nats per image."""


def pick_method(
    logits_of: Callable[[str], np.ndarray], reference: np.ndarray, labels: np.ndarray
) -> tuple[str, list[Score]]:
    """Try every calibration method; returns the best one and all scores.

    logits_of runs the graph of a method on the selection images; reference (N, K) are fp32's logits there.
    Accuracy decides. Methods whose accuracy cannot be told from the best one's (it has at most as many extra
    hits as one standard error: the square root of the number of images that only one of the two gets right)
    are told apart by their KL divergence from fp32.
    """
    right: dict[str, np.ndarray] = {}
    scores = []
    for method in ranges.METHODS:
        found = logits_of(method)
        right[method] = hits(found, labels)
        scores.append(
            Score(method, top1(found, labels), agreement(reference, found), mean_kl(reference, found))
        )
    best = max(scores, key=lambda score: (score.top1, -score.kl)).method

    def as_good(method: str) -> bool:
        only_one = int((right[method] != right[best]).sum())
        return int(right[best].sum()) - int(right[method].sum()) <= only_one**0.5

    return min((s for s in scores if as_good(s.method)), key=lambda score: score.kl).method, scores
