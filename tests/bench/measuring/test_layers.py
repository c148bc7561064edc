"""Where the time goes: profiles made to order, and those of the engines for a network known by hand."""

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bench import __main__ as cli
from bench.measuring import layers
from bench.measuring.layers import Ran
from runtime.backends.onnx_layers import Weighted, weighted_layers

pytestmark = pytest.mark.filterwarnings("ignore:.*carries no:UserWarning")


@pytest.fixture
def network(tmp_path):
    """A convolution 3x3, a depthwise one 5x5 and a Gemm, with names, on 16x16 pixels."""
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 19]>'
        " g (float[batch, 3, 16, 16] image) => (float[batch, 4] logits)"
        " { a = Conv <pads = [1,1,1,1]> (image, first)"
        " b = Conv <group = 16, pads = [2,2,2,2]> (a, second)"
        " c = GlobalAveragePool (b) d = Flatten (c) logits = Gemm <transB = 1> (d, third) }"
    )
    names = iter(("stem", "mixer.dw", "", "", "head"))
    for node in model.graph.node:
        node.name = next(names)
    for name, shape in (("first", (16, 3, 3, 3)), ("second", (16, 1, 5, 5)), ("third", (4, 16))):
        model.graph.initializer.append(numpy_helper.from_array(np.full(shape, 0.1, np.float32), name))
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    return path


def test_layers_of_a_file_are_those_with_weights(network):
    assert weighted_layers(network) == {
        "stem": Weighted("Conv", (16, 3, 3, 3)),
        "mixer.dw": Weighted("Conv", (16, 1, 5, 5), group=16),
        "head": Weighted("Gemm", (4, 16), is_transposed=True),
    }


def test_weights_are_found_behind_their_scales(tmp_path):
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 19]> g (float[1, 3, 8, 8] x) => (float[1, 2, 8, 8] y)'
        " { w = DequantizeLinear (q, s)  y = Conv (x, w) }"
    )
    model.graph.node[1].name = "conv"
    model.graph.initializer.append(numpy_helper.from_array(np.ones((2, 3, 1, 1), np.int8), "q"))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "s"))
    onnx.save(model, tmp_path / "q.onnx")
    assert weighted_layers(tmp_path / "q.onnx") == {"conv": Weighted("Conv", (2, 3, 1, 1))}


def test_groups_of_a_profile_by_hand():
    known = {"a": Weighted("Conv", (8, 3, 3, 3)), "a.b": Weighted("Conv", (8, 1, 7, 7), group=8)}
    one_call = [
        Ran("a_token_1", "QLinearConv", 0.002, 8 * 100),
        Ran("a.b/WithoutBiases", "Convolution", 0.005, 8 * 100),
        Ran("a_QuantizeLinear", "QuantizeLinear", 0.001, 300),
        Ran("relu_nchwc", "FusedConv", 0.002, 800, (8, 3, 3, 3), (1, 3, 10, 10)),
    ]
    depthwise, conv, moved = layers.grouped(one_call * 2, known, calls=2)
    assert (depthwise.kind, depthwise.layers, depthwise.macs) == ("depthwise Conv 7x7", 1, 8 * 100 * 49)
    assert (conv.kind, conv.layers, conv.macs) == ("Conv 3x3", 2, 2 * 8 * 100 * 27)
    assert (moved.kind, moved.macs) == ("QuantizeLinear", None)
    assert [group.ms for group in (depthwise, conv, moved)] == pytest.approx([5, 4, 1])
    assert [group.share_percent for group in (depthwise, conv, moved)] == pytest.approx([50, 40, 10])
    assert depthwise.line.startswith("50 % depthwise Conv 7x7: 5 ms in 1 layers")


