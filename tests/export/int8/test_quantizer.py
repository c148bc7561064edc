"""export.int8.quantizer: one calibration for every choice of layers and every method, on a real small
student."""

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.int8 import images, quantize, weights
from export.int8 import quantizer as quantizers
from export.options import Int8Options
from runtime.images import open_images

OPTIONS = Int8Options(calib_size=48, calib_cache="none")


@pytest.fixture(scope="module")
def calibration(preprocess):
    return images.choose(
        OPTIONS, open_images("digits", "train"), preprocess, open_images("digits", "val"), seed=0
    )


@pytest.mark.parametrize(
    "rules",
    [
        quantize.Rules(),
        quantize.Rules(first=True),
        quantize.Rules(classifier=True),
        quantize.Rules(depthwise="int8"),
        quantize.Rules(depthwise="float", first=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("network", ["student", "conv_logits"])
def test_one_calibration_has_a_range_for_every_layer_that_goes_back_to_float(
    student_onnx, conv_logits, network, rules
):
    model = student_onnx if network == "student" else conv_logits
    known = set(quantizers.candidates(model, rules))
    for placement in quantize.PLACEMENTS:
        layers = quantize.lay_out(model, placement, rules).layers
        for left_out in layers if len(layers) > 1 else ():
            made = quantize.lay_out(model, placement, dataclasses.replace(rules, exclude=(left_out,)))
            assert set(made.tensors) <= known


@pytest.fixture(scope="module")
def conv_logits():
    """A HardSwish behind a small stem that moves by two pixels, a depthwise layer, and a convolution that
    makes the logits.
    """
    made = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 20]> g (float[batch, 3, 8, 8] images) =>
        (float[batch, 5] logits) { a = Conv <strides = [2,2], pads = [1,1,1,1]> (images, wa) h = HardSwish (a)
        d = Conv <group = 16, pads = [1,1,1,1]> (h, wd) p = GlobalAveragePool (d)
        c = Conv (p, wc) logits = Flatten (c) }"""
    )
    dice = np.random.default_rng(0)
    for name, shape in {"wa": (16, 3, 3, 3), "wd": (16, 1, 3, 3), "wc": (5, 16, 1, 1)}.items():
        made.graph.initializer.append(
            numpy_helper.from_array(dice.normal(size=shape).astype(np.float32), name)
        )
    for node in made.graph.node:
        node.name = node.output[0]
    return made


@pytest.mark.parametrize("placement", quantize.PLACEMENTS)
def test_only_the_layers_asked_for_are_quantized(student_onnx, calibration, placement):
    quantizer = quantizers.Calibrated(student_onnx, placement, OPTIONS, calibration)
    every = quantizer.layout().layers
    made, graph = quantizer.build(frozenset(every[:3]))
    assert made.layers == every[:3]
    int8_weights = [t for t in graph.graph.initializer if t.data_type == 3 and len(t.dims) > 1]
    assert len(int8_weights) == 3


def biases_of(model):
    """{layer: its bias in the graph} of every Conv."""
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return {node.name: values[node.input[2]] for node in model.graph.node if node.op_type == "Conv"}


def test_biases_are_measured_once_and_corrected_only_where_the_layer_is_int8(
    student_onnx, calibration, monkeypatch
):
    calls = []
    monkeypatch.setattr(
        weights, "prepare", lambda *args, prepare=weights.prepare: calls.append(1) or prepare(*args)
    )
    quantizer = quantizers.Calibrated(
        student_onnx, "tensorrt", dataclasses.replace(OPTIONS, bias_correction=True), calibration
    )
    made, graph = quantizer.build()
    kept = [name for name in made.layers if name in biases_of(graph)][:3]
    own, every, some = (
        biases_of(model) for model in (student_onnx, graph, quantizer.build(frozenset(kept))[1])
    )
    quantizer.by("minmax").build()
    assert len(calls) == 1 and len(kept) == 3 < len(every)
    for name in every:
        assert np.array_equal(some[name], every[name] if name in kept else own[name])
    assert not any(np.array_equal(every[name], own[name]) for name in kept)


def test_the_cache_is_used_for_the_same_images_and_not_for_others(
    student_onnx, preprocess, tmp_path, monkeypatch
):
    options = dataclasses.replace(OPTIONS, calib_size=8, calib_cache=str(tmp_path))
    calls = []
    monkeypatch.setattr(
        quantizers, "collect", lambda *args, collect=quantizers.collect: calls.append(1) or collect(*args)
    )
    found = []
    for seed in (0, 0, 1):
        chosen = images.choose(
            options, open_images("digits", "train"), preprocess, open_images("digits", "val"), seed
        )
        found.append(quantizers.Calibrated(student_onnx, "cpu", options, chosen)._range("images"))
    assert len(calls) == 2 and found[0] == found[1]
