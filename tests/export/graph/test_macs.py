"""export.graph.macs: multiply-accumulates per layer, against hand-worked numbers and torch's own counter."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from distill import models
from export.graph import from_torch, macs


def model(body, weights, images="float[batch, 8, 9, 9] images", logits="float[batch, d, e, f] logits"):
    made = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 19]> g ({images}) => ({logits}) {{ {body} }}'
    )
    made.graph.initializer.extend(
        numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in weights.items()
    )
    for node in made.graph.node:
        node.name = node.output[0]
    return made


def test_convolutions_counted_by_hand():
    made = model(
        "a = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (images, wa)  b = Relu (a)"
        "c = Conv <group = 16, kernel_shape = [5, 3]> (b, wc)  logits = Conv (c, wd)",
        {"wa": (16, 8, 3, 3), "wc": (16, 1, 5, 3), "wd": (4, 16, 1, 1)},
    )
    assert macs.count(made) == {
        "a": 5 * 5 * 16 * 8 * 9,  # 9 pixels at stride 2 with padding 1: 5
        "c": 1 * 3 * 16 * 1 * 15,  # 5 x 3 kernel on 5 x 5 without padding: 1 x 3; each channel by itself
        "logits": 1 * 3 * 4 * 16,
    }


def test_matrices_counted_by_hand():
    body = (
        "shape = Constant <value_ints = [0, 8, 81]> ()  rows = Reshape (images, shape)"
        "t = Transpose <perm = [0, 2, 1]> (rows)  m = MatMul (t, wm)  axes = Constant <value_ints = [1]> ()"
        "p = ReduceMean <keepdims = 0> (m, axes)"
        "g = Gemm <transB = 1> (p, wg)  logits = Gemm (g, wh)"
    )
    made = model(body, {"wm": (8, 12), "wg": (5, 12), "wh": (5, 3)}, logits="float[batch, 3] logits")
    assert macs.count(made) == {"m": 81 * 8 * 12, "g": 12 * 5, "logits": 5 * 3}


def test_a_product_of_two_activations_is_not_a_layer():
    made = model(
        "t = Transpose <perm = [0, 1, 3, 2]> (images)  a = MatMul (images, t)  logits = Conv (a, w)",
        {"w": (8, 8, 1, 1)},
    )
    assert macs.count(made) == {"logits": 81 * 64}


ATTENTION = 12 * 2 * 17 * 17 * 192  # blocks x two products of 17 tokens with each other x channels


@pytest.mark.parametrize(
    ("name", "arguments", "side", "uncounted"),
    [
        ("resnet20", {}, 32, 0),
        ("convnext_atto", {}, 32, 0),
        ("vit_tiny_patch16_224", {"img_size": 64}, 64, ATTENTION),
    ],
)
def test_the_whole_network_equals_torchs_count(name, arguments, side, uncounted):
    """Torch's counter passes over attention on a CPU; the graph's products of two activations are counted."""
    network = from_torch.merge(models.build(name, 10, arguments))
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 3, side, side))
    found = from_torch.to_onnx(network, (3, side, side))
    assert macs.total(found) == counter.get_total_flops() // 2 + uncounted
    assert sum(macs.count(found).values()) == counter.get_total_flops() // 2


def test_the_model_is_left_as_it_was(student_onnx):
    before = student_onnx.SerializeToString(deterministic=True)
    assert min(macs.count(student_onnx).values()) > 0
    assert student_onnx.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("share", ["conv1", "layer3.2.conv2"])
def test_layers_are_named_after_their_modules(student_onnx, share):
    assert share in macs.count(student_onnx)


def test_graph_without_layers_has_none():
    assert macs.count(model("logits = Relu (images)", {})) == {}


def test_everything_that_multiplies_is_in_the_total():
    made = model(
        "t = Transpose <perm = [0, 1, 3, 2]> (images)  a = MatMul (images, t)"
        "u = ConvTranspose <strides = [2, 2]> (a, wu)  logits = Conv (u, w)",
        {"wu": (8, 5, 2, 2), "w": (3, 5, 1, 1)},
    )
    product = 8 * 9 * 9 * 9  # 8 channels of 9 x 9 values, each a sum of 9
    upsampled = 8 * 9 * 9 * 5 * 2 * 2  # each of 8 x 9 x 9 values meets 5 kernels of 2 x 2
    assert macs.total(made) == product + upsampled + 18 * 18 * 3 * 5
    assert macs.count(made) == {"logits": 18 * 18 * 3 * 5}


def test_a_shape_that_is_not_known_leaves_the_node_uncounted():
    node = onnx.helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    assert macs.of_node(node, {"w": (5, 12)}) is None and macs.of_node(node, {"y": (2, 5)}) is None
    assert macs.of_node(node, {"w": (5, 12), "y": (2, 5)}) == 2 * 5 * 12
