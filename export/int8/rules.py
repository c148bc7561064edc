"""Which layers and tensors of a graph become int8: the rules, each with its reason and source.

In:  fp32 ONNX model, best after export.graph.rewrite; the name of a placement; `Rules`.
Out: a `Layout`: the layers with an int8 weight, and every (node, input) that will read a Q/DQ pair.
Elsewhere: scales, and writing the pairs (export.int8.quantize); ranges (export.int8.calibrate).

Sources: "doc" is NVIDIA's
https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/quantized-types-explicit-quantization.html,
"ModelOpt" is https://github.com/NVIDIA/Model-Optimizer, modelopt/onnx/quantization; "measured" is
measurements/int8_speed.py.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from onnx import ModelProto, NodeProto

from runtime.errors import UsageError

from ..graph.view import View, attribute


@dataclass(frozen=True)
class Placement:
    """Where Q/DQ stands for one kind of engine, on the same ranges. What `Rules` leaves at None is decided
    here.
    """

    outputs: bool
    """Also quantize what comes out of quantized layers, and what integer kernels make of it."""
    unsigned: bool
    """Activations as uint8 with a zero point over [low, high]; otherwise int8 with a zero point of 0, as
    TensorRT demands."""
    joins: tuple[str, ...]
    """Operators around which all tensors get one scale, besides those that only move values."""
    few_channels: int
    """Below so many input or output channels an int8 kernel mostly computes padding, see `is_tiny`."""
    large_depthwise: int | None
    """Grouped convolutions with a side from this up stay float; None: none does."""
    light_first: bool
    """Quantize a first layer with a small window that moves by two pixels?"""
    classifier: bool
    """Quantize the matrix that makes the logits?"""


PLACEMENTS = {
    "tensorrt": Placement(
        outputs=False,
        unsigned=False,
        joins=("Concat",),
        few_channels=16,
        large_depthwise=7,
        light_first=True,
        classifier=False,
    ),
    "cpu": Placement(
        outputs=True,
        unsigned=True,
        joins=(),
        few_channels=0,
        large_depthwise=None,
        light_first=False,
        classifier=True,
    ),
}
"""tensorrt: NVIDIA's recommendations; runs everywhere. cpu: for ONNX Runtime's CPU engine, as measured:
it has integer kernels only where outputs are quantized too, and merges a ReLU into one only where the zero
point is the smallest code (on a ResNet-20 int8 with zero points of 0 makes 9 of 19 convolutions integer,
uint8 all; TensorRT refuses the zero points), which one range around a Concat would undo (its kernel takes one
scale per input). A float layer between integer ones costs two conversions and two changes of memory order, so
there are as few of them as possible."""


@dataclass(frozen=True)
class Rules:
    """Choices of the user. None leaves a choice to the placement."""

    scale_floor: float = 1e-6
    """Smallest scale. A zero scale is a parse error, and below about 3e-8 it becomes zero when scales are
    made fp16."""
    few_channels: int | None = None
    """Convolutions with fewer input or output channels stay float, with the exceptions of `is_tiny`."""
    channel_multiple: int = 8
    """Channels in this multiple fill an int8 vector, so such a small dense layer is quantized all the same
    (ModelOpt)."""
    depthwise: Literal["int8", "float"] | None = None
    """Grouped convolutions: all int8, or all float."""
    first: bool | None = None
    """Quantize the layers that read the image?"""
    classifier: bool | None = None
    """Quantize the layer that makes the logits?"""
    exclude: tuple[str, ...] = ()
    """Layers to leave float: glob patterns on node names."""


class LayerFlags(Protocol):
    """The flags by which a user chooses layers: of an int8 export, and of `distill train --qat`."""

    @property
    def depthwise(self) -> str: ...
    @property
    def first_layer(self) -> str: ...
    @property
    def last_layer(self) -> str: ...
    @property
    def exclude(self) -> tuple[str, ...]: ...


def rules_of(flags: LayerFlags) -> Rules:
    """What the flags say; the placement decides what they leave open."""
    layer = {"auto": None, "int8": True, "float": False}
    return Rules(
        depthwise={"auto": None, "int8": "int8"}.get(flags.depthwise, "float"),
        exclude=flags.exclude,
        first=layer[flags.first_layer],
        classifier=layer[flags.last_layer],
    )


@dataclass
class Layout:
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


COMMUTING = ("MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Pad", "Identity")
"""They pick, move or pad values with zero, so quantizing before or after them is the same (doc, 5)."""
INTEGER = ("Add", "Mul", "Concat", "Sigmoid", "LeakyRelu", "AveragePool", "GlobalAveragePool")
"""Operators besides the layers that ONNX Runtime's CPU engine computes on 8-bit numbers."""
ACTIVATIONS = (
    "Relu",
    "Clip",
    "LeakyRelu",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Elu",
    "PRelu",
    "Gelu",
    "Mish",
    "Softplus",
)
CLIPPING = ("Relu", "Clip")
"""Activations that are nothing but the end of an unsigned range."""