@pytest.mark.parametrize(
    ("layer", "kind", "each"),
    [
        (Weighted("Gemm", (1000, 768), is_transposed=True), "Gemm", 768),
        (Weighted("Gemm", (768, 1000)), "Gemm", 768),
        (Weighted("Gemm", (768, 10)), "Gemm", 768),
        (Weighted("Gemm", (10, 768), is_transposed=True), "Gemm", 768),
        (Weighted("MatMul", (768, 1000)), "MatMul", 768),
        (Weighted("Conv", (8, 1, 3, 3)), "Conv 3x3", 9),  # of a gray image
        (Weighted("Conv", (16, 1, 3, 3), group=8), "depthwise Conv 3x3", 9),
        (Weighted("Conv", (16, 4, 3, 3), group=2), "Conv 3x3", 36),
        (Weighted("ConvTranspose", (8, 1, 2, 2), group=8), "depthwise ConvTranspose 2x2", None),
        (Weighted("ConvTranspose", (8, 1, 2, 2)), "ConvTranspose 2x2", None),
    ],
)
def test_kind_and_products_of_a_layer_by_hand(layer, kind, each):
    assert layers.kind_of(layer.operator, layer) == kind and layers.inputs_of(layer) == each
    assert layers.kind_of("Convert", layer) == "Convert"  # beside it, where a kind of number is changed
    (group,) = layers.grouped([Ran("a", layer.operator, 0.001, 10)], {"a": layer}, calls=1)
    assert group.macs == (10 * each if each else None)


def test_a_renamed_layer_is_told_by_the_shapes_that_went_in():
    assert layers.seen("FusedConv", (1, 8, 9, 9), (8, 1, 3, 3)) == Weighted("Conv", (8, 1, 3, 3), 8)
    assert layers.seen("Conv", (1, 1, 9, 9), (8, 1, 3, 3)) == Weighted("Conv", (8, 1, 3, 3), 1)
    assert layers.inputs_of(layers.seen("FusedGemm", (1, 768), (1000, 768))) == 768
    assert layers.inputs_of(layers.seen("FusedGemm", (1, 768), (768, 1000))) == 768


def test_a_name_that_only_begins_alike_is_another_layer():
    known = {"conv1": Weighted("Conv", (1, 1, 1, 1)), "conv": Weighted("Conv", (2, 2, 2, 2))}
    assert layers.matching("conv10_token", known) is None
    assert layers.matching("conv1_token_3", known) == "conv1" and layers.matching("conv", known) == "conv"


def test_the_first_calls_of_a_profile_are_left_out():
    event = {"cat": "Node", "name": "a_kernel_time", "dur": 10, "args": {"op_name": "Relu"}}
    events = [event | {"dur": dur} for dur in (900, 10, 30)]
    others = [event | {"name": "a_fence_before"}, {"cat": "Session", "name": "model_run", "dur": 5}]
    found = layers.onnxruntime_layers([*others, *events], skipped=1)
    assert [each.seconds for each in found] == pytest.approx([10e-6, 30e-6])


def test_an_engine_without_a_profile_is_refused_before_it_is_opened(tmp_path, capsys):
    assert cli.main(["latency", str(tmp_path / "a.plan"), "--layers"]) == 2
    assert "a.plan runs on tensorrt. Leave it out" in capsys.readouterr().err


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_engine_tells_of_the_layers_of_a_real_file(network, engine, capsys):
    pytest.importorskip(engine)
    argv = ["latency", str(network), "--engine-backend", engine, "--threads", "1", "--iterations", "3"]
    assert cli.main([*argv, "--warmup", "0", "--layers", "--json"]) == 0
    found = {group["kind"]: group for group in json.loads(capsys.readouterr().out)["layers"]}
    assert {"Conv 3x3", "depthwise Conv 5x5"} <= set(found)
    assert sum(group["share_percent"] for group in found.values()) == pytest.approx(100)
    if engine == "onnxruntime":  # 16 x 16 places, all of them inside
        assert found["Conv 3x3"]["macs"] == 16 * 256 * 27
        assert found["depthwise Conv 5x5"]["macs"] == 16 * 256 * 25
        assert found["Gemm"]["macs"] == 64
