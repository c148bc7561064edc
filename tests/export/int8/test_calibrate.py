"""export.int8.calibrate: statistics of every tensor, one pass, constant memory."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from export.int8 import calibrate as c
from export.int8.calibrate import calibrate, collect
from export.int8.histogram import BINS, Histogram
from export.int8.ranges import Range
from runtime.errors import GateError, UsageError

MODEL = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["" : 19]>
    agraph (float[batch, 1, 2, 2] images) => (float[batch, 1, 2, 2] logits) {
        doubled = Add(images, images)
        logits = Relu(doubled) }""")


def test_inner_tensors_inputs_and_outputs_are_observed_over_all_batches():
    batches = [np.full((2, 1, 2, 2), value, np.float32) for value in (-3.0, 1.0, 2.0)]
    found = collect(MODEL, ["images", "doubled", "logits"], batches)
    assert {name: (each.low, each.high) for name, each in found.items()} == {
        "images": (-3.0, 2.0),
        "doubled": (-6.0, 4.0),
        "logits": (0.0, 4.0),
    }
    assert {each.counts.sum() for each in found.values()} == {24}


@pytest.mark.parametrize("at_once", [1, 20, 10**9])
def test_every_image_is_seen_once_however_few_fit_into_memory(monkeypatch, at_once):
    monkeypatch.setattr(c, "VALUES_AT_ONCE", at_once)
    sizes, run = [], ort.InferenceSession.run

    def counted(session, names, given):
        sizes.append(len(given["images"]))
        return run(session, names, given)

    monkeypatch.setattr(ort.InferenceSession, "run", counted)
    images = np.random.default_rng(0).normal(size=(11, 1, 2, 2)).astype(np.float32)
    found = collect(MODEL, ["doubled"], [images[:7], images[7:]])["doubled"]
    whole = Histogram()
    whole.update(2 * images)
    assert np.array_equal(found.counts, whole.counts)
    assert sizes[0] == 1 and max(sizes) == {1: 1, 20: 2, 10**9: 6}[at_once]  # 8 values per image, 20 // 8 = 2


def test_calibrate_is_collect_and_the_method():
    batches = [np.full((1, 1, 2, 2), value, np.float32) for value in (-3.0, 1.0, 2.0)]
    found = calibrate(MODEL, ["images", "logits"], iter(batches), "minmax")
    assert found == {"images": Range(-3.0, 2.0), "logits": Range(0.0, 4.0)}
    assert calibrate(MODEL, ["logits"], iter(batches), "percentile", 60.0)["logits"].high == pytest.approx(
        2.0, abs=8 / BINS
    )


def test_a_tensor_with_nan_is_named():
    with pytest.raises(GateError, match="doubled"):
        calibrate(MODEL, ["images", "doubled"], [np.full((1, 1, 2, 2), 3e38, np.float32)], "minmax")


def test_no_images_are_refused():
    with pytest.raises(UsageError, match="--calib DIR"):
        collect(MODEL, ["doubled"], [])


def test_unknown_settings_are_refused_before_the_images_are_read():
    def never():
        raise AssertionError("an image was read")
        yield

    with pytest.raises(UsageError, match="minmax, percentile, entropy, mse"):
        calibrate(MODEL, ["doubled"], never(), "kl")
