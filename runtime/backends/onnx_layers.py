"""Which layers of an .onnx file have weights, and of which shape: without the onnx package or an engine.

In:  a file.
Out: name of a node -> operator, shape of its weights and how they are meant; ArtifactError where the file is
not ONNX.
Elsewhere: reading the bytes (runtime.backends.onnx_file), how long layers take (bench.measuring.layers).
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path

from ..files import open_regular
from . import onnx_file
from .onnx_file import BYTES, GRAPH, GRAPH_NODE, NODE_INPUT, NODE_OPERATOR, NODE_OUTPUT, TENSOR_NAME, VARINT

GRAPH_INITIALIZER, TENSOR_DIMS, NODE_NAME, NODE_ATTRIBUTE, ATTRIBUTE_NAME, ATTRIBUTE_INT = 5, 1, 3, 5, 1, 3
"""Fields of GraphProto, TensorProto, NodeProto and AttributeProto (onnx.proto of the ONNX project)."""
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
SAME_SHAPE = ("DequantizeLinear", "QuantizeLinear", "Cast", "Identity")
"""Operators through which weights pass and keep their shape."""


@dataclass(frozen=True)
class Weighted:
    """One layer."""

    operator: str
    shape: tuple[int, ...]
    """Of its weights: (outputs, inputs of a group, height, width) of a convolution, (inputs, outputs of a
    group, height, width) of a transposed one."""
    group: int = 1
    """Of a convolution."""
    is_transposed: bool = False
    """Are the weights of a Gemm (outputs, inputs)? Else they are (inputs, outputs), as those of a MatMul."""


def weighted_layers(path: str | Path) -> dict[str, Weighted]:
    """The layers of the main graph, by name; nodes without a name are left out. Raises ArtifactError."""
    path = Path(path)
    try:
        with open_regular(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _layers(content)
    except (ValueError, IndexError) as error:
        raise onnx_file.not_onnx(str(path), error) from error


def _layers(content: mmap.mmap) -> dict[str, Weighted]:
    graph = next((part for part in onnx_file.parts(content) if part[0] == GRAPH), (GRAPH, 0, 0))
    shapes: dict[str, tuple[int, ...]] = {}
    nodes = []
    for field, start, end in onnx_file.parts(content, *graph[1:]):
        if field == GRAPH_INITIALIZER:
            name, shape = _tensor(content, start, end)
            shapes[name] = shape
        elif field == GRAPH_NODE:
            nodes.append((onnx_file.texts(content, start, end), (start, end)))
    found = {}
    for node, place in nodes:
        operator, inputs = node.get(NODE_OPERATOR, [""])[0], node.get(NODE_INPUT, [])
        if operator in SAME_SHAPE and inputs and inputs[0] in shapes:
            shapes[node.get(NODE_OUTPUT, [""])[0]] = shapes[inputs[0]]
        elif operator in WEIGHTED and len(inputs) > 1 and inputs[1] in shapes and NODE_NAME in node:
            number = _whole_attributes(content, *place)
            found[node[NODE_NAME][0]] = Weighted(
                operator, shapes[inputs[1]], number.get("group", 1), bool(number.get("transB", 0))
            )
    return found


def _whole_attributes(content: mmap.mmap, start: int, end: int) -> dict[str, int]:
    """The attributes of a node that are whole numbers, by name."""
    found = {}
    for field, *place in onnx_file.parts(content, start, end):
        if field == NODE_ATTRIBUTE:
            name, value = "", None
            for inner, kind, first, last in onnx_file.fields(content, *place):
                if inner == ATTRIBUTE_NAME and kind == BYTES:
                    name = content[first:last].decode(errors="replace")
                elif inner == ATTRIBUTE_INT and kind == VARINT:
                    value = onnx_file.varint(content, first)[0]
            if value is not None:
                found[name] = value
    return found


def _tensor(content: mmap.mmap, start: int, end: int) -> tuple[str, tuple[int, ...]]:
    """Name and dimensions; the data are skipped."""
    name, dims = "", []
    for field, kind, first, last in onnx_file.fields(content, start, end):
        if field == TENSOR_DIMS and kind == VARINT:
            dims.append(onnx_file.varint(content, first)[0])
        elif field == TENSOR_DIMS and kind == BYTES:
            place = first
            while place < last:
                value, place = onnx_file.varint(content, place)
                dims.append(value)
        elif field == TENSOR_NAME and kind == BYTES:
            name = content[first:last].decode(errors="replace")
    return name, tuple(dims)
