"""export.verify: a check that should fail, fails."""

import numpy as np
import onnx
import pytest

from export import graph, verify
from runtime.artifact import Metadata
from runtime.errors import GateError
from runtime.preprocess import Preprocess

META = Metadata(preprocess=Preprocess(input_size=(3, 4, 4)), class_names=["a", "b", "c"])


def artifact(body):
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 19]> g (float[batch, 3, 4, 4] images) => (float[batch, 3] logits) {{ {body} }}')
    return graph.write_metadata(model, META)


MEAN = "axes = Constant <value_ints = [2, 3]> ()  logits = ReduceMean <keepdims = 0> (images, axes)"
MIXES_THE_BATCH = ("axes = Constant <value_ints = [2, 3]> ()  m = ReduceMean <keepdims = 0> (images, axes)"
                   "first = Constant <value_ints = [0]> ()  b = ReduceMean (m, first)  logits = Sub (m, b)")


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(size=(20, 3, 4, 4)).astype(np.float32)


def test_equal_logits_pass_with_the_numbers():
    reference = np.array([[1.0, -20.0], [3.0, 2.0]], np.float32)
    found = verify.require_equal(reference, reference + np.float32(1e-3), 1e-4, "test")
    assert found.images == 2 and found.logit_scale == 20 and found.top1_agreement == 100
    assert found.max_abs == pytest.approx(1e-3, rel=0.01)  # within 1e-4 x 20


@pytest.mark.parametrize(("change", "said"), [
    (np.array([[0.0, 0.003]]), "allowed 0.002 = 0.0001 x logit scale 20"),
    (np.array([[0.0, np.nan]]), "not finite")])
def test_logits_further_apart_than_allowed_fail(change, said):
    reference = np.array([[1.0, -20.0]])
    with pytest.raises(GateError, match=said):
        verify.require_equal(reference, reference + change, 1e-4, "test")


def test_another_best_class_fails_however_close():
    with pytest.raises(GateError, match=r"same top-1 on 0\.00 % of 1 images"):
        verify.require_equal(np.array([[1.0, 1.00001]]), np.array([[1.00001, 1.0]]), 1e-3, "test")


def test_scale_is_at_least_1():
    reference = np.array([[0.001, 0.0]])
    assert verify.require_equal(reference, reference + 0.00005, 1e-4, "test").logit_scale == 1
    with pytest.raises(GateError):
        verify.require_equal(reference, reference + 0.0002, 1e-4, "test")


def test_parity_looks_at_every_batch_size(images, tmp_path):
    with verify.opened(artifact(MEAN), tmp_path / "mean.onnx") as predictor:
        found = verify.parity(predictor, images.mean((2, 3)), images, 1e-4)
        assert found["images"] == 20 and found["batch_sizes"] == [1, 2, 16] and found["max_abs"] < 1e-6
        with pytest.raises(GateError, match="ONNX against torch at batch 1"):
            verify.parity(predictor, images.mean((2, 3)) + 0.1, images, 1e-4)


def test_a_graph_that_mixes_images_of_a_batch_fails(images, tmp_path):
    with verify.opened(artifact(MIXES_THE_BATCH), tmp_path / "mixed.onnx") as predictor, \
            pytest.raises(GateError, match="another place or batch size"):
        verify.require_consistent(predictor, images, 0.05)


def test_accuracy_counts_what_was_counted_by_hand():
    fp32 = np.eye(3)[[0, 1, 2, 0]]
    int8 = np.eye(3)[[0, 1, 1, 1]] * 3
    found = verify.accuracy(fp32, int8, np.array([0, 1, 2, 1]))
    assert (found.images, found.fp32_top1, found.int8_top1, found.drop, found.agreement) == (4, 75.0, 75.0, 0.0, 50.0)
    assert found.max_abs == 3.0


def test_a_drop_above_the_budget_fails_and_says_what_to_try():
    found = verify.accuracy(np.eye(2)[[0, 1]], np.eye(2)[[0, 0]], np.array([0, 1]))
    verify.require_small_drop(found, 50.0)
    with pytest.raises(GateError, match=r"50\.00 points below fp32's 100\.00 % on 2 images; at most 49\.9 allowed"):
        verify.require_small_drop(found, 49.9)


def test_metadata_that_does_not_read_back_fails(tmp_path):
    verify.require_opens(artifact(MEAN), META, tmp_path)
    with pytest.raises(GateError, match="does not read back"):
        verify.require_opens(artifact(MEAN), Metadata(model="other"), tmp_path)