def lay_out(model: ModelProto, placement: str = "tensorrt", rules: Rules | None = None) -> Layout:
    """Decide what to quantize. Raises UsageError for an unknown placement, a pattern without a match, or
    nothing to do.
    """
    if placement not in PLACEMENTS:
        raise UsageError(f"--placement {placement}: expected one of {', '.join(PLACEMENTS)}")
    rules, view, layout = rules or Rules(), View(model), Layout(placement)
    layout.excluded = matches(view, rules)
    for node in view.candidates():
        reason = stays_float(node, view, rules, PLACEMENTS[placement])
        if reason:
            layout.left_float[node.name] = reason
        else:
            layout.layers.append(node.name)
    if not layout.layers:
        reasons = sorted(set(layout.left_float.values())) or ["the graph has no convolution and no matrix"]
        raise UsageError(
            f"nothing to quantize: all {len(layout.left_float)} layers stay float ({'; '.join(reasons)}). "
            "Use the fp32 file, or a wider network"
        )
    layout.edges = list(dict.fromkeys(all_edges(view, layout.layers, PLACEMENTS[placement])))
    layout.tensors = list(dict.fromkeys(view.nodes[name].input[index] for name, index in layout.edges))
    return layout


def all_edges(view: View, layers: Sequence[str], placement: Placement) -> list[tuple[str, int]]:
    """(node name, input index) that read a Q/DQ pair, by every rule of the placement."""
    edges = layer_edges(layers) + skip_edges(view, layers)
    if placement.outputs:
        return edges + output_edges(view, layers, edges)
    edges += norm_edges(view, layers)
    return edges + concat_edges(view, edges)


def matches(view: View, rules: Rules) -> dict[str, int]:
    """{exclude pattern: number of nodes it matches}. Raises UsageError for a pattern without any."""
    found = {pattern: len(fnmatch.filter(view.nodes, pattern)) for pattern in rules.exclude}
    for pattern, matched in found.items():
        if not matched:
            names = ", ".join(node.name for node in view.candidates()[:5])
            raise UsageError(
                f"--exclude {pattern}: matched 0 of {len(view.nodes)} nodes. Names look like {names}"
            )
    return found


def moves(node: NodeProto, view: View) -> bool:
    """Does this operator only pick or move values, or pad with zeros (doc, 5)?"""
    if node.op_type != "Pad" or attribute(node, "mode", b"constant") != b"constant":
        return node.op_type in COMMUTING
    filling = node.input[2] if len(node.input) > 2 else ""
    return not filling or (filling in view.constants and not view.constant(filling).any())


# ---- which layers


