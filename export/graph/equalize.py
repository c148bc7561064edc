"""Cross-layer equalization: move scale between neighboring convolutions until their channels span like
ranges.

In:  fp32 ONNX model, batch norm folded.
Out: a copy that computes the same, and the pairs of layers between which scale was moved.
Elsewhere: calibration of the copy (export.int8.calibrate), scales of the weights (export.int8.weights).

Nagel et al. 2019, arXiv:1906.04721, section 4.1. One activation scale serves all channels of a tensor: a
channel that spans a hundredth of the widest gets two of 127 steps. ReLU and pooling give s * f(x) for f(s *
x), s > 0, so a channel can leave one layer s times smaller and enter the next s times larger.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto

from . import edit
from .view import View, along, attribute

HOMOGENEOUS = ("Relu", "LeakyRelu", "MaxPool", "AveragePool")
"""They let a positive scale per channel through."""
SWEEPS = 40
"""At most so many times over all pairs; a depthwise layer is in two of them, so scale travels along a
chain."""
SETTLED = 1e-3
"""Stop when no channel moves by a larger share than this."""


class Pair(NamedTuple):
    """Two convolutions with nothing between that would notice a scale."""

    first: str
    second: str


def equalize(model: ModelProto) -> tuple[ModelProto, list[Pair]]:
    """A copy of the model in which, for every pair, output channel i of the first layer and input channel i
    of the second have weights of the same largest magnitude; and the pairs (none: nothing could be changed,
    see `find_pairs`).

    Logits stay the same up to float32 rounding. A channel with only zeros on either side stays as it is.
    """
    pairs, _ = find_pairs(model)
    view = View(model)
    constants = {
        name: view.constant(name).astype(np.float64)
        for pair in pairs
        for layer in pair
        for name in view.nodes[layer].input[1:]
        if name
    }
    for _ in range(SWEEPS):
        moved = [_equalize_pair(view.nodes[pair.first], view.nodes[pair.second], constants) for pair in pairs]
        if max(moved, default=0.0) < SETTLED:
            break
    moved_to = {name: value.astype(np.float32) for name, value in constants.items()}
    return edit.with_values(model, moved_to), pairs


def find_pairs(model: ModelProto) -> tuple[list[Pair], dict[str, str]]:
    """Pairs in the graph's order, and why each other convolution is the first of none."""
    view, pairs, left_out = View(model), [], {}
    for node in view.weighted():
        if node.op_type == "Conv":
            second, reason = _partner(node, view)
            if second is None:
                left_out[node.name] = reason
            else:
                pairs.append(Pair(node.name, second.name))
    return pairs, left_out


def _partner(first: NodeProto, view: View) -> tuple[NodeProto | None, str]:
    """The convolution that alone reads what `first` puts out, or why there is none."""
    tensor = first.output[0]
    while (
        (reader := view.only_reader(tensor)) is not None
        and reader.op_type in HOMOGENEOUS
        and len(reader.output) == 1
    ):
        tensor = reader.output[0]
    if reader is None:
        return None, "its output has several readers, or is the network's"
    if reader.op_type == "Clip":
        return None, "Clip (ReLU6) cuts every channel at the same value"
    if reader.op_type != "Conv":
        return None, f"{reader.op_type} follows"
    for layer in (first, reader):
        if any(
            name not in view.constants or len(view.consumers[name]) > 1 for name in layer.input[1:] if name
        ):
            return None, f"weight or bias of {layer.name} is computed, or shared with another layer"
    if tensor != reader.input[0]:
        return None, f"{reader.name} reads it as a weight"
    return reader, ""


def _equalize_pair(first: NodeProto, second: NodeProto, constants: dict[str, np.ndarray]) -> float:
    """Scale both layers in place; returns the largest |ln scale|. After it, r1 = r2 = sqrt(r1 * r2) (equation
    11).
    """
    weight = constants[first.input[1]]
    by_group, group_axes = _by_group(constants[second.input[1]], attribute(second, "group", 1))
    r1 = np.abs(weight).reshape(len(weight), -1).max(1)
    r2 = np.abs(by_group).max(group_axes).reshape(-1)
    alive = (r1 > 0) & (r2 > 0)
    scale = np.sqrt(np.divide(r1, r2, out=np.ones_like(r1), where=alive))
    weight /= along(scale, 0, weight.ndim)
    if len(first.input) > 2 and first.input[2]:
        constants[first.input[2]] /= scale
    by_group *= scale.reshape(by_group.shape[0], 1, by_group.shape[2], *[1] * (by_group.ndim - 3))
    return float(np.abs(np.log(scale)).max())


def _by_group(weight: np.ndarray, groups: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """(groups, outputs of a group, inputs of a group, kernel...) as a view of (outputs, inputs of a group,
    kernel...), and the axes that are not input channels.
    """
    shaped = weight.reshape(groups, -1, *weight.shape[1:])
    return shaped, tuple(axis for axis in range(shaped.ndim) if axis not in (0, 2))
