"""Figures from answers that were made up so that every figure can be worked out on paper."""

import json

import numpy as np
import pytest

from bench.comparing.robustness.asking import Answers
from bench.comparing.robustness.figures import resampled, robustness
from bench.comparing.robustness.views import Asked, View


def view(part, name, level):
    return View(part, name, level, lambda image: image)


ASKED = Asked(corruptions=("shot_noise", "contrast"), severities=(1, 5))
VIEWS = [
    view("clean", "clean", 0),
    view("corruptions", "shot_noise", 1),
    view("corruptions", "shot_noise", 5),
    view("corruptions", "contrast", 1),
    view("corruptions", "contrast", 5),
    view("occlusion", "occlusion", 0.5),
    view("occlusion", "occlusion", 0.9),
    view("shuffle", "shuffle", 4),
    view("shifts", "shifts", 1),
]


def answers(*wrong, n=10):
    """n images of class 0; so many wrong in each view, the first ones."""
    classes = np.zeros((len(VIEWS), n), int)
    for row, count in enumerate(wrong):
        classes[row, :count] = 1
    return Answers(VIEWS, classes, np.zeros(n, int))


REFERENCE = answers(1, 2, 4, 3, 5, 0, 0, 0, 1)
THIS = answers(2, 3, 6, 4, 8, 4, 8, 4, 5)


def test_ce_mce_and_relative_mce_by_hand():
    found = robustness(THIS, REFERENCE, ASKED)
    shot, contrast = found.corruptions["shot_noise"], found.corruptions["contrast"]
    assert shot.error_percent == pytest.approx([30, 60])
    assert shot.ce_percent == pytest.approx(100 * (3 + 6) / (2 + 4))
    assert contrast.ce_percent == pytest.approx(100 * (4 + 8) / (3 + 5))
    assert found.mce.percent == pytest.approx((150 + 150) / 2)
    assert shot.relative_ce_percent == pytest.approx(100 * (1 + 4) / (1 + 3))  # clean errors 2 and 1
    assert contrast.relative_ce_percent == pytest.approx(100 * (2 + 6) / (2 + 4))
    assert found.relative_mce_percent == pytest.approx((125 + 400 / 3) / 2)
    assert found.mean_error.percent == pytest.approx(100 * 21 / 40)
    assert found.mean_error_difference.percent == pytest.approx(100 * (21 - 14) / 40)


def test_clean_error_has_wilsons_and_newcombes_interval():
    found = robustness(THIS, REFERENCE, ASKED)
    assert found.clean_error.percent == 20 and found.clean_error_difference.percent == 10
    assert (found.clean_error.low, found.clean_error.high) == pytest.approx((5.67, 50.98), abs=0.01)
    assert found.clean_error_difference.low < 10 < found.clean_error_difference.high


def test_the_reference_beside_itself_is_100_percent_and_surely():
    found = robustness(REFERENCE, REFERENCE, ASKED)
    assert found.mce.percent == found.mce.low == found.mce.high == pytest.approx(100)
    assert found.relative_mce_percent == pytest.approx(100)
    assert found.mean_error_difference.percent == found.mean_error_difference.high == 0


def test_ratios_to_a_reference_without_errors_are_unknown():
    perfect = answers(*[0] * 9)
    found = robustness(THIS, perfect, ASKED)
    assert found.mce is None and found.relative_mce_percent is None
    assert found.corruptions["contrast"].ce_percent is None
    assert found.mean_error.percent == pytest.approx(52.5)
    kept = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (
        kept["mce"] is kept["relative_mce_percent"] is kept["corruptions"]["contrast"]["ce_percent"] is None
    )


def test_all_right_and_all_wrong_are_not_sure():
    """Every draw is alike. Wilson's bounds of 0 and of 10 in 10: 10 / (10 / z^2 + 1) percent from the end."""
    right, wrong = (
        robustness(each, REFERENCE, ASKED) for each in (answers(*[0] * 9), answers(*[10] * 9, n=10))
    )
    bound = 100 / (1 + 10 / 1.959964**2)
    assert (right.mean_error.low, right.mean_error.high) == pytest.approx((0, bound))
    assert (wrong.mean_error.low, wrong.mean_error.high) == pytest.approx((100 - bound, 100))
    for part in ("occlusion", "shuffle"):
        area = right.curves[part].area
        assert (area.percent, area.low, area.high) == pytest.approx((100, 100 - bound, 100))
        area = wrong.curves[part].area
        assert (area.percent, area.low, area.high) == pytest.approx((0, 0, bound))


def test_areas_by_hand():
    """Occlusion: 80, 60 and 20 % at 0, 0.5 and 0.9; shuffle: 80 and 60 % at 1 and 4 cells."""
    found = robustness(THIS, REFERENCE, ASKED)
    occlusion = found.curves["occlusion"]
    assert occlusion.levels == [0, 0.5, 0.9] and occlusion.accuracy_percent == pytest.approx([80, 60, 20])
    assert occlusion.area.percent == pytest.approx((70 * 0.5 + 40 * 0.4) / 0.9)
    assert occlusion.area.low < occlusion.area.percent < occlusion.area.high
    assert found.curves["shuffle"].area.percent == pytest.approx(70)


def test_consistency_counts_the_same_class_and_not_the_right_one():
    found = robustness(THIS, REFERENCE, ASKED)
    steady = found.steady["shifts"]  # wrong: images 0 and 1 before, 0 to 4 after; 3 of 10 changed
    assert steady.consistency[0].percent == pytest.approx(70) and steady.mean == pytest.approx(70)
    assert steady.accuracy_percent == pytest.approx([50])
    assert list(found.steady) == ["shifts"]


def test_another_wrong_class_is_not_steady():
    classes = np.zeros((len(VIEWS), 4), int)
    classes[0], classes[-1] = [1, 1, 0, 0], [2, 1, 0, 1]  # of label 0: wrong twice, and 2 of 4 stay
    answered = Answers(VIEWS, classes, np.zeros(4, int))
    assert robustness(answered, answered, ASKED).steady["shifts"].mean == 50


def test_the_bootstrap_has_the_spread_of_the_mean():
    values = (np.arange(400) % 4 == 0).astype(float)[None]  # 25 %, standard error sqrt(.25 * .75 / 400)
    drawn = resampled(values, seed=0)
    assert drawn.mean() == pytest.approx(0.25, abs=0.003)
    assert drawn.std() == pytest.approx(np.sqrt(0.25 * 0.75 / 400), rel=0.1)
    assert np.array_equal(drawn, resampled(values, seed=0))