def stays_float(
    node: NodeProto, view: View, rules: Rules, placement: Placement = PLACEMENTS["tensorrt"]
) -> str | None:
    """Why a weighted node is not quantized, or None when it is. The first rule that applies is given."""
    if any(fnmatch.fnmatchcase(node.name, pattern) for pattern in rules.exclude):
        return "excluded"
    if (
        node.op_type == "ConvTranspose"
    ):  # staff and ModelOpt name different weight axes; NVIDIA/TensorRT 2380, 4366
        return "transposed convolution: engines disagree on the axis of its scales"
    if not view.has_constant_matrix(node):
        return "the weight is not a constant matrix"
    if is_classifier(node, view) and not quantizes_classifier(node, rules, placement):
        return "makes the logits"
    if is_first(node, view) and not quantizes_first(node, view, rules, placement):
        return "reads the image"
    if node.op_type == "Conv":
        if is_float_depthwise(node, view, rules, placement):
            return "grouped convolution" if rules.depthwise == "float" else "large grouped kernel"
        if is_tiny(node, view, rules, placement):
            return "few channels"
        if placement.few_channels and is_pointwise_on_one_pixel(node, view):
            return "1 x 1 map (squeeze and excitation)"
    return None


def is_classifier(node: NodeProto, view: View) -> bool:
    """Does this layer's output reach the logits through no other weighted layer?"""
    weighted = {layer.name for layer in view.candidates()}
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


def quantizes_classifier(node: NodeProto, rules: Rules, placement: Placement) -> bool:
    """On a GPU it is a small share of the work, and every error goes straight to the result. On a CPU at
    batch 1 a matrix costs what its bytes cost (measured: 1000 x 2048 takes 0.41 ms instead of 0.81), and an
    integer Gemm puts out float logits; a convolution does not, so one that makes the logits stays float.
    """
    return (
        rules.classifier if rules.classifier is not None else placement.classifier and node.op_type != "Conv"
    )


def is_first(node: NodeProto, view: View) -> bool:
    """Does the image reach this layer through no other weighted layer?"""
    weighted = {layer.name for layer in view.candidates()}
    waiting, seen = [node.input[0]], set()
    while waiting:
        name = waiting.pop()
        if name in view.inputs:
            return True
        producer = view.producer.get(name)
        if producer is not None and producer.name not in weighted and name not in seen:
            seen.add(name)
            waiting += producer.input
    return False


def quantizes_first(node: NodeProto, view: View, rules: Rules, placement: Placement) -> bool:
    """ONNX Runtime gathers the three channels of every pixel of the window one by one before it multiplies,
    which costs more than a 3 x 3 window at stride 2 has to multiply (MobileNetV2 is 2 to 6 % faster with this
    layer in float, and closer to fp32), but not more than a 7 x 7 one (ResNet-50 is 25 % slower so), nor than
    a window at every pixel (ResNet-20: 4 % slower).
    """
    if rules.first is not None:
        return rules.first
    sides = view.constants[node.input[1]].dims[2:]  # the attribute kernel_shape is optional
    is_light = 0 < max(sides, default=0) <= 3 and min(attribute(node, "strides", [1])) > 1
    return placement.light_first or not is_light


def is_float_depthwise(node: NodeProto, view: View, rules: Rules, placement: Placement) -> bool:
    """Grouped with a large kernel: TensorRT stores such int8 weights at 4 bytes each, so nothing
    is gained.
    """
    if attribute(node, "group", 1) == 1 or rules.depthwise == "int8":
        return False
    if rules.depthwise == "float":
        return True
    side = max(view.constants[node.input[1]].dims[2:], default=0)
    return placement.large_depthwise is not None and side >= placement.large_depthwise


def is_tiny(node: NodeProto, view: View, rules: Rules, placement: Placement) -> bool:
    """ModelOpt's exclusion (`graph_utils.py`): under 16 channels on a side, unless dense, square and in a
    multiple of 8 with one side wide (or the first layer), or grouped with outputs in a multiple of 8 and
    every kernel side at least 3.
    """
    few = placement.few_channels if rules.few_channels is None else rules.few_channels
    outputs, inputs, *sides = view.constants[node.input[1]].dims
    if min(outputs, inputs) >= few:
        return False
    if attribute(node, "group", 1) > 1:
        return outputs % rules.channel_multiple != 0 or min(sides) < 3
    fills = outputs % rules.channel_multiple == 0 or inputs % rules.channel_multiple == 0
    wide = node.input[0] in view.inputs or max(outputs, inputs) >= few
    return not (fills and len(set(sides)) == 1 and wide)


