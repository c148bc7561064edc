"""export.calibrate: a range per tensor, in constant memory."""

import numpy as np
import onnx
import pytest

from export.calibrate import BINS, MinMax, Percentile, Range, calibrate
from runtime.errors import GateError, UsageError

MODEL = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["" : 19]>
    agraph (float[batch, 1, 2, 2] images) => (float[batch, 1, 2, 2] logits) {
        doubled = Add(images, images)
        logits = Relu(doubled) }""")


def pooled(observer, parts):
    for part in parts:
        observer.update(np.asarray(part, np.float32))
    return observer.range()


def test_minmax_is_the_extremes_of_everything_seen():
    assert pooled(MinMax(), [[1, -2], [5, 0], [3, 3]]) == Range(-2.0, 5.0)


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 100.0])
@pytest.mark.parametrize("growth", [1.0, 1.7, 30.0])
def test_percentile_equals_numpy_on_the_pooled_values_within_a_bin(percentile, growth):
    random = np.random.default_rng(0)
    parts = [random.normal(size=4001).astype(np.float32) * growth**i for i in range(4)]
    everything = np.abs(np.concatenate(parts))
    found = pooled(Percentile(percentile), parts)
    widest_bin = float(everything.max()) * 2 / BINS
    expected = np.percentile(everything, percentile, method="inverted_cdf")  # a value that occurs, not one between two
    assert max(-found.low, found.high) == pytest.approx(expected, abs=widest_bin)


def test_percentile_range_stays_inside_the_values_seen():
    found = pooled(Percentile(99.99), [np.linspace(0, 1, 1000)])  # after a ReLU: nothing is negative
    assert found.low == 0.0 and 0.99 < found.high <= 1.0


def test_percentile_counts_zeros_seen_before_anything_else():
    found = pooled(Percentile(60.0), [np.zeros(70), np.ones(30)])  # 70 of 100 values are 0: the 60th percentile is 0
    assert found.high == pytest.approx(0.0, abs=1 / BINS)


def test_memory_of_a_percentile_does_not_grow_with_images_or_with_range():
    observer = Percentile(99.9)
    for i in range(50):
        observer.update(np.full(100, 1.5**i, np.float32))
    assert observer.counts.shape == (BINS,) and observer.counts.sum() == 5000


def test_dead_tensor_has_an_empty_range():
    assert pooled(Percentile(99.9), [np.zeros(10)]) == Range(0.0, 0.0)


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_inner_tensors_inputs_and_outputs_are_observed_over_all_batches(method):
    batches = [np.full((1, 1, 2, 2), value, np.float32) for value in (-3.0, 1.0, 2.0)]
    found = calibrate(MODEL, ["images", "doubled", "logits"], batches, method, percentile=100.0)
    assert found["images"] == pytest.approx(Range(-3.0, 2.0))
    assert found["doubled"] == pytest.approx(Range(-6.0, 4.0))
    assert found["logits"] == pytest.approx(Range(0.0, 4.0))


def test_a_tensor_with_nan_is_named():
    with pytest.raises(GateError, match="doubled"):
        calibrate(MODEL, ["doubled"], [np.full((1, 1, 2, 2), np.nan, np.float32)], "minmax")


@pytest.mark.parametrize(("method", "percentile", "said"), [
    ("entropy", 99.9, "minmax, percentile"), ("percentile", 0.9999, "above 50")])
def test_unknown_settings_are_refused(method, percentile, said):
    with pytest.raises(UsageError, match=said):
        calibrate(MODEL, ["doubled"], [], method, percentile)
