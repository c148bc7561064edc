"""Where Q/DQ goes, and with which scale: the rules, each with its reason; ranges come from calibration.

In:  fp32 ONNX model; {tensor: Range}; the name of a placement.
Out: the same model with Q/DQ: symmetric int8 weights per output channel, activations per tensor, float bias.
Elsewhere: measuring ranges (export.calibrate), measuring what it costs (export.verify).

Two steps: `plan` decides (and lists which tensors need a range), `quantize` inserts. Sources: "doc" is NVIDIA's
https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/quantized-types-explicit-quantization.html,
"ModelOpt" is https://github.com/NVIDIA/Model-Optimizer, modelopt/onnx/quantization.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

from runtime.errors import UsageError

from .calibrate import Range
from .view import View, attribute


@dataclass(frozen=True)
class Placement:
    """Where Q/DQ stands for one kind of engine, on the same ranges and the same layers."""

    outputs: bool
    """Also quantize what comes out of quantized layers and of Adds."""
    unsigned: bool
    """Activations as uint8 with a zero point over [low, high]; otherwise int8 with a zero point of 0, as TensorRT demands."""


PLACEMENTS = {
    "tensorrt": Placement(outputs=False, unsigned=False),
    "cpu": Placement(outputs=True, unsigned=True),
}
"""tensorrt: NVIDIA's recommendations; runs everywhere. cpu: for ONNX Runtime's CPU engine, which has integer kernels only where
outputs are quantized too, and merges a ReLU into one only where the zero point is the smallest code (measured on a ResNet-20:
int8 with zero points of 0 makes 9 of 19 convolutions integer, uint8 all); TensorRT refuses the zero points."""

LARGEST = 127
"""Largest int8 step; -128 is left unused by weights, so that the grid is symmetric."""
COMMUTING = ("MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Pad")
"""They pick, move or pad values with zero, so quantizing before or after them is the same (doc, 5)."""
ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Elu", "PRelu")


@dataclass(frozen=True)
class Rules:
    """Which layers get int8. The defaults are for NVIDIA's engines; each field says why."""

    scale_floor: float = 1e-6
    """Smallest scale. A zero scale is a parse error, and below about 3e-8 it becomes zero when scales are made fp16."""
    few_channels: int = 16
    """Below so many input or output channels an int8 kernel mostly computes padding (ModelOpt `graph_utils.py`)."""
    channel_multiple: int = 8
    """Channels in this multiple fill an int8 vector, so such a small dense layer is quantized all the same (ModelOpt)."""
    large_depthwise: int = 7
    """Grouped convolutions with a side from this up stay float: no int8 kernel is known to be faster, and accuracy is lost."""
    classifier: bool = False
    """Quantize the layer that makes the logits? It is a small share of the work, and every error goes straight to the result."""
    exclude: tuple[str, ...] = ()
    """Layers to leave float: glob patterns on node names."""


@dataclass
class Plan:
    """What will be quantized."""

    placement: str = "tensorrt"
    layers: list[str] = field(default_factory=list)
    """Names of nodes that get an int8 weight."""
    edges: list[tuple[str, int]] = field(default_factory=list)
    """(node name, input index) that will read a Q/DQ pair; one pair per tensor, shared by all its edges."""
    tensors: list[str] = field(default_factory=list)
    """The tensors of these edges: the ones that need a range."""
    left_float: dict[str, str] = field(default_factory=dict)
    """Weighted node name -> why it stays float."""
    excluded: dict[str, int] = field(default_factory=dict)
    """Exclude pattern -> number of nodes it matched."""


def plan(model: ModelProto, placement: str = "tensorrt", rules: Rules | None = None) -> Plan:
    """Decide what to quantize. Raises UsageError for an unknown placement, a pattern without a match, or nothing to do."""
    if placement not in PLACEMENTS:
        raise UsageError(f"--placement {placement}: expected one of {', '.join(PLACEMENTS)}")
    rules, view, made = rules or Rules(), View(model), Plan(placement)
    made.excluded = {pattern: len(fnmatch.filter(view.nodes, pattern)) for pattern in rules.exclude}
    for pattern, matched in made.excluded.items():
        if not matched:
            names = ", ".join(node.name for node in view.weighted()[:5])
            raise UsageError(f"--exclude {pattern}: matched 0 of {len(view.nodes)} nodes. Names look like {names}")
    for node in view.weighted():
        reason = stays_float(node, view, rules)
        if reason:
            made.left_float[node.name] = reason
        else:
            made.layers.append(node.name)
    if not made.layers:
        reasons = sorted(set(made.left_float.values()))
        raise UsageError(f"nothing to quantize: all {len(made.left_float)} layers stay float ({'; '.join(reasons)}). "
                         "Use the fp32 file, or a wider network")
    edges = [(name, 0) for name in made.layers] + skip_edges(view, made.layers)
    if PLACEMENTS[placement].outputs:
        edges += output_edges(view, made.layers, edges)
    made.edges = list(dict.fromkeys(edges))
    made.tensors = list(dict.fromkeys(view.nodes[name].input[index] for name, index in made.edges))
    return made


