"""export.int8.ranges: from a histogram to a range, four ways."""

import math

import numpy as np
import pytest

from export.int8 import quantize, ranges
from export.int8.histogram import Histogram
from export.int8.ranges import METHODS, Range, find
from runtime.errors import UsageError

SAMPLES = {
    "normal": lambda r: r.normal(size=200_000),
    "after a ReLU": lambda r: np.maximum(r.normal(size=200_000), 0),
    "after a SiLU": lambda r: (x := 3 * r.normal(size=200_000)) / (1 + np.exp(-x)),
    "heavy tails": lambda r: r.standard_t(3, size=200_000),
    "lopsided": lambda r: 1.5 - r.exponential(size=200_000),
    "never positive": lambda r: -r.exponential(size=200_000),
    "all above one": lambda r: 1 + r.random(200_000),
    "one huge outlier": lambda r: np.append(r.normal(size=200_000), 1e4),
    "hopeless outlier": lambda r: np.append(r.normal(size=1000), -1e30),
    "constant": lambda r: np.full(50, 5.0),
    "one value": lambda r: np.array([-0.3]),
    "two values": lambda r: np.repeat([0.0, 6.0], [900, 100]),
    "all zero": lambda r: np.zeros(50),
    "hardly anything": lambda r: np.append(np.zeros(1000), 1e-42),
}


@pytest.fixture
def seen():
    def seen(values):
        histogram = Histogram()
        histogram.update(np.asarray(values, np.float32))
        return histogram

    return seen


@pytest.fixture
def dense():
    """A histogram of 10**12 values with the distribution function given; no sampling noise."""

    def dense(upto, limit):
        histogram = Histogram()
        histogram.limit, histogram.low, histogram.high = limit, -limit, limit
        histogram.counts[:] = np.rint(np.diff([upto(edge) for edge in histogram.edges]) * 1e12)
        return histogram

    return dense


@pytest.fixture
def squared_error():
    """Mean squared error on the values themselves, through quantize.activation_scale as in the file that is
    written.
    """

    def squared_error(values, range_, unsigned):
        scale, zero = quantize.activation_scale(range_, 1e-9, unsigned)
        first, last = (0, 255) if unsigned else (-127, 127)
        codes = np.clip(np.rint(values / float(scale)) + int(zero), first, last)
        return np.mean((values - (codes - int(zero)) * float(scale)) ** 2)

    return squared_error


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", SAMPLES)
def test_a_range_is_inside_what_was_seen_and_holds_most_of_it(seen, kind, method, unsigned):
    values = SAMPLES[kind](np.random.default_rng(0)).astype(np.float32)
    found = find(seen(values), method, 99.99, unsigned)
    assert values.min() <= found.low <= found.high <= values.max()
    assert {type(found.low), type(found.high)} == {float}
    if values.min() >= 0:
        assert found.low == values.min()
    if kind not in ("hopeless outlier", "one huge outlier", "hardly anything"):
        slack = 0.01 * max(-found.low, found.high)
        inside = np.mean((values >= found.low - slack) & (values <= found.high + slack))
        assert inside > 0.99, "a range too narrow for most values would be of no use"


def test_minmax_is_the_extremes(seen):
    assert find(seen([1, -2, 5, 0]), "minmax") == Range(-2.0, 5.0)


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 100.0])
def test_percentile_equals_numpy_within_a_bin(seen, percentile):
    values = np.random.default_rng(0).normal(size=40_010).astype(np.float32)
    histogram = seen(values)
    found = find(histogram, "percentile", percentile)
    expected = np.percentile(
        np.abs(values), percentile, method="inverted_cdf"
    )  # a value that occurs, not one between two
    assert max(-found.low, found.high) == pytest.approx(expected, abs=histogram.edges[1] - histogram.edges[0])


def test_percentile_counts_zeros(seen):
    assert find(seen([0.0] * 70 + [1.0] * 30), "percentile", 60.0).high == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize(
    ("upto", "limit", "published"),
    [
        (lambda x: (1 + math.erf(x / math.sqrt(2))) / 2, 16.0, 3.92),
        (lambda x: (math.exp(x) if x < 0 else 2 - math.exp(-x)) / 2, 32.0, 9.90),
    ],
    ids=["normal", "Laplace"],
)
def test_mse_finds_the_published_optimum(dense, upto, limit, published):
    """Clipping for 8 bits in units of the standard deviation and of b: Banner et al. 2019, arXiv:1810.05723,
    section 3.
    """
    assert find(dense(upto, limit), "mse").high == pytest.approx(published, rel=0.015)


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize(
    "kind", ["normal", "after a ReLU", "after a SiLU", "heavy tails", "lopsided", "one huge outlier"]
)
def test_mse_is_as_good_as_trying_ranges_on_the_values(seen, squared_error, kind, unsigned):
    values = SAMPLES[kind](np.random.default_rng(1))[-20_000:].astype(np.float32).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    tried = [
        Range(max(low, -a), min(high, b))
        for a in np.geomspace(0.5, 30, 16)
        for b in np.geomspace(0.5, 30, 16)
    ]
    best = min(squared_error(values, range_, unsigned) for range_ in tried)
    assert squared_error(values, find(seen(values), "mse", unsigned=unsigned), unsigned) < 1.03 * best


