"""Percentiles, throughput and the summary, against values worked out by hand."""

import numpy as np
import pytest

from bench import stats
from runtime import UsageError


@pytest.mark.parametrize(
    ("percent", "expected"),
    [
        (90, 90),  # index 100 - 1 - 10 = 89, the 90th smallest of 1..100
        (95, 95),
        (99, 99),  # one sample is above it
        (99.9, 100),  # int(0.1) samples above: the largest
        (100, 100),
        (0, 1),  # index max(100 - 1 - 100, 0)
        (50, 50.5),  # the mean of the two middle ones
    ],
)
def test_percentile_follows_trtexecs_index_rule(percent, expected):
    samples = np.random.default_rng(0).permutation(np.arange(1, 101))
    assert stats.percentile(samples, percent) == expected


def test_percentile_of_three_samples_is_one_of_them():
    # above them: int(0.5 * 3) = 1, int(0.34 * 3) = 1, int(0.33 * 3) = 0, int(0.1 * 3) = 0
    assert [stats.percentile([10, 30, 20], p) for p in (50, 66, 67, 90)] == [20, 20, 30, 30]


def test_percentile_of_one_sample_is_that_sample():
    assert [stats.percentile([7], p) for p in (0, 50, 99)] == [7, 7, 7]


def test_percentile_without_samples_is_an_error():
    with pytest.raises(ValueError, match="no samples"):
        stats.percentile([], 50)


def test_throughput_is_all_images_over_all_seconds():
    # one call of 1 ms and one of 9 ms, 4 images each: 8 images in 10 ms. The mean of the two rates would be
    # 2222
    assert stats.summarize(np.array([1_000_000, 9_000_000]), 4, ()).to_dict()[
        "throughput_images_per_s"
    ] == pytest.approx(800)


def test_summary_keeps_the_slowest_call_and_says_n():
    found = stats.summarize(np.array([1_000_000] * 99 + [500_000_000]), 1, (50, 99)).to_dict()
    assert found["n"] == 100
    assert (found["latency_p50_ms"], found["latency_p99_ms"], found["latency_max_ms"]) == (1.0, 1.0, 500.0)
    assert found["latency_mean_ms"] == pytest.approx((99 + 500) / 100)
    assert found["latency_min_ms"] == 1.0
    assert found["latency_std_ms"] == pytest.approx((99 * (1 - 5.99) ** 2 + (500 - 5.99) ** 2) ** 0.5 / 10)


def test_percentiles_are_read_from_a_list_with_commas():
    assert stats.parse_percentiles("50,99.9") == (50.0, 99.9)
    assert [stats.percentile_key(p) for p in (50.0, 99.9)] == ["latency_p50_ms", "latency_p99.9_ms"]


@pytest.mark.parametrize("text", ["", "50,", "p50", "101", "-1", "nan", "50 90"])
def test_percentiles_out_of_range_or_unreadable_are_refused(text):
    with pytest.raises(UsageError, match="from 0 to 100"):
        stats.parse_percentiles(text)
