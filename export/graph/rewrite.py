"""Exact changes of the fp32 graph that make it better to quantize; it computes the same afterwards.

In:  fp32 ONNX model from export.graph.from_torch.
Out: a changed copy: batch norm folded into the convolution after it (export.graph.from_torch folds the ones
behind convolutions), the mean over a map as one pooling operator.
Elsewhere: what is quantized then (export.int8.rules); proof that the result computes the same
(export.checks.verify).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import ModelProto, NodeProto, helper

from . import edit
from .view import View, attribute


def prepare(model: ModelProto) -> ModelProto:
    """The model as `lay_out`, `calibrate` and `quantize` should all see it; names of layers and outputs
    stay."""
    result = edit.copy(model)
    for change in (fold_one_batch_norm, pool_one_mean):
        repeat(change, result)
    edit.drop_unread(result)
    return result


def repeat(change: Callable[[ModelProto, View], bool], model: ModelProto) -> None:
    """Apply `change`, which sees the graph as it is by then, until it finds nothing to do."""
    while change(model, View(model)):
        continue


# ---- batch norm


def fold_one_batch_norm(model: ModelProto, view: View) -> bool:
    """Fold a BatchNormalization into the convolution before it, or into the one after it where that is exact.

    Its multiplication would stand in float between two int8 layers (RepLKNet-31B has 49 such, before 1 x 1
    convolutions).
    """
    for node in model.graph.node:
        if node.op_type != "BatchNormalization" or any(
            name not in view.constants for name in node.input[1:5]
        ):
            continue
        before, after = view.producer.get(node.input[0]), view.only_reader(node.output[0])
        scale, shift = affine(node, view)
        if before is not None and is_plain(before, view) and is_only_reader(node, before, view):
            fold_back(before, scale, shift, model, view)
            before.output[0] = node.output[0]
        elif (
            after is not None
            and is_plain(after, view)
            and after.input[0] == node.output[0]
            and not is_padded(after)
        ):
            fold_forward(after, scale, shift, model, view)
            after.input[0] = node.input[0]
        else:
            continue
        model.graph.node.remove(node)
        return True
    return False


def affine(node: NodeProto, view: View) -> tuple[np.ndarray, np.ndarray]:
    """(scale, shift) per channel, float64: batch norm at inference is scale x + shift."""
    gamma, beta, mean, variance = (view.constant(name).astype(np.float64) for name in node.input[1:5])
    scale = gamma / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    return scale, beta - mean * scale


def is_plain(node: NodeProto, view: View) -> bool:
    """A convolution whose weight and bias are constants."""
    return node.op_type == "Conv" and all(name in view.constants for name in node.input[1:] if name)


def is_only_reader(node: NodeProto, of: NodeProto, view: View) -> bool:
    """Does `node`, and nobody else, read what `of` puts out?"""
    return view.only_reader(of.output[0]) is node


def is_padded(node: NodeProto) -> bool:
    """Does the convolution see zeros at the border? They come after the batch norm, whose shift would be
    wrong there.
    """
    return any(attribute(node, "pads", [])) or attribute(node, "auto_pad", b"NOTSET") not in (
        b"NOTSET",
        b"VALID",
    )


def fold_back(conv: NodeProto, scale: np.ndarray, shift: np.ndarray, model: ModelProto, view: View) -> None:
    """scale (W x + b) + shift."""
    weight, bias = view.constant(conv.input[1]).astype(np.float64), bias_of(conv, view)
    set_weights(conv, weight * scale.reshape(-1, *[1] * (weight.ndim - 1)), scale * bias + shift, model)


def fold_forward(
    conv: NodeProto, scale: np.ndarray, shift: np.ndarray, model: ModelProto, view: View
) -> None:
    """W (scale x + shift) + b; output channel o of a grouped convolution reads the input channels of its
    group only.
    """
    weight, groups = view.constant(conv.input[1]).astype(np.float64), attribute(conv, "group", 1)
    outputs, inputs, *sides = weight.shape
    per_output = np.repeat(np.arange(groups), outputs // groups)  # the group of each output channel
    scales, shifts = (
        each.reshape(groups, inputs)[per_output].reshape(outputs, inputs, *[1] * len(sides))
        for each in (scale, shift)
    )
    set_weights(
        conv, weight * scales, bias_of(conv, view) + (weight * shifts).reshape(outputs, -1).sum(1), model
    )


def bias_of(conv: NodeProto, view: View) -> np.ndarray:
    """Its bias in float64, zeros where it has none."""
    if len(conv.input) > 2 and conv.input[2]:
        return view.constant(conv.input[2]).astype(np.float64)
    return np.zeros(view.constants[conv.input[1]].dims[0])


def set_weights(conv: NodeProto, weight: np.ndarray, bias: np.ndarray, model: ModelProto) -> None:
    """Give the convolution its own new constants: the old ones may have other readers."""
    taken = {tensor.name for tensor in model.graph.initializer}
    wanted = {f"{conv.input[1]}_folded": weight, f"{conv.name}.bias_folded": bias}
    names = [
        edit.add_constant(model, edit.fresh(name, taken), value.astype(np.float32))
        for name, value in wanted.items()
    ]
    del conv.input[1:]
    conv.input.extend(names)


# ---- mean over the map


def pool_one_mean(model: ModelProto, view: View) -> bool:
    """ReduceMean over height and width becomes GlobalAveragePool, for which ONNX Runtime has an
    8-bit kernel.
    """
    nodes = list(model.graph.node)
    for position, node in enumerate(nodes):
        if node.op_type != "ReduceMean" or not is_map_mean(node, view):
            continue
        output, keeps = node.output[0], attribute(node, "keepdims", 1)
        pooled = output if keeps else f"{output}_map"
        new = [helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], node.name)]
        if not keeps:
            new.append(helper.make_node("Flatten", [pooled], [output], f"{node.name}_flatten", axis=1))
        edit.replace_nodes(model, nodes[:position] + new + nodes[position + 1 :])
        return True
    return False


def is_map_mean(node: NodeProto, view: View) -> bool:
    """Is it the mean over the last two of (N, C, H, W)? The axes are an input from opset 18, an attribute
    before.
    """
    if len(node.input) > 1 and node.input[1] not in view.constants:
        return False
    axes = view.constant(node.input[1]).tolist() if len(node.input) > 1 else attribute(node, "axes", [])
    shape = view.shapes.get(node.input[0], [])
    return len(shape) == 4 and sorted(axis % 4 for axis in axes) == [2, 3]
