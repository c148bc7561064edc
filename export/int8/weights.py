"""Int8 weights and biases that lose less than rounding each weight to its channel's largest: options of every
int8 export.

In:  fp32 ONNX model and its layout; calibration batches (n, C, H, W) float32 for what looks at activations.
Out: {layer: Int8Weight} and {layer: bias (channels,) float32} for `quantize.quantize`; a layer that is in
neither keeps its own.
Elsewhere: scale moved between layers before calibration (export.graph.equalize), where Q/DQ goes
(export.int8.quantize).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from runtime.errors import UsageError

from ..graph import edit, run
from ..graph.view import View, along, channel_axis
from .quantize import LARGEST, Int8Weight, Layout, Rules, bias_place, weight_to_int8

SHRINK = np.linspace(1.0, 0.5, 101)[1:]
"""Shares of a channel's largest magnitude that are tried as its range; 0.5 already costs an outlier half its
value."""


@dataclass(frozen=True)
class WeightOptions:
    """What is done to weights and biases, beside rounding them."""

    weight_scales: Literal["max", "mse"] = "max"
    """Scale of each output channel: its largest magnitude on 127, or the one with the smallest squared
    error."""
    bias_correction: bool = False
    """Take the mean error that rounded weights make in every output channel, measured on calibration images,
    out of its bias."""


def prepare(
    model: ModelProto,
    layout: Layout,
    rules: Rules | None,
    options: WeightOptions,
    batches: Callable[[], Iterable[np.ndarray]],
) -> tuple[dict[str, Int8Weight], dict[str, np.ndarray]]:
    """(weights, biases) by layer name, for `quantize.quantize`; empty where the options leave a layer as it
    is.

    batches() is called only when images are needed. Raises UsageError when they are and there are none.
    """
    to_int8 = least_squares_int8 if options.weight_scales == "mse" else weight_to_int8
    view, floor, weights = View(model), (rules or Rules()).scale_floor, {}
    if options != WeightOptions():
        for node in (view.nodes[name] for name in layout.layers):
            weights[node.name] = to_int8(view.constant(node.input[1]), channel_axis(node), floor)
    return weights, correct_biases(model, weights, batches()) if options.bias_correction else {}


def least_squares_int8(weight: np.ndarray, axis: int, floor: float) -> Int8Weight:
    """Like `weight_to_int8`, but each channel's scale is the one of SHRINK (or the whole range) with the
    smallest sum of squared errors: clipping a lone large weight can make the steps finer for all others.
    Never worse than the largest magnitude.
    """
    best = weight_to_int8(weight, axis, floor)
    channels = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64)
    scales = best.scales.copy()
    errors = _squared_errors(channels, scales)
    for share in SHRINK:
        tried = np.maximum(best.scales * np.float32(share), floor).astype(np.float32)
        found = _squared_errors(channels, tried)
        better = found < errors
        scales[better], errors[better] = tried[better], found[better]
    steps = np.clip(np.rint(channels / scales[:, None]), -LARGEST, LARGEST).astype(np.int8)
    shape = [weight.shape[axis], *(size for i, size in enumerate(weight.shape) if i != axis)]
    return Int8Weight(np.ascontiguousarray(np.moveaxis(steps.reshape(shape), 0, axis)), scales)


def _squared_errors(channels: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """(channels,) of (channels, weights) rounded to steps of `scales`."""
    wide = scales[:, None].astype(np.float64)
    return ((np.clip(np.rint(channels / wide), -LARGEST, LARGEST) * wide - channels) ** 2).sum(1)


def correct_biases(
    model: ModelProto, weights: Mapping[str, Int8Weight], batches: Iterable[np.ndarray]
) -> dict[str, np.ndarray]:
    """{layer: bias (channels,) float32} with which each layer of `weights`, its weight rounded, puts out on
    average over images and positions what it did before (Nagel et al. 2019, arXiv:1906.04721, section 4.2,
    measured on images).

    Activations stay float: values that a range cuts off are rare and large, and to add their mean everywhere
    costs more than it gives back (measured on MobileNetV2). What an earlier layer does to the mean must not
    be corrected twice, so every layer has to see corrected inputs. One run does that: the graph with rounded
    weights moves each layer's mean to the float graph's on the same batch before anything reads it, and puts
    out by how much; the moves are averaged over all images. Raises UsageError when there is no image.
    """
    view = View(model)
    tensors = {view.nodes[name].output[0]: name for name in weights}
    float_means, moves = (
        run.session(_with_means(model, tensors)),
        run.session(_with_moves(_rounded(model, weights), tensors)),
    )
    means = [f"{name}_mean" for name in weights]
    total, seen = [np.float64(0)] * len(means), 0
    for batch in batches:
        fed = dict(zip(means, float_means.run(means, {view.inputs[0]: batch}), strict=True))
        found = moves.run([f"{name}_move" for name in weights], {view.inputs[0]: batch, **fed})
        total = [
            sum_ + len(batch) * move.reshape(-1).astype(np.float64)
            for sum_, move in zip(total, found, strict=True)
        ]
        seen += len(batch)
    if not seen:
        raise UsageError(
            "no calibration images: biases cannot be corrected. Give training images: --calib DIR"
        )
    return {
        name: (_bias(view, name) + sum_ / seen).astype(np.float32)
        for name, sum_ in zip(weights, total, strict=True)
    }


def _rounded(model: ModelProto, weights: Mapping[str, Int8Weight]) -> ModelProto:
    """The model with float weights that are steps x scale."""
    result = edit.copy(model)
    nodes = {node.name: node for node in result.graph.node}
    for name, (steps, scales) in weights.items():
        axis = channel_axis(nodes[name])
        value = steps * along(scales, axis, steps.ndim)
        # its own, even where two layers share the float weight
        nodes[name].input[1] = edit.add_constant(result, f"{name}_rounded", value.astype(np.float32))
    return result


def _with_means(model: ModelProto, tensors: Mapping[str, str]) -> ModelProto:
    """The model with other outputs: LAYER_mean, of what each layer puts out, by {output tensor: layer}."""
    result, view = edit.copy(model), View(model)
    del result.graph.output[:]
    for tensor, name in tensors.items():
        result.graph.node.append(_mean(result, view, tensor, tensor, f"{name}_mean"))
        result.graph.output.append(helper.make_tensor_value_info(f"{name}_mean", TensorProto.FLOAT, None))
    return result


def _with_moves(rounded: ModelProto, tensors: Mapping[str, str]) -> ModelProto:
    """The model with other outputs: LAYER_move, what was added to each of `tensors` before anything reads it,
    so that its mean is the one that is fed as LAYER_mean.
    """
    result, view, nodes = edit.copy(rounded), View(rounded), []
    del result.graph.output[:]
    for node in rounded.graph.node:
        nodes.append(edit.copy_node(node))
        tensor = node.output[0]
        if tensor not in tensors:
            continue
        own, mean, move = f"{tensor}_own", f"{tensors[tensor]}_mean", f"{tensors[tensor]}_move"
        nodes[-1].output[0] = own
        nodes += [
            _mean(result, view, tensor, own, f"{own}_mean"),
            helper.make_node("Sub", [mean, f"{own}_mean"], [move]),
            helper.make_node("Add", [own, move], [tensor]),
        ]
        shape = [None] * len(view.shapes[tensor])
        result.graph.input.append(helper.make_tensor_value_info(mean, TensorProto.FLOAT, shape))
        result.graph.output.append(helper.make_tensor_value_info(move, TensorProto.FLOAT, shape))
    edit.replace_nodes(result, nodes)
    return result


def _mean(result: ModelProto, view: View, tensor: str, source: str, output: str) -> NodeProto:
    """A node that averages `source`, shaped like the layer's output `tensor`, over all but its channels (all
    axes are kept).
    """
    rank = len(view.shapes[tensor])
    channels = 1 if view.producer[tensor].op_type == "Conv" else rank - 1
    axes = [axis for axis in range(rank) if axis != channels]
    constant = edit.add_constant(result, f"{output}_axes", np.array(axes, np.int64))
    return helper.make_node("ReduceMean", [source, constant], [output], keepdims=1)


def _bias(view: View, name: str) -> np.ndarray | float:
    """The layer's bias (channels,) float64, or 0.0 when it has none."""
    place = bias_place(view.nodes[name], view)
    return 0.0 if place is None else view.constant(place[0].input[place[1]]).astype(np.float64)
