"""export.int8.pipeline: choosing a method, the images behind it, and layers that go back to float, on a real
small student.
"""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.int8 import pipeline, quantize, ranges, weights
from export.options import Int8Options, check_int8
from runtime.errors import UsageError
from runtime.images import open_images

OPTIONS = Int8Options(calib_size=48, calib_cache="none")


@pytest.fixture(scope="module")
def calibration(preprocess):
    return pipeline.choose_calibration(
        OPTIONS, open_images("digits", "train"), preprocess, open_images("digits", "val"), seed=0
    )


def probabilities(logits):
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    return exponents / exponents.sum(1, keepdims=True)


class Fixed(pipeline.Quantizer):
    """A quantizer whose graph is the name of its method."""

    def __init__(self):
        super().__init__(None, "cpu", quantize.Rules(), "auto")

    def build(self, int8_layers=None):
        return None, self.method


def hits(right, confidence):
    """Logits of 100 images of class 0 with two classes: `right` of them right, with that margin."""
    return np.where(np.arange(100)[:, None] < right, [[confidence, 0.0]], [[0.0, confidence]])


def test_auto_takes_the_method_that_is_clearly_more_accurate_whatever_its_kl():
    logits = dict.fromkeys(ranges.METHODS, hits(50, 1.0)) | {"entropy": hits(90, 9.0)}
    quantizer, labels = Fixed(), np.zeros(100, np.int64)
    scores = pipeline.pick_method(quantizer, logits.__getitem__, hits(50, 1.0), labels)
    assert quantizer.method == "entropy"
    assert {score.method: score.top1 for score in scores} == dict.fromkeys(ranges.METHODS, 50.0) | {
        "entropy": 90.0
    }


def test_auto_tells_methods_of_equal_accuracy_apart_by_kl_from_fp32():
    reference = hits(90, 2.0)
    logits = dict.fromkeys(ranges.METHODS, hits(91, 9.0)) | {"mse": hits(90, 2.1)}  # one image fewer: luck
    quantizer = Fixed()
    scores = pipeline.pick_method(quantizer, logits.__getitem__, reference, np.zeros(100, np.int64))
    assert quantizer.method == "mse"
    p, q = probabilities(reference), probabilities(hits(90, 2.1))
    by_hand = float((p * np.log(p / q)).sum(1).mean())
    assert next(score.kl for score in scores if score.method == "mse") == pytest.approx(by_hand)


def test_calibration_images_and_judges_are_apart_and_named_with_hashes(calibration):
    assert len(calibration.used) == 48 and len(calibration.held_back) == 512
    assert not set(calibration.used) & set(calibration.held_back)
    record = calibration.record()
    images = open_images("digits", "train")
    assert [sha for _, sha in record["images"]] == [images.item_sha256(int(i)) for i in calibration.used]
    assert record["held_back"] == 512 and not record["not_for_accuracy"]


def test_noise_is_reproducible_and_marked(preprocess):
    noise = pipeline.choose_calibration(OPTIONS, None, preprocess, open_images("digits", "val"), seed=3)
    first, again = list(noise.batches()), list(noise.batches())
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True)) and first[0].shape == (
        4,
        3,
        32,
        32,
    )
    assert noise.record() == {"images": [], "data": "random", "not_for_accuracy": True, "seed": 3}


def test_images_that_are_evaluated_are_refused_as_judges_too(preprocess):
    digits = open_images("digits", "val")
    with pytest.raises(UsageError, match="also in --data"):
        pipeline.choose_calibration(
            dataclasses.replace(OPTIONS, calib_size=4), digits, preprocess, digits, seed=0
        )


@pytest.mark.parametrize(
    "rules",
    [
        quantize.Rules(),
        quantize.Rules(first=True),
        quantize.Rules(classifier=True),
        quantize.Rules(depthwise="int8"),
        quantize.Rules(depthwise="float"),
    ],
    ids=str,
)
@pytest.mark.parametrize("network", ["student", "conv_logits"])
def test_one_calibration_has_a_range_for_every_layer_that_goes_back_to_float(
    student_onnx, conv_logits, network, rules
):
    model = student_onnx if network == "student" else conv_logits
    known = set(pipeline.candidates(model, rules))
    for placement in quantize.PLACEMENTS:
        layers = quantize.plan(model, placement, rules).layers
        for left_out in layers if len(layers) > 1 else ():
            made = quantize.plan(model, placement, dataclasses.replace(rules, exclude=(left_out,)))
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
    quantizer = pipeline.Calibrated(student_onnx, placement, OPTIONS, calibration)
    every = quantizer.plan().layers
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
    quantizer = pipeline.Calibrated(
        student_onnx, "tensorrt", dataclasses.replace(OPTIONS, bias_correction=True), calibration
    )
    made, graph = quantizer.build()
    kept = [name for name in made.layers if name in biases_of(graph)][:3]
    own, every, some = (
        biases_of(model) for model in (student_onnx, graph, quantizer.build(frozenset(kept))[1])
    )
    assert len(calls) == 1 and len(kept) == 3 < len(every)
    for name in every:
        assert np.array_equal(some[name], every[name] if name in kept else own[name])
    assert not any(np.array_equal(every[name], own[name]) for name in kept)


def test_flags_become_rules():
    rules = pipeline.rules_of(
        Int8Options(depthwise="fp32", first_layer="float", last_layer="int8", exclude=("a*",))
    )
    assert (rules.depthwise, rules.first, rules.classifier, rules.exclude) == ("float", False, True, ("a*",))
    rules = pipeline.rules_of(Int8Options())
    assert (rules.depthwise, rules.first, rules.classifier) == (None, None, None)  # the placement decides


def test_the_cache_is_used_for_the_same_images_and_not_for_others(
    student_onnx, preprocess, tmp_path, monkeypatch
):
    options = dataclasses.replace(OPTIONS, calib_size=8, calib_cache=str(tmp_path))
    calls = []
    monkeypatch.setattr(
        pipeline, "collect", lambda *args, collect=pipeline.collect: calls.append(1) or collect(*args)
    )
    found = []
    for seed in (0, 0, 1):
        chosen = pipeline.choose_calibration(
            options, open_images("digits", "train"), preprocess, open_images("digits", "val"), seed
        )
        found.append(pipeline.Calibrated(student_onnx, "cpu", options, chosen)._range("images"))
    assert len(calls) == 2 and found[0] == found[1]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"calib_size": 0}, "--calib-size 0: expected 1 or more"),
        ({"max_drop": -1.0}, "--max-drop -1.0: expected 0 or more"),
        ({"max_drop": float("nan")}, "--max-drop nan: expected 0 or more"),
        ({"percentile": 50.0}, "--percentile 50.0: expected above 50"),
        ({"depthwise": "fp16"}, "Add --fp16"),
        ({"calib": "random", "calib_method": "auto"}, "no labels to choose a method"),
        ({"calib": "random", "calib_draws": 3}, "no labels to choose a method"),
    ],
)
def test_settings_that_cannot_be(settings, said):
    with pytest.raises(UsageError, match=said):
        check_int8(Int8Options(**settings), fp16=False)


def test_ranking_without_labelled_images_says_what_to_give(preprocess):
    noise = pipeline.Calibration(preprocess)
    with pytest.raises(UsageError, match="--calib DIR"):
        _ = pipeline._Judge(Fixed(), noise, SimpleNamespace(), json.dumps).labels