def is_pointwise_on_one_pixel(node: NodeProto, view: View) -> bool:
    """A convolution of a 1 x 1 map is a matrix times a vector: not worth int8 (doc; ModelOpt leaves m or n =
    1 out).
    """
    return view.shapes.get(node.input[0], [None] * 4)[2:] == [1, 1]


# ---- where


def layer_edges(layers: Sequence[str]) -> list[tuple[str, int]]:
    """The data input of each layer: an integer kernel needs both of its inputs quantized, the weight is the
    other (doc, 1).
    """
    return [(name, 0) for name in layers]


def skip_edges(view: View, layers: Sequence[str]) -> list[tuple[str, int]]:
    """The skip input of each residual Add, so that the convolution with its fused add can put out int8 (doc,
    4).

    Nothing between the convolution and the Add. When both inputs are convolutions, the skip is the shorter
    branch.
    """
    found = []
    for node in view.model.graph.node:
        if node.op_type != "Add" or any(name in view.constants for name in node.input):
            continue
        fused = [
            index
            for index, name in enumerate(node.input)
            if name in view.producer and view.producer[name].name in layers and view.only_reader(name) is node
        ]
        if fused:
            main = max(fused, key=lambda index: view.depth[node.input[index]])
            found.append((node.name, 1 - main))
    return found


def norm_edges(view: View, layers: Sequence[str]) -> list[tuple[str, int]]:
    """What a quantized convolution gives to a LayerNormalization, through any Transpose: without the pair
    TensorRT takes a slower kernel with int8 in and half out (ModelOpt, pull request 1117).
    """
    found = []
    for name in layers:
        if view.nodes[name].op_type != "Conv":
            continue
        reader = first = view.only_reader(view.nodes[name].output[0])
        while reader is not None and reader.op_type in COMMUTING:
            reader = view.only_reader(reader.output[0])
        if first is not None and reader is not None and reader.op_type == "LayerNormalization":
            found.append((first.name, 0))
    return found


def concat_edges(view: View, edges: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """The inputs of each Concat whose result is quantized: with one scale on all sides it joins int8 maps
    (ModelOpt `concat_elimination`); otherwise what it joins is stored in float first.
    """
    quantized = {view.nodes[name].input[index] for name, index in edges}
    found = []
    for node in reversed(view.model.graph.node):
        if node.op_type == "Concat" and node.output[0] in quantized:
            mine = [(node.name, index) for index, name in enumerate(node.input) if name not in view.constants]
            quantized |= {node.input[index] for _, index in mine}
            found += mine
    return found


def output_edges(
    view: View, layers: Sequence[str], edges: Sequence[tuple[str, int]]
) -> list[tuple[str, int]]:
    """For ONNX Runtime's CPU engine: it uses an integer kernel only where the output is quantized too
    (measured).

    Every reader of what a convolution puts out after its clipping activation, and of what operators with an
    integer kernel make of quantized tensors. A matrix puts out float at no cost, and what is an output of the
    graph stays float.
    """
    quantized = {view.nodes[name].input[index] for name, index in edges}
    found = []
    for node in view.model.graph.node:
        data = [
            (node.name, index) for index, name in enumerate(node.input) if name and name not in view.constants
        ]
        is_layer = node.name in layers and node.op_type == "Conv"
        if is_layer or (is_integer(node, view) and any(node.input[index] in quantized for _, index in data)):
            found += [] if is_layer else data
            tensor = after_clipping(node.output[0], view)
            if tensor not in view.outputs:
                quantized.add(tensor)
                found += [(reader.name, index) for reader, index in view.consumers[tensor]]
    return found


def is_integer(node: NodeProto, view: View) -> bool:
    """Has ONNX Runtime's CPU engine a kernel for it on 8-bit numbers? Not for a sum or product with a
    constant.
    """
    if node.op_type in INTEGER:
        return not any(name in view.constants for name in node.input)
    return moves(node, view)


def after_clipping(tensor: str, view: View) -> str:
    """The output of the ReLU or Clip that alone reads `tensor`, or `tensor`: the end of the uint8 range does
    the clipping.
    """
    reader = view.only_reader(tensor)
    return reader.output[0] if reader is not None and reader.op_type in CLIPPING else tensor
