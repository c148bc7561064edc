"""Engines that quantize half wrongly: found by what they compute, and not the judge of a network."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.fp16 import cast, engine, overflow
from export.graph import from_torch, run
from export.graph.read import read_onnx
from export.int8 import quantize
from export.int8.calibrate import calibrate
from export.trt import check
from runtime.artifact import Metadata
from runtime.images import open_images


def quantized_by_this_engine(x, scale):
    nodes = [helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "many",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [len(x)])],
        [helper.make_tensor_value_info("y", TensorProto.INT8, [len(x)])],
        [numpy_helper.from_array(scale, "scale"), numpy_helper.from_array(np.int8(0), "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return run.session(model).run(None, {"x": x})[0]


def test_the_engine_is_known_by_what_it_does_to_thousands_of_halves():
    random, scale = np.random.default_rng(0), np.float16(0.0123)
    x = (random.normal(size=5000) * 50 * float(scale)).astype(np.float16)
    steps = x.astype(np.float64) / float(scale)  # exact: both have eleven bits
    nearest, cut = (np.clip(kind(steps), -128, 127) for kind in (np.rint, np.trunc))
    assert (nearest != cut).mean() > 0.4
    found = quantized_by_this_engine(x, scale)
    assert np.array_equal(found, cut if engine.drops_fractions() else nearest)


def test_the_version_says_the_same_as_the_probe():
    """Upstream mended it in 1.30; where a build differs from that, `sentence` has to change."""
    version = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    assert engine.drops_fractions() == (version < (1, 30))


@pytest.fixture(scope="module")
def digits(preprocess):
    images = open_images("digits", "val")
    return preprocess.batch(images.image(i) for i in range(200)), images.labels[:200]


@pytest.fixture(scope="module")
def graphs(student_onnx, digits):
    """fp32, int8 and int8+fp16 of the student."""
    layout = quantize.lay_out(student_onnx, "tensorrt")
    int8 = quantize.quantize(
        student_onnx, layout, calibrate(student_onnx, layout.tensors, [digits[0]], "minmax")
    )
    return student_onnx, int8, overflow.convert(int8, lambda *_: iter([digits[0]]))[0]


def logits(model, x):
    session = run.session(model)
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def test_fp16_adds_little_to_what_int8_loses_whatever_engine_judges(graphs, digits):
    fp32, int8, both = graphs
    x, labels = digits
    right = logits(fp32, x)
    error = {
        name: logits(model, x) - right for name, model in (("int8", int8), ("both", engine.judged(both)))
    }
    size = {name: float(np.sqrt((difference**2).mean())) for name, difference in error.items()}
    assert size["both"] < 1.5 * size["int8"]
    assert ((right + error["both"]).argmax(1) == right.argmax(1)).mean() >= 0.99
    assert ((right + error["both"]).argmax(1) == labels).mean() >= 0.97


@pytest.mark.parametrize("drops", [False, True])
def test_only_graphs_that_quantize_half_are_judged_by_a_copy(graphs, monkeypatch, drops):
    monkeypatch.setattr(engine, "drops_fractions", lambda: drops)
    fp32, int8, both = graphs
    half = cast.to_half(fp32)
    assert all(engine.judged(model) is model for model in (fp32, int8, half))
    found = engine.judged(both)
    if drops:
        assert found.SerializeToString(deterministic=True) == cast.rounded(both).SerializeToString(
            deterministic=True
        )
        assert not engine.quantizes_half(found)
    else:
        assert found is both


@pytest.mark.parametrize("drops", [False, True])
def test_a_plan_is_compared_with_what_the_graph_says(
    graphs, digits, preprocess, tmp_path, monkeypatch, drops
):
    monkeypatch.setattr(engine, "drops_fractions", lambda: drops)
    names = [str(i) for i in range(10)]
    meta = Metadata(model="resnet20", precision="int8+fp16", preprocess=preprocess, class_names=names)
    path = tmp_path / "both.onnx"
    path.write_bytes(from_torch.write_metadata(graphs[2], meta))
    with check.reference_of(path, meta) as reference:
        opened, found = read_onnx(reference.path), reference.logits(digits[0][:16])
    assert engine.quantizes_half(opened) == (not drops) and (reference.path == path) == (not drops)
    expected = logits(cast.rounded(graphs[2]) if drops else graphs[2], digits[0][:16])
    assert np.abs(found - expected).max() < 0.5  # of 8; other thread counts move single steps
