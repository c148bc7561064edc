"""Intervals against published values, and against what any interval of this kind must do."""

import statistics

import pytest

from runtime.intervals import Z, median_interval, newcombe, wilson


def test_the_quantile_is_that_of_the_normal_distribution():
    assert pytest.approx(statistics.NormalDist().inv_cdf(0.975), abs=1e-12) == Z


def test_the_interval_of_a_share_is_wilsons():
    """Newcombe 1998 (single proportions): 81 of 263 gives 0.2553 to 0.3662; none of 20 gives 0 to 0.1611."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)


def test_the_interval_for_pairs_is_newcombes():
    """Newcombe 1998 (paired), table II, method 10: 36, 12, 2, 0 gives 0.0569 to 0.3404."""
    assert newcombe(36, 12, 2, 50) == pytest.approx((0.0569, 0.3404), abs=1e-4)


def test_exchanging_the_two_turns_the_interval_around():
    low, high = newcombe(30, 9, 4, 55)
    assert newcombe(30, 4, 9, 55) == pytest.approx((-high, -low))


@pytest.mark.parametrize("both", [0, 50])
def test_the_same_answers_cannot_tell(both):
    low, high = newcombe(both, 0, 0, 50)
    assert low < 0 < high


@pytest.mark.parametrize(("n", "low", "high"), [(5, None, None), (6, 1, 6), (12, 3, 10), (30, 10, 21)])
def test_the_interval_of_a_median_is_that_of_the_tables(n, low, high):
    """Order statistics of the sign test at 95 %, as printed in statistical tables."""
    assert median_interval(range(n, 0, -1)) == (low, high)
