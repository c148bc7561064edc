"""What each layer of a graph costs: multiply-accumulates of one image.

In:  ONNX model with one image input; or one node and the shapes around it.
Out: {layer name: multiply-accumulates} of the layers with a constant weight (Conv, Gemm, MatMul); the sum
over everything that multiplies; None for a node whose shapes are not known.
Elsewhere: shares by precision, also of graphs that cannot be run (export.graph.precision), which layers
become int8 (export.int8.rules).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from onnx import ModelProto, NodeProto

from . import edit, run
from .view import View, attribute

FACTORS = {
    "Conv": (0, 1),
    "ConvTranspose": (0, 1),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "ConvInteger": (0, 1),
    "MatMulInteger": (0, 1),
    "QLinearConv": (0, 3),
    "QLinearMatMul": (0, 3),
}
"""The operators that multiply, and the places of the two factors among their inputs."""


def count(model: ModelProto) -> dict[str, int]:
    """Multiply-accumulates of the layers with a constant weight by node name, in the graph's order; one
    image, bias not counted.
    """
    return {node.name: macs for node, macs in _counted(model, View(model).weighted())}


def total(model: ModelProto) -> int:
    """Multiply-accumulates of everything that multiplies, products of two activations included; one image,
    biases not counted.
    """
    nodes = [node for node in model.graph.node if node.op_type in FACTORS]
    return sum(macs for _, macs in _counted(model, nodes))


def of_node(node: NodeProto, shapes: Mapping[str, Sequence[int]]) -> int | None:
    """Multiply-accumulates of a node of FACTORS from the shapes of its factors and its output, or None where
    one that is needed is not known.

    Each value that a layer puts out takes as many as its channel has weights.
    """
    first, second = (shapes.get(node.input[place]) for place in FACTORS[node.op_type])
    made = shapes.get(node.output[0])
    if node.op_type == "ConvTranspose":  # each value that goes in meets the kernels of all outputs
        return None if first is None or second is None else math.prod(first) * math.prod(second[1:])
    if made is None or second is None:
        return None
    if "Conv" in node.op_type:
        return math.prod(made) * math.prod(second[1:])
    rows_are_outputs = node.op_type == "Gemm" and attribute(node, "transB", 0)
    return math.prod(made) * (second[-1] if rows_are_outputs or len(second) == 1 else second[-2])


def _counted(model: ModelProto, nodes: Sequence[NodeProto]) -> list[tuple[NodeProto, int]]:
    """Sizes are found by running one image: shape inference does not get through every Reshape."""
    factors = [node.input[place] for node in nodes for place in FACTORS[node.op_type]]
    shapes = _measured(model, [*factors, *(node.output[0] for node in nodes)])
    found = [(node, of_node(node, shapes)) for node in nodes]
    return [(node, macs) for node, macs in found if macs is not None]


def _measured(model: ModelProto, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors of a graph for one image."""
    view = View(model)
    fixed = {name: tuple(tensor.dims) for name, tensor in view.constants.items()}
    wanted = [name for name in dict.fromkeys(names) if name in view.producer]
    if not wanted:
        return fixed
    session = run.session(edit.with_outputs(model, wanted))
    taken = session.get_inputs()[0]
    image = np.zeros([size if isinstance(size, int) else 1 for size in taken.shape], np.float32)
    outputs = session.run(wanted, {taken.name: image})
    found = {name: value.shape for name, value in zip(wanted, outputs, strict=True)}
    return fixed | found | {taken.name: image.shape}
