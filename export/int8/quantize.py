"""From ranges to scales, and a layout becomes an int8 graph.

In:  fp32 ONNX model; a `Layout`; {tensor: Range}; on wish int8 weights and biases that were chosen with more
care.
Out: the same model with Q/DQ: symmetric int8 weights per output channel, activations per tensor, float bias.
Elsewhere: which layers and tensors (export.int8.rules), the nodes themselves (export.int8.qdq; the names of
both are offered here too), measuring ranges (export.int8.calibrate), measuring what it costs
(export.checks.verify).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import ModelProto, NodeProto

from runtime.errors import UsageError

from ..graph import edit
from ..graph.view import View, along, attribute, channel_axis
from .qdq import Int8Weight, Writer
from .ranges import Range
from .rules import PLACEMENTS, Layout, Placement, Rules, after_clipping, lay_out, moves, stays_float

__all__ = [
    "PLACEMENTS",
    "Int8Weight",
    "Layout",
    "Placement",
    "Rules",
    "activation_scale",
    "bias_place",
    "lay_out",
    "quantize",
    "scale_count",
    "stays_float",
    "weight_to_int8",
    "with_shared_ranges",
]

LARGEST = 127
"""Largest int8 step; -128 is left unused by weights, so that the grid is symmetric."""
REQUANTIZED = ("Conv", "ConvTranspose", "Gemm")
"""Float layers whose weight ONNX Runtime from 1.21 makes int8 by itself, with one scale for all channels,
where they read a DequantizeLinear and a QuantizeLinear follows (its WeightBiasQuantization; a MobileNetV2
with float depthwise layers fell from 73 % to 1 %)."""
BIAS_STEPS = 2**30
"""A bias is at most so many steps of input scale x weight scale, because integer kernels hold it as int32."""


def with_shared_ranges(
    tensors: Sequence[str], ranges: Mapping[str, Range], view: View, joins: Sequence[str] = ("Concat",)
) -> dict[str, Range]:
    """Ranges in which tensors that only differ by a commuting operator have one range, the origin's, and
    everything around the operators of `joins` has one, the union: with one scale on all sides an engine drops
    the pairs between.
    """
    groups: dict[str, list[str]] = {}
    for tensor in sorted(tensors, key=lambda name: view.depth[name]):
        groups[tensor] = joined = [tensor]
        for origin in origins(tensor, groups, view, joins):
            if groups[origin] is not joined:
                joined += groups[origin]
                groups |= dict.fromkeys(groups[origin], joined)
    return {
        tensor: union([ranges[member] for member in groups[tensor] if not origins(member, groups, view, ())])
        for tensor in groups
    }


def origins(tensor: str, known: Iterable[str], view: View, joins: Sequence[str]) -> list[str]:
    """The nearest of the `known` tensors from which `tensor` is made by commuting operators and `joins`
    alone.
    """
    producer = view.producer.get(tensor)
    if producer is None or not (producer.op_type in joins or moves(producer, view)):
        return []
    sources = list(producer.input) if producer.op_type in joins else [producer.input[0]]
    return [
        found
        for source in sources
        for found in ([source] if source in known else origins(source, known, view, joins))
    ]


def union(ranges: Sequence[Range]) -> Range:
    """The smallest range that holds all of them."""
    return Range(min(r.low for r in ranges), max(r.high for r in ranges))


def activation_scale(
    range_: Range, floor: float, unsigned: bool = False
) -> tuple[np.float32, np.int8 | np.uint8]:
    """(scale, zero point). Symmetric: the larger magnitude becomes 127 steps and zero stays 0. Unsigned:
    [low, high], widened to hold 0 exactly, becomes 255 steps.
    """
    low, high = min(range_.low, 0.0), max(range_.high, 0.0)
    if not unsigned:
        return np.float32(max(-low, high, floor * LARGEST) / LARGEST), np.int8(0)
    scale = max((high - low) / 255, floor)
    return np.float32(scale), np.uint8(round(-low / scale))


def weight_to_int8(weight: np.ndarray, axis: int, floor: float) -> Int8Weight:
    """Symmetric per channel of `axis`, the largest magnitude on 127; a dead channel gets the floor as scale,
    not zero.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scales = np.maximum(np.abs(weight).max(axis=others) / LARGEST, floor).astype(np.float32)
    steps = np.rint(weight / along(scales, axis, weight.ndim))  # ties to even, as ONNX QuantizeLinear rounds
    return Int8Weight(np.clip(steps, -LARGEST, LARGEST).astype(np.int8), scales)


def bias_place(node: NodeProto, view: View) -> tuple[NodeProto, int] | None:
    """(node, input index) where a layer's constant bias (channels,) is read, or None when it has none.

    Conv and Gemm carry it themselves; a MatMul's is the Add that alone reads it.
    """
    if node.op_type != "MatMul":
        return (node, 2) if len(node.input) > 2 and node.input[2] else None
    reader = view.only_reader(node.output[0])
    if reader is None or reader.op_type != "Add":
        return None
    index = 1 - list(reader.input).index(node.output[0])
    is_bias = reader.input[index] in view.constants and len(view.constants[reader.input[index]].dims) == 1
    return (reader, index) if is_bias else None


def own_bias(node: NodeProto, view: View) -> np.ndarray | None:
    """The constant bias (channels,) a Conv or Gemm adds itself, or None."""
    place = bias_place(node, view)
    if place is None or place[0] is not node or node.input[2] not in view.constants:
        return None
    return view.constant(node.input[2]).ravel()