def stays_float(node: NodeProto, view: View, rules: Rules) -> str | None:
    """Why a weighted node is not quantized, or None when it is. The first rule that applies is given."""
    if any(fnmatch.fnmatchcase(node.name, pattern) for pattern in rules.exclude):
        return "excluded"
    if not rules.classifier and is_classifier(node, view):
        return "makes the logits"
    if node.op_type == "Conv":
        if is_large_depthwise(node, view, rules):
            return "large grouped kernel"
        if is_tiny(node, view, rules):
            return "few channels"
        if is_pointwise_on_one_pixel(node, view):
            return "1 x 1 map (squeeze and excitation)"
    return None


def is_classifier(node: NodeProto, view: View) -> bool:
    """Does this layer's output reach the logits through no other weighted layer? Usual practice is to leave it in float."""
    weighted = {layer.name for layer in view.weighted()}
    waiting, seen = list(view.outputs), set()
    while waiting:
        producer = view.producer.get(waiting.pop())
        if producer is None or producer.name in seen:
            continue
        seen.add(producer.name)
        if producer.name == node.name:
            return True
        if producer.name not in weighted:
            waiting += producer.input
    return False


def is_large_depthwise(node: NodeProto, view: View, rules: Rules) -> bool:
    """Grouped with a large kernel: TensorRT stores such int8 weights at 4 bytes each, so nothing is gained."""
    sides = view.constants[node.input[1]].dims[2:]
    return attribute(node, "group", 1) > 1 and max(sides, default=0) >= rules.large_depthwise


def is_tiny(node: NodeProto, view: View, rules: Rules) -> bool:
    """ModelOpt's exclusion: under 16 channels on a side, unless dense, square and in a multiple of 8 with one side wide
    (or the first layer), or grouped with outputs in a multiple of 8 and every kernel side at least 3.
    """
    outputs, inputs, *sides = view.constants[node.input[1]].dims
    if min(outputs, inputs) >= rules.few_channels:
        return False
    if attribute(node, "group", 1) > 1:
        return outputs % rules.channel_multiple != 0 or min(sides) < 3
    fills = outputs % rules.channel_multiple == 0 or inputs % rules.channel_multiple == 0
    wide = node.input[0] in view.inputs or max(outputs, inputs) >= rules.few_channels
    return not (fills and len(set(sides)) == 1 and wide)


def is_pointwise_on_one_pixel(node: NodeProto, view: View) -> bool:
    """A convolution of a 1 x 1 map is a matrix times a vector: not worth int8 (doc; ModelOpt leaves m or n = 1 out)."""
    return view.shapes.get(node.input[0], [None] * 4)[2:] == [1, 1]


def skip_edges(view: View, layers: Sequence[str]) -> list[tuple[str, int]]:
    """The skip input of each residual Add, so that the convolution with its fused add can put out int8 (doc, 4).

    Nothing between the convolution and the Add. When both inputs are convolutions, the skip is the shorter branch.
    """
    found = []
    for node in view.model.graph.node:
        if node.op_type != "Add" or any(name in view.constants for name in node.input):
            continue
        fused = [index for index, name in enumerate(node.input)
                 if name in view.producer and view.producer[name].name in layers and view.only_reader(name) is node]
        if fused:
            main = max(fused, key=lambda index: view.depth[node.input[index]])
            found.append((node.name, 1 - main))
    return found


