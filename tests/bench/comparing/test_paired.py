"""Paired comparisons against published values and scipy."""

import numpy as np
import pytest
from scipy import stats

from bench.accuracy import AccuracyResult
from bench.comparing import paired as pairs


def answers(best, labels, confidence=0.9):
    """A result that answers `best`, each with this confidence among three classes."""
    logits = np.full((len(best), 3), np.log((1 - confidence) / 2), np.float32)
    logits[np.arange(len(best)), best] = np.log(confidence)
    right = float(np.mean(np.array(best) == labels))
    return AccuracyResult(100 * right, 100.0, 0.0, logits, np.array(labels), np.arange(len(best)), [], [])


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 5), (3, 12), (40, 90), (2500, 2650)])
def test_mcnemar_is_the_exact_binomial_test(gained, lost):
    expected = stats.binomtest(gained, gained + lost, 0.5).pvalue if gained + lost else 1.0
    assert pairs.mcnemar(gained, lost) == pytest.approx(expected, rel=1e-9)


def test_the_calibration_error_by_hand():
    """At 90 % confidence and 3 of 4 right the gap is 15 points; at 60 % and 1 of 2 right, 10 points."""
    sure = answers([0, 1, 2, 0], [0, 1, 2, 1], 0.9)
    unsure = answers([0, 1], [0, 2], 0.6)
    assert pairs.calibration_error(sure.logits, sure.labels) == pytest.approx(15, abs=1e-3)
    both = np.concatenate([sure.logits, unsure.logits]), np.concatenate([sure.labels, unsure.labels])
    assert pairs.calibration_error(*both) == pytest.approx((4 * 15 + 2 * 10) / 6, abs=1e-3)


def test_flips_agreement_and_the_class_that_lost_most():
    labels = [0, 0, 0, 1, 1, 2, 2, 2]
    reference = answers([0, 0, 0, 1, 0, 2, 2, 1], labels)
    this = answers([1, 2, 0, 1, 1, 2, 2, 2], labels)
    found = pairs.paired(this, reference, ["ant", "bee", "cow"])
    assert (found.only_this_right, found.only_reference_right) == (2, 2)
    assert found.agreement_percent == pytest.approx(50)
    assert (found.worst_class, found.worst_class_lost, found.worst_class_images) == ("ant", 2, 3)
    assert found.difference_points == 0 and not found.is_clear and found.mcnemar_p == 1


def test_a_clear_difference_is_said_to_be_one():
    labels = [0] * 40
    found = pairs.paired(answers([0] * 40, labels), answers([1] * 20 + [0] * 20, labels), ["a", "b", "c"])
    assert found.is_clear and found.difference_low_points > 0 and found.worst_class is None


def test_the_interval_is_newcombes_of_this_one_minus_the_reference():
    """Newcombe 1998, table II, method 10: both right on 36 of 50, one alone on 12 and 2."""
    labels = [0] * 50
    this, reference = [0] * 48 + [1] * 2, [0] * 36 + [1] * 12 + [0] * 2
    found = pairs.paired(answers(this, labels), answers(reference, labels), ["a", "b", "c"])
    low, high = found.difference_low_points, found.difference_high_points
    assert (low, high) == pytest.approx((5.69, 34.04), abs=0.01)


def test_the_interval_of_the_accuracy_is_wilsons():
    """Newcombe 1998 (single proportions): 81 of 263 gives 25.53 to 36.62 %."""
    labels = [0] * 263
    this = answers([0] * 81 + [1] * 182, labels)
    found = pairs.paired(this, this, ["a", "b", "c"])
    assert (found.top1_low_percent, found.top1_high_percent) == pytest.approx((25.53, 36.62), abs=5e-3)


def test_other_images_are_refused():
    one, other = answers([0, 1], [0, 1]), answers([0, 1, 2], [0, 1, 2])
    with pytest.raises(ValueError, match="different images"):
        pairs.paired(one, other, ["a", "b", "c"])
