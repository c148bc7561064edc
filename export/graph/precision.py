"""In which precision each operator of an ONNX graph computes, and what share of the multiply-accumulates that
is.

In:  any ONNX model, ours or foreign, with or without Q/DQ; on wish the size of its images.
Out: one `Row` per operator type, the costliest first.
Elsewhere: multiply-accumulates of fp32 layers by name (export.graph.macs), what the file says about itself
(runtime.artifact).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import onnx
from onnx import ModelProto, NodeProto, TensorProto

from . import edit
from .macs import FACTORS, of_node

CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "Cast", "Constant", "Identity")
"""What only changes the form of numbers; counted apart."""
INTEGERS = (TensorProto.INT8, TensorProto.UINT8)
NAMES: dict[int | None, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",
}
PRECISIONS = ("int8", "fp16", "fp32", "other")


@dataclass
class Row:
    """All operators of one type."""

    operator: str
    count: Counter[str] = field(default_factory=Counter)
    """Precision, one of PRECISIONS, to number of nodes."""
    macs: Counter[str] = field(default_factory=Counter)
    """Precision to multiply-accumulates of one image; only where `macs_known`."""
    macs_known: bool = True
    """False when the shapes of a layer could not be inferred."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "operator": self.operator,
            "count": dict(self.count),
            "macs": dict(self.macs) if self.macs_known else None,
        }


def table(model: ModelProto, size: tuple[int, int] | None = None) -> list[Row]:
    """Operators by type. A multiplying one is int8 when both its factors are, another one when all its
    changing inputs are: either 8-bit numbers themselves, or fresh from a DequantizeLinear of such.

    size: (height, width) of the images, where the model leaves them free.
    """
    graph = _inferred(model, size).graph
    types, shapes = _types_and_shapes(graph)
    integer = {
        node.output[0]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and types.get(node.input[0]) in INTEGERS
    }
    integer |= {name for name, kind in types.items() if kind in INTEGERS}
    fixed = {tensor.name for tensor in graph.initializer} | {
        node.output[0] for node in graph.node if node.op_type == "Constant"
    }
    rows: dict[str, Row] = {}
    for node in graph.node:
        if node.op_type in CONVERSIONS:
            continue
        row = rows.setdefault(node.op_type, Row(node.op_type))
        precision = _precision(node, integer, types, fixed)
        row.count[precision] += 1
        if node.op_type in FACTORS:
            macs = of_node(node, shapes)
            row.macs_known &= macs is not None
            row.macs[precision] += macs or 0
    return sorted(rows.values(), key=lambda row: (-row.macs.total(), -row.count.total(), row.operator))


def conversions(model: ModelProto) -> dict[str, int]:
    """Numbers of QuantizeLinear, DequantizeLinear and Cast nodes."""
    found = Counter(node.op_type for node in model.graph.node)
    return {name: found[name] for name in ("QuantizeLinear", "DequantizeLinear", "Cast")}


def shares(rows: list[Row]) -> dict[str, float] | None:
    """Percent of all multiply-accumulates by precision; None when they are not known, or there are none."""
    total = sum((row.macs for row in rows), Counter())
    if not total.total() or not all(row.macs_known for row in rows):
        return None
    return {name: 100 * total[name] / total.total() for name in PRECISIONS}


def _precision(node: NodeProto, integer: set[str], types: dict[str, int], fixed: set[str]) -> str:
    if node.op_type in FACTORS:
        read = [node.input[place] for place in FACTORS[node.op_type]]
    else:
        read = [name for name in node.input if name and name not in fixed]
    if read and all(name in integer for name in read):
        return "int8"
    return NAMES.get(types.get(node.output[0]), "other")


def _inferred(model: ModelProto, size: tuple[int, int] | None) -> ModelProto:
    """A copy for one image, with the type and shape of every tensor that inference finds."""
    one = edit.copy(model)
    constants = {tensor.name for tensor in one.graph.initializer}
    for value in one.graph.input:
        sizes = value.type.tensor_type.shape.dim
        if value.name in constants or len(sizes) != 4:
            continue
        for place, wanted in zip(sizes, (1, None, *(size or (None, None))), strict=True):
            if wanted and not place.HasField("dim_value"):
                place.dim_value = wanted
    for value in one.graph.output:  # its own free batch would contradict the one image
        value.type.tensor_type.ClearField("shape")
    try:
        return onnx.shape_inference.infer_shapes(one, data_prop=True)
    except (
        onnx.shape_inference.InferenceError
    ):  # a foreign graph that contradicts itself: its nodes can still be counted
        return one


def _types_and_shapes(graph: onnx.GraphProto) -> tuple[dict[str, int], dict[str, list[int]]]:
    """{tensor: element type} and {tensor: sizes}, the latter without those that are not known to the last
    size.
    """
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        kind = value.type.tensor_type
        types.setdefault(value.name, kind.elem_type)
        if kind.HasField("shape") and all(place.HasField("dim_value") for place in kind.shape.dim):
            shapes.setdefault(value.name, [place.dim_value for place in kind.shape.dim])
    return types, shapes
