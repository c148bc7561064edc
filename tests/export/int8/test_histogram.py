"""export.int8.histogram: exact extremes and counts, whatever comes in whatever order, in constant memory."""

import numpy as np
import pytest

from export.int8.histogram import BINS, Histogram


@pytest.fixture
def pooled():
    def pool(*parts):
        histogram = Histogram()
        for part in parts:
            histogram.update(np.asarray(part, np.float32))
        return histogram

    return pool


@pytest.mark.parametrize("sign", [(1, 1), (-1, 1), (-1, -1)], ids=["positive", "both", "negative"])
@pytest.mark.parametrize("growth", [1.0, 1.7, 300.0])
def test_counts_are_those_of_all_values_together(pooled, sign, growth):
    random = np.random.default_rng(0)
    parts = [
        (random.choice(sign, 70_001) * np.abs(random.normal(size=70_001)) * growth**i).astype(np.float32)
        for i in range(3)
    ]
    found, everything = pooled(*parts), np.concatenate(parts)
    assert (found.low, found.high) == (everything.min(), everything.max())
    magnitude = np.abs(everything).max()
    assert found.limit / 2 <= magnitude < found.limit, "at least half of the bins are within reach"
    expected, _ = np.histogram(everything.astype(np.float64), bins=found.edges)
    assert np.array_equal(found.counts, expected)


def test_a_value_is_in_its_bin_worked_out_by_hand(pooled):
    found = pooled([-3.0, -0.1, 0.0, 0.6, 3.9])  # below 4: the limit is 4, a bin is 4 / 8192 wide
    assert found.limit == 4.0
    assert sorted(np.flatnonzero(found.counts) - BINS) == [-6144, -205, 0, 1228, 7987]  # floor(x * 2048)


def test_counts_do_not_depend_on_the_order_or_size_of_batches(pooled):
    values = np.random.default_rng(1).standard_cauchy(5000).astype(np.float32)
    one, three, backwards = (
        pooled(values),
        pooled(*np.split(values, [100, 3000])),
        pooled(*np.split(values[::-1], 5)),
    )
    for other in (three, backwards):
        assert (other.low, other.high, other.limit) == (one.low, one.high, one.limit)
        assert np.array_equal(other.counts, one.counts)


def test_no_value_falls_out_where_float32_rounds(pooled):
    just_below = np.nextafter(np.float32(4.0), np.float32(0.0))
    for values in (
        [-1.0, just_below],
        [-just_below, 1.0],
        [-1e-45, 1e-45],
        [-3.4e38, 3.4e38],
        [2.0, -2.0],
        [just_below],
    ):
        found = pooled(values)
        assert found.counts.sum() == len(values) and found.counts.shape == (2 * BINS,)


def test_zeros_seen_before_anything_else_are_counted(pooled):
    found = pooled(np.zeros(70), np.full(30, 2.5))
    assert found.counts[BINS] == 70 and found.counts.sum() == 100 and found.low == 0.0


def test_a_dead_tensor_keeps_its_zeros_and_no_limit(pooled):
    found = pooled(np.zeros((2, 5)))
    assert (found.low, found.high, found.limit, found.counts[BINS]) == (0.0, 0.0, 0.0, 10)


def test_memory_does_not_grow_with_images_or_with_range(pooled):
    found = pooled(*(np.full(100, 1.5**i) for i in range(50)))
    assert found.counts.nbytes == 2 * BINS * 8 and found.counts.sum() == 5000


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_and_nothing_is_counted(bad):
    histogram = Histogram()
    with pytest.raises(FloatingPointError):
        histogram.update(np.array([1.0, bad, -1.0], np.float32))
    assert histogram.counts.sum() == 0 and histogram.limit == 0.0


def test_values_that_are_not_contiguous_are_all_counted(pooled):
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    histogram = Histogram()
    histogram.update(values.transpose(2, 0, 1)[::2])
    assert np.array_equal(histogram.counts, pooled(values[..., ::2]).counts)