def output_edges(view: View, layers: Sequence[str], edges: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """For ONNX Runtime's CPU engine: it uses an integer kernel only where the output is quantized too (measured).

    Every reader of what a quantized layer, or an Add of two quantized tensors, puts out after its activation.
    """
    quantized = {view.nodes[name].input[index] for name, index in edges}
    found = []
    for node in view.model.graph.node:
        is_add = node.op_type == "Add" and not any(name in view.constants for name in node.input)
        if node.name in layers or (is_add and any(name in quantized for name in node.input)):
            tensor = after_activation(node.output[0], view)
            quantized.add(tensor)
            found += [(reader.name, index) for reader, index in view.consumers[tensor]]
    return found


def after_activation(tensor: str, view: View) -> str:
    """The output of the activation that alone reads `tensor`, or `tensor`: they fuse, so no Q/DQ stands between (doc, 3)."""
    reader = view.only_reader(tensor)
    return reader.output[0] if reader is not None and reader.op_type in ACTIVATIONS else tensor


def with_shared_ranges(tensors: Sequence[str], ranges: Mapping[str, Range], view: View) -> dict[str, Range]:
    """Ranges in which the output of a commuting operator has the range of its input, when that is quantized as well:
    with one scale on both sides an engine drops the pair between.
    """
    shared: dict[str, Range] = {}
    for tensor in sorted(tensors, key=lambda name: view.depth[name]):
        origin = tensor
        while (producer := view.producer.get(origin)) is not None and producer.op_type in COMMUTING:
            origin = producer.input[0]
            if origin in shared:
                break
        shared[tensor] = shared.get(origin, ranges[tensor])
    return shared


def activation_scale(range_: Range, floor: float, unsigned: bool = False) -> tuple[np.float32, np.int8 | np.uint8]:
    """(scale, zero point). Symmetric: the larger magnitude becomes 127 steps and zero stays 0. Unsigned: [low, high],
    widened to hold 0 exactly, becomes 255 steps.
    """
    low, high = min(range_.low, 0.0), max(range_.high, 0.0)
    if not unsigned:
        return np.float32(max(-low, high, floor * LARGEST) / LARGEST), np.int8(0)
    scale = max((high - low) / 255, floor)
    return np.float32(scale), np.uint8(round(-low / scale))


def weight_to_int8(weight: np.ndarray, axis: int, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """(int8 weight, scales (channels,) float32), symmetric per channel of `axis`; a dead channel gets the floor, not zero."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scales = np.maximum(np.abs(weight).max(axis=others) / LARGEST, floor).astype(np.float32)
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    steps = np.rint(weight / scales.reshape(shape))  # ties to even, as ONNX QuantizeLinear rounds
    return np.clip(steps, -LARGEST, LARGEST).astype(np.int8), scales


def channel_axis(node: NodeProto) -> int:
    """Where the output channels are: axis 0 of Conv and of a transposed Gemm, axis 1 of any other matrix."""
    return 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1


def quantize(model: ModelProto, made: Plan, ranges: Mapping[str, Range], rules: Rules | None = None) -> ModelProto:
    """A copy of the model with Q/DQ inserted as planned; the fp32 weights of quantized layers are dropped."""
    floor, unsigned = (rules or Rules()).scale_floor, PLACEMENTS[made.placement].unsigned
    view, result = View(model), ModelProto()
    result.CopyFrom(model)
    writer = _Writer(result)
    for tensor, range_ in with_shared_ranges(made.tensors, ranges, view).items():
        writer.activation(tensor, *activation_scale(range_, floor, unsigned))
    for name in made.layers:
        node = view.nodes[name]
        axis = channel_axis(node)
        writer.weight(node.input[1], *weight_to_int8(view.constant(node.input[1]), axis, floor), axis)
    writer.insert(made)
    onnx.checker.check_model(result, full_check=True)
    return result


class _Writer:
    """Adds Q/DQ to a model: scales and zero points as initializers, nodes in topological order."""

    def __init__(self, model: ModelProto) -> None:
        self.graph = model.graph
        self.after: dict[str, list[NodeProto]] = {}
        self.weights: dict[str, NodeProto] = {}

    def activation(self, tensor: str, scale: np.float32, zero: np.int8 | np.uint8) -> None:
        scale_and_zero = self._constants(tensor, np.asarray(scale), np.asarray(zero))
        self.after[tensor] = [
            helper.make_node("QuantizeLinear", [tensor, *scale_and_zero], [f"{tensor}_int8"], f"{tensor}_QuantizeLinear"),
            helper.make_node("DequantizeLinear", [f"{tensor}_int8", *scale_and_zero], [f"{tensor}_dequantized"],
                             f"{tensor}_DequantizeLinear")]

    def weight(self, name: str, steps: np.ndarray, scales: np.ndarray, axis: int) -> None:
        if name in self.weights:  # two layers share it
            return
        scales_and_zeros = self._constants(name, scales, np.zeros(scales.shape, np.int8))
        self.graph.initializer.append(numpy_helper.from_array(steps, f"{name}_int8"))
        self.weights[name] = helper.make_node(
            "DequantizeLinear", [f"{name}_int8", *scales_and_zeros], [f"{name}_dequantized"],
            f"{name}_DequantizeLinear", axis=axis)

    def insert(self, made: Plan) -> None:
        old = list(self.graph.node)
        nodes = {node.name: node for node in old}
        for name, index in made.edges:
            nodes[name].input[index] += "_dequantized"
        for name in made.layers:
            nodes[name].input[1] += "_dequantized"
        ordered = list(self.weights.values())
        for value in self.graph.input:
            ordered += self.after.get(value.name, [])
        for node in old:
            ordered.append(node)
            for output in node.output:
                ordered += self.after.get(output, [])
        copies = [NodeProto.FromString(node.SerializeToString()) for node in ordered]  # clearing the field frees the old ones
        del self.graph.node[:]
        self.graph.node.extend(copies)
        self._drop_unread()

    def _constants(self, name: str, scale: np.ndarray, zero: np.ndarray) -> list[str]:
        names = [f"{name}_scale", f"{name}_zero_point"]
        self.graph.initializer.extend([numpy_helper.from_array(scale, names[0]), numpy_helper.from_array(zero, names[1])])
        return names

    def _drop_unread(self) -> None:
        read = {name for node in self.graph.node for name in node.input} | {value.name for value in self.graph.output}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in read]
        copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
        del self.graph.initializer[:]
        self.graph.initializer.extend(copies)


def scale_count(made: Plan, model: ModelProto) -> int:
    """How many scales the model carries: one per tensor, one per output channel of each quantized layer."""
    view = View(model)
    channels: Iterable[int] = (view.constants[view.nodes[name].input[1]].dims[channel_axis(view.nodes[name])]
                               for name in made.layers)
    return len(made.tensors) + sum(channels)
