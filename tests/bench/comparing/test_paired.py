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


def test_the_interval_for_pairs_is_newcombes():
    """Newcombe 1998 (paired), table II, method 10: 36, 12, 2, 0 gives 0.0569 to 0.3404."""
    assert pairs.newcombe(36, 12, 2, 50) == pytest.approx((0.0569, 0.3404), abs=1e-4)


def test_the_interval_of_a_share_is_wilsons():
    """Newcombe 1998 (single): 81 of 263 gives 0.2553 to 0.3662; none of 20 gives 0 to 0.1611."""
    assert pairs.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert pairs.wilson(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)


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


def test_other_images_are_refused():
    one, other = answers([0, 1], [0, 1]), answers([0, 1, 2], [0, 1, 2])
    with pytest.raises(ValueError, match="different images"):
        pairs.paired(one, other, ["a", "b", "c"])