def test_entropy_is_the_smallest_divergence_of_all_candidates(dense):
    """Brute force: every bin cut into 16 parts, each part given to its nearest code, summed one by one."""
    histogram = dense(lambda x: (math.exp(x) if x < 0 else 2 - math.exp(-x)) / 2, 16.0)
    counts, parts = ranges.smoothed(histogram.counts.reshape(-1, ranges.MERGED).sum(1)), 16
    density = np.repeat(counts / counts.sum() / parts, parts)
    centers = (np.arange(len(density)) + 0.5) * (32.0 / len(density)) - 16.0

    def divergence(threshold):
        codes = np.rint(centers / (threshold / 127)).astype(int)
        inside = np.flatnonzero(np.abs(codes) <= 127)
        places, was = codes[inside] + 127, density[inside].copy()
        kept = (np.bincount(places, was, 255) / np.bincount(places, minlength=255) / was.sum())[places]
        for last in (inside[0], inside[-1]):
            cut = density[:last].sum() if last == inside[0] else density[last + 1 :].sum()
            was[inside // parts == last // parts] += cut / np.sum(inside // parts == last // parts)
        return np.sum(was * np.log(was / kept))

    tried = np.linspace(3, 16, 60)
    losses = [divergence(threshold) for threshold in tried]
    assert 4 < tried[np.argmin(losses)] < 15.5, "otherwise nothing is shown"
    found = find(histogram, "entropy").high
    assert found == pytest.approx(tried[np.argmin(losses)], rel=0.05)
    assert divergence(found) <= min(losses) * 1.03


def test_zeros_behind_a_relu_do_not_draw_the_entropy_range(seen):
    values = np.abs(np.random.default_rng(0).normal(size=100_000))
    without = find(seen(values), "entropy").high
    assert find(seen(np.append(values, np.zeros(300_000))), "entropy").high == pytest.approx(
        without, rel=0.05
    )
    assert without > 3


@pytest.mark.parametrize("unsigned", [False, True])
def test_channels_that_hardly_move_do_not_draw_the_entropy_range(seen, unsigned):
    """MobileNetV2's late layers: a third of the values sits on a few dozen numbers; without care the range
    falls to a half.
    """
    random = np.random.default_rng(0)
    values = np.minimum(np.abs(random.normal(size=200_000)) * 1.5, 6)
    still = np.repeat(random.uniform(0, 2, 40), 2500)
    assert find(seen(np.append(values, still)), "entropy", unsigned=unsigned).high > 4.5


def test_entropy_cuts_a_long_thin_tail_and_keeps_an_even_density(seen):
    random = np.random.default_rng(0)
    tail = np.append(random.normal(size=1_000_000), random.uniform(-40, 40, 20))
    assert 3.5 < find(seen(tail), "entropy").high < 20
    assert find(seen(random.uniform(-1, 1, 100_000)), "entropy").high > 0.98


def test_entropy_cuts_a_lone_outlier_and_keeps_a_far_group(seen):
    values = np.random.default_rng(0).normal(size=200_000)
    assert find(seen(np.append(values, 15.0)), "entropy").high < 8
    assert find(seen(np.append(values, np.full(400, 15.0))), "entropy").high > 14.5


def test_mse_cuts_the_low_end_by_itself_where_the_high_end_is_needed(seen, squared_error):
    values = np.append(np.random.default_rng(0).uniform(-1, 30, 1_000_000), -25.0)
    found = find(seen(values), "mse", unsigned=True)
    assert -8 < found.low <= -0.9 and found.high > 29
    assert squared_error(values, found, True) < 0.6 * squared_error(values, Range(-25.0, 30.0), True)


def test_a_huge_outlier_does_not_cost_the_others_their_codes(seen):
    values = np.append(np.random.default_rng(0).normal(size=1_000_000), 300.0)
    for method in ("percentile", "entropy", "mse"):
        assert find(seen(values), method, 99.99).high < 60, method


@pytest.mark.parametrize("unsigned", [False, True])
def test_candidates_are_cut_into_the_codes_that_are_written(unsigned):
    for range_ in (Range(-2.5, 1.0), Range(0.0, 6.0), Range(-0.28, 9.0), Range(2.0, 3.0), Range(-3.0, -1.0)):
        scale, zero = quantize.activation_scale(range_, 1e-9, unsigned)
        held = (np.arange(0, 256) if unsigned else np.arange(-127, 128)) - int(zero)
        codes, borders = ranges.cells(Range(*map(np.atleast_1d, range_)), unsigned)
        assert codes[0] == pytest.approx(held * float(scale))
        assert borders[0] == pytest.approx((codes[0, 1:] + codes[0, :-1]) / 2)


@pytest.mark.parametrize(
    ("method", "percentile", "said"),
    [
        ("kl", 99.9, "minmax, percentile, entropy, mse"),
        ("percentile", 0.9999, "above 50"),
        ("percentile", 101, "at most 100"),
    ],
)
def test_unknown_settings_are_refused(seen, method, percentile, said):
    with pytest.raises(UsageError, match=said):
        find(seen([1.0]), method, percentile)
