"""export.int8.choose: the calibration method that accuracy chooses, and KL where accuracy cannot tell."""

import numpy as np
import pytest

from export.int8 import ranges
from export.int8.choose import pick_method


def probabilities(logits):
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    return exponents / exponents.sum(1, keepdims=True)


def hits(right, confidence):
    """Logits of 100 images of class 0 with two classes: `right` of them right, with that margin."""
    return np.where(np.arange(100)[:, None] < right, [[confidence, 0.0]], [[0.0, confidence]])


def test_auto_takes_the_method_that_is_clearly_more_accurate_whatever_its_kl():
    logits = dict.fromkeys(ranges.METHODS, hits(50, 1.0)) | {"entropy": hits(90, 9.0)}
    labels = np.zeros(100, np.int64)
    best, scores = pick_method(logits.__getitem__, hits(50, 1.0), labels)
    assert best == "entropy"
    assert {score.method: score.top1 for score in scores} == dict.fromkeys(ranges.METHODS, 50.0) | {
        "entropy": 90.0
    }


def test_auto_tells_methods_of_equal_accuracy_apart_by_kl_from_fp32():
    reference = hits(90, 2.0)
    logits = dict.fromkeys(ranges.METHODS, hits(91, 9.0)) | {"mse": hits(90, 2.1)}  # one image fewer: luck
    best, scores = pick_method(logits.__getitem__, reference, np.zeros(100, np.int64))
    assert best == "mse"
    p, q = probabilities(reference), probabilities(hits(90, 2.1))
    by_hand = float((p * np.log(p / q)).sum(1).mean())
    assert next(score.kl for score in scores if score.method == "mse") == pytest.approx(by_hand)
