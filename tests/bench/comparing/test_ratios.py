"""Ratios whose answer is known: by arithmetic, by theory, by what a drift is."""

import numpy as np
import pytest
from scipy import stats

from bench.comparing import ratios
from bench.comparing.ratios import Ratio, verdict


def blocks(count=40, calls=10, spread=0.05, seed=0):
    return 1e6 * np.exp(np.random.default_rng(seed).normal(0, spread, (count, calls)))


def test_an_exact_multiple_has_an_exact_ratio():
    calls = blocks()
    for ratio, expected in (
        (ratios.of_medians(1.25 * calls, calls), 1.25),
        (ratios.of_throughputs(1.25 * calls, calls), 0.8),
    ):
        assert (ratio.value, ratio.low, ratio.high) == pytest.approx((expected,) * 3)


def test_the_interval_of_a_throughput_is_that_of_the_theory():
    """For means of independent calls the log ratio's deviation is spread * sqrt(2 / n)."""
    this, reference = blocks(400, 5, spread=0.1, seed=1), blocks(400, 5, spread=0.1, seed=2)
    found = ratios.of_throughputs(this, reference)
    expected = stats.t.ppf(0.975, 399) * 0.1 * np.sqrt(2 / 2000)
    assert np.log(found.high / found.low) / 2 == pytest.approx(expected, rel=0.15)


def test_a_drift_common_to_both_changes_nothing():
    this, reference = blocks(seed=3), 0.9 * blocks(seed=4)
    drift = np.exp(np.linspace(0, 2, 40))[:, None]
    calm, drifting = ratios.of_medians(this, reference), ratios.of_medians(drift * this, drift * reference)
    assert (drifting.value, drifting.low, drifting.high) == pytest.approx((calm.value, calm.low, calm.high))


@pytest.mark.parametrize("calls", [4, 5])
def test_a_resample_is_measured_as_if_its_blocks_had_been_copied(calls):
    durations = blocks(30, calls, seed=7)
    drawn = np.random.default_rng(8).integers(0, 30, (50, 30))
    counts = np.array([np.bincount(one, minlength=30) for one in drawn])
    copied = durations[drawn].reshape(50, -1)
    for measure, expected in (
        (ratios._medians, np.median(copied, axis=1)),
        (ratios._p99s, np.quantile(copied, 0.99, axis=1, method="higher")),
        (ratios._totals, copied.sum(axis=1)),
    ):
        np.testing.assert_allclose(measure(durations, counts), expected, rtol=1e-12)


def test_calls_of_one_block_count_as_one_when_they_are_alike():
    """Ten copies of one call say no more than one."""
    this, reference = blocks(calls=1, seed=5), blocks(calls=1, seed=6)
    once = ratios.of_throughputs(this, reference)
    repeated = ratios.of_throughputs(this.repeat(10, axis=1), reference.repeat(10, axis=1))
    assert (repeated.low, repeated.high) == pytest.approx((once.low, once.high))


def test_too_few_blocks_or_rare_calls_give_no_interval():
    assert ratios.of_medians(blocks(19), blocks(19)) is None
    assert ratios.of_p99(blocks(100, 19), blocks(100, 19)) is None
    assert ratios.of_p99(2 * blocks(100, 20), blocks(100, 20)).value == pytest.approx(2)


def test_contestants_may_take_different_numbers_of_calls():
    """A slow one takes fewer calls in a turn; images per second are per call all the same."""
    this, reference = blocks(calls=2, spread=0), blocks(calls=20, spread=0)
    assert ratios.of_throughputs(4 * this, reference).value == pytest.approx(0.25)
    assert ratios.of_medians(4 * this, reference).value == pytest.approx(4)


@pytest.mark.parametrize(
    ("ratio", "floor", "expected"),
    [
        (Ratio(0.9, 0.88, 0.92), ratios.SAME, "faster"),
        (Ratio(1.1, 1.08, 1.12), ratios.SAME, "slower"),
        (Ratio(0.99, 0.97, 1.01), ratios.SAME, "cannot tell"),
        (Ratio(0.97, 0.96, 0.98), Ratio(1.03, 1.02, 1.04), "cannot tell"),  # the floor either way
        (Ratio(0.97, 0.96, 0.98), Ratio(0.98, 0.97, 0.99), "cannot tell"),
        (Ratio(0.9, 0.88, 0.92), Ratio(1.03, 1.02, 1.04), "faster"),
        (Ratio(1.1, 1.08, 1.12), Ratio(0.96, 0.95, 0.97), "slower"),
    ],
)
def test_the_verdict(ratio, floor, expected):
    assert verdict(ratio, floor) == expected


@pytest.mark.parametrize("freedom", [19, 25, 40, 1000])
def test_the_quantile_of_students_t(freedom):
    for level in (0.9, 0.95, 0.99):
        assert ratios.t_quantile(freedom, level) == pytest.approx(
            stats.t.ppf((1 + level) / 2, freedom), abs=1e-3
        )


def test_the_precision_is_half_the_width():
    assert Ratio(1.0, 1 / 1.02, 1.02).precision == pytest.approx(0.02)