def with_room_for_bias(given: Int8Weight, bias: np.ndarray, input_scale: float, axis: int) -> Int8Weight:
    """The same weight with larger scales where the bias would not fit int32 in steps of input scale x weight
    scale.

    ONNX Runtime makes that int32 of our float bias, and what does not fit saturates without a word: a channel
    whose weights are all but zero would lose its bias. Its weights are so small beside the bias that coarser
    steps change nothing.
    """
    least = np.abs(bias, dtype=np.float64) / (input_scale * BIAS_STEPS)
    if (given.scales >= least).all():
        return given
    scales = np.maximum(given.scales, least).astype(np.float32)
    steps = np.rint(given.steps * along(given.scales / scales, axis, given.steps.ndim))
    return Int8Weight(steps.astype(np.int8), scales)


def adds_bias_in_float(node: NodeProto, quantized: Iterable[str], view: View) -> bool:
    """Is it a Gemm with a bias and a float result? ONNX Runtime has an integer kernel for it only where the
    bias is int32 or added afterwards; afterwards it stays float, as everywhere.
    """
    return (
        node.op_type == "Gemm"
        and attribute(node, "beta", 1.0) == 1.0
        and after_clipping(node.output[0], view) not in quantized
    )


def is_integer_pad(tensor: str, quantized: Iterable[str], view: View) -> bool:
    """Is it a quantized tensor with zeros around it? ONNX Runtime has no fused kernel for a pair on each side
    of a Pad, so the cpu placement pads the 8-bit numbers themselves (the shortcuts of CIFAR ResNets).
    """
    producer = view.producer.get(tensor)
    return (
        producer is not None
        and producer.op_type == "Pad"
        and moves(producer, view)
        and attribute(producer, "mode", b"constant") == b"constant"
        and producer.input[0] in quantized
    )


def quantize(
    model: ModelProto,
    layout: Layout,
    ranges: Mapping[str, Range],
    rules: Rules | None = None,
    weights: Mapping[str, Int8Weight] | None = None,
    biases: Mapping[str, np.ndarray] | None = None,
) -> ModelProto:
    """A copy of the model with Q/DQ inserted as planned; the fp32 weights of quantized layers are dropped.

    weights, biases: by layer name, in place of the max-abs scales and of the layer's own bias (float
    (channels,); a layer without one gets one). Raises UsageError for a name that is not a planned layer, or a
    shape that does not fit.
    """
    floor, placement = (rules or Rules()).scale_floor, PLACEMENTS[layout.placement]
    view, result = View(model), edit.copy(model)
    writer = Writer(result)
    scales = {
        tensor: activation_scale(range_, floor, placement.unsigned)
        for tensor, range_ in with_shared_ranges(layout.tensors, ranges, view, placement.joins).items()
    }
    for tensor, (scale, zero) in scales.items():
        writer.activation(tensor, scale, zero, placement.outputs and is_integer_pad(tensor, scales, view))
    for name, index in layout.edges:
        if name not in layout.layers and view.nodes[name].op_type in REQUANTIZED:
            tensor = view.nodes[name].input[index]
            writer.keep_float(name, index, tensor, *scales[tensor])
    weights, biases = weights or {}, biases or {}
    require_fit(layout, view, weights, biases)
    for name in layout.layers:
        node = view.nodes[name]
        given = weights.get(name) or weight_to_int8(view.constant(node.input[1]), channel_axis(node), floor)
        bias = biases[name] if name in biases else own_bias(node, view)
        if bias is not None:
            given = with_room_for_bias(given, bias, float(scales[node.input[0]][0]), channel_axis(node))
        writer.weight(node, given, channel_axis(node))
    for name, bias in biases.items():
        writer.bias(view.nodes[name], np.asarray(bias, np.float32), bias_place(view.nodes[name], view))
    if placement.outputs:
        writer.split = {name for name in layout.layers if adds_bias_in_float(view.nodes[name], scales, view)}
    writer.insert(layout.edges)
    onnx.checker.check_model(result, full_check=True)
    return result


def require_fit(
    layout: Layout, view: View, weights: Mapping[str, Int8Weight], biases: Mapping[str, np.ndarray]
) -> None:
    """Raise UsageError unless every given weight and bias belongs to a planned layer and has its shape."""
    for name in [*weights, *biases]:
        if name not in layout.layers:
            raise UsageError(
                f"{name} is not a layer that becomes int8, so it has no int8 weight or bias to give. "
                f"Layers: {', '.join(layout.layers[:5])}, ..."
            )
        node = view.nodes[name]
        shape = tuple(view.constants[node.input[1]].dims)
        channels = shape[channel_axis(node)]
        if name in weights and (weights[name].steps.shape, weights[name].scales.shape) != (
            shape,
            (channels,),
        ):
            raise UsageError(
                f"{name}: int8 weight {weights[name].steps.shape} with scales {weights[name].scales.shape}; "
                f"expected {shape} with ({channels},)"
            )
        if name in weights and not (
            weights[name].steps.dtype == np.int8 and (weights[name].scales > 0).all()
        ):
            raise UsageError(
                f"{name}: weight is {weights[name].steps.dtype} with smallest scale"
                f" {weights[name].scales.min():g}; expected int8 with scales above 0"
            )
        if name in biases and np.shape(biases[name]) != (channels,):
            raise UsageError(f"{name}: bias {np.shape(biases[name])}; expected ({channels},)")


def scale_count(layout: Layout, model: ModelProto) -> int:
    """How many scales the model carries: one per tensor, one per output channel of each quantized layer."""
    view = View(model)
    channels: Iterable[int] = (
        view.constants[view.nodes[name].input[1]].dims[channel_axis(view.nodes[name])]
        for name in layout.layers
    )
    return len(layout.tensors) + sum(channels)
