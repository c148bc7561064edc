"""The types of a graph: from float32 to half around whatever Q/DQ there is, and back to float32 as half would
compute it.

In:  ONNX model, opset 19 or later, whose float tensors are float32; names of nodes that stay float32.
Out: `to_half`, the fp16 graph with float32 inputs and outputs; `rounded`, its numbers on an engine without
half.
Elsewhere: which nodes have to stay float32 (export.fp16.overflow), Q/DQ (export.int8.quantize).

Why not `onnxruntime.transformers.float16` (1.32, tried on graphs of this exporter): between two neighbors
that are kept in fp32 it stores half, so that what overflows becomes infinite all the same; it appends its
casts behind the graph, which the ONNX checker refuses; it saturates weights without a word; in front of a
kept int8 layer it puts a Cast between DequantizeLinear and layer, which TensorRT does not fuse.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from runtime.errors import UsageError

from ..graph import edit
from ..graph.view import View

OPSET = 19
"""The first in which Q/DQ scales may be fp16."""
SMALLEST = np.finfo(np.float16).smallest_subnormal
"""6e-8: no scale may be less, because it would round to zero, which TensorRT does not parse."""
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
SUFFIX: dict[int, str] = {FLOAT: "float", HALF: "half"}
PAIR = ("QuantizeLinear", "DequantizeLinear")


def to_half(model: ModelProto, keep: Collection[str] = ()) -> ModelProto:
    """A copy that computes in fp16 but for the nodes named in `keep`; inputs and outputs of the graph stay
    float32.

    All float inputs of a node have one type, as strongly typed engines demand, unless ONNX fixes it (the
    scales of a Resize stay float32). A tensor wanted in another type is cast once for all readers. A
    QuantizeLinear takes the type its tensor is made in; a DequantizeLinear has, per type that is read, a
    scale of that type, because the scale decides what it puts out. Raises UsageError for an opset below 19, a
    subgraph, a name in `keep` that no node has, a tensor whose type is unknown.
    """
    result = edit.without_constant_nodes(model)
    require_convertible(result, keep)
    _Conversion(result, frozenset(keep)).run()
    edit.drop_unread(result)
    onnx.checker.check_model(result, full_check=True)
    return result


def rounded(half: ModelProto) -> ModelProto:
    """An fp16 graph as a float32 graph that rounds to half everything that the fp16 graph stores in half.

    For ONNX Runtime's CPU engine, which has next to no half kernels on x86: it computes in float32 and
    removes the conversions between nodes, so that 1e6 passes an fp16 graph unharmed (measured, 1.32: Conv,
    Relu, Mul, Sqrt, at every optimization level). Pairs of conversions that a float32 graph holds it leaves
    alone. Sums are float32, as in the accumulators of a GPU.
    """
    kinds, result = types(half), edit.copy(half)
    del result.graph.value_info[:]
    for tensor in result.graph.initializer:
        if tensor.data_type == HALF:
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
            )
    nodes = list(result.graph.node)
    ordered = []
    for node in nodes:
        stored = [name for name in node.output if kinds.get(name) == HALF]
        if node.op_type == "Cast" and stored:
            node.attribute[0].i = FLOAT
        ordered.append(node)
        for name in stored:
            node.output[list(node.output).index(name)] = f"{name}__exact"
            ordered += [
                helper.make_node("Cast", [f"{name}__exact"], [f"{name}__stored"], to=HALF),
                helper.make_node("Cast", [f"{name}__stored"], [name], to=FLOAT),
            ]
    edit.replace_nodes(result, ordered)
    return result


def require_convertible(model: ModelProto, keep: Collection[str]) -> None:
    """Raise UsageError for what `to_half` cannot do."""
    opset = next((entry.version for entry in model.opset_import if entry.domain == ""), 0)
    if opset < OPSET:
        raise UsageError(
            f"opset {opset}: fp16 needs {OPSET} or later, the first with fp16 scales. Export with --opset"
            f" {OPSET}"
        )
    kinds, names = types(model), {node.name for node in model.graph.node}
    for node in model.graph.node:
        if any(
            attr.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for attr in node.attribute
        ):
            raise UsageError(
                f"node {node.name} ({node.op_type}) holds a graph of its own: fp16 needs a network without"
                " branches that depend on data. Export without --fp16"
            )
        unknown = [name for name in node.output if name and name not in kinds]
        if unknown:
            raise UsageError(
                f"node {node.name} ({node.op_type}): the type of its output {unknown[0]} is not known to"
                " ONNX. Export without --fp16"
            )
    missing = sorted(set(keep) - names)
    if missing:
        raise UsageError(
            f"{missing[0]} is to stay fp32, but no node has this name. "
            f"Names look like {', '.join(sorted(names)[:5])}"
        )


class _Conversion:
    """One model on its way to half: first the type of every tensor, then who wants it in which type, then the
    new nodes.
    """

    def __init__(self, model: ModelProto, keep: frozenset[str]) -> None:
        self.model, self.keep, self.view = model, keep, View(model)
        self.floats = {name for name, kind in types(model).items() if kind == FLOAT}
        self.opset = next(entry.version for entry in model.opset_import if entry.domain == "")
        self.made_as = self._types_made()
        """The type each float tensor is made in."""
        self.wanted: dict[str, set[int]] = defaultdict(set)
        """The types each float tensor is read in."""
        self.taken = {*self.floats, *self.view.producer, *self.view.constants}
        self.names: dict[tuple[str, int], str] = {}

    def run(self) -> None:
        for node in self.model.graph.node:
            for index, name in enumerate(node.input):
                if name in self.floats:
                    self.wanted[name].add(self.input_type(node, index))
        for name in self.view.outputs:
            if name in self.floats:
                self.wanted[name].add(FLOAT)
        for node in self.model.graph.node:
            if self._is_read_in_both_types(node):
                self.wanted[node.input[1]].add(FLOAT)
        self._write_constants()
        ordered = [node for name in self.view.inputs for node in self._casts(name)]
        for node in list(self.model.graph.node):
            ordered += self._rewritten(node)
        for value in list(self.model.graph.value_info):
            if (
                value.name not in self.view.producer or value.name in self.view.outputs
            ):  # int8 graphs describe what is gone
                self.model.graph.value_info.remove(value)
            elif value.name in self.floats:
                value.type.tensor_type.elem_type = self.made_as[value.name]
        edit.replace_nodes(self.model, ordered)

    # -- types

    def _types_made(self) -> dict[str, int]:
        made_as: dict[str, int] = dict.fromkeys([*self.view.inputs, *self.view.constants], FLOAT)
        for node in self.model.graph.node:
            made_as |= {
                name: self.output_type(node, index)
                for index, name in enumerate(node.output)
                if name in self.floats
            }
        return made_as

    def input_type(self, node: NodeProto, index: int) -> int:
        """In which type a node reads a float input."""
        if node.op_type == "QuantizeLinear":
            return self.made_as[node.input[0]]
        if node.op_type == "DequantizeLinear":
            return self.made_as[node.output[0]]
        return HALF if node.name not in self.keep and takes_half(self._parameters(node)[0], index) else FLOAT

    def output_type(self, node: NodeProto, index: int) -> int:
        """In which type a node makes a float output: half when ONNX gives it the type of an input that is
        half.
        """
        if node.op_type == "DequantizeLinear":
            tensor = node.output[0]
            wanted = {
                self.input_type(*reader)
                for reader in self.view.consumers[tensor]
                if reader[0].op_type != "QuantizeLinear"
            }
            return FLOAT if wanted <= {FLOAT} and (wanted or tensor in self.view.outputs) else HALF
        inputs, outputs = self._parameters(node)
        if node.name in self.keep or not takes_half(outputs, index):
            return FLOAT
        like = formal(outputs, index).type_str
        return (
            HALF
            if any(
                name in self.floats and formal(inputs, at).type_str == like
                for at, name in enumerate(node.input)
            )
            else FLOAT
        )

    def _parameters(self, node: NodeProto) -> tuple[Any, Any]:
        """What ONNX says about a node's inputs and outputs; nothing about operators of other domains, which
        stay float.
        """
        if node.domain not in ("", "ai.onnx"):
            return (), ()
        schema = onnx.defs.get_schema(node.op_type, self.opset, "")
        return schema.inputs, schema.outputs

    # -- writing

    def name(self, tensor: str, kind: int) -> str:
        """What a float tensor is called in one of the types: as before in the type it is made in, or given
        out in.
        """
        if kind == (FLOAT if tensor in self.view.outputs else self.made_as[tensor]):
            return tensor
        if (tensor, kind) not in self.names:
            self.names[tensor, kind] = edit.fresh(f"{tensor}_{SUFFIX[kind]}", self.taken)
            self.taken.add(self.names[tensor, kind])
        return self.names[tensor, kind]

    def _write_constants(self) -> None:
        """Each float initializer in the types that are read."""
        scales = {node.input[1] for node in self.model.graph.node if node.op_type in PAIR}
        for name in self.view.constants:
            kinds = self.wanted[name]
            if name not in self.floats or HALF not in kinds:
                continue
            value = self.view.constant(name)
            half = scale_to_half(value) if name in scales else to_float16(value)
            if FLOAT in kinds:
                edit.add_constant(self.model, self.name(name, HALF), half)
                if name in scales:  # Q in one type and DQ in the other must still mean the same steps
                    self.view.constants[name].CopyFrom(numpy_helper.from_array(half.astype(np.float32), name))
            else:
                self.made_as[name] = HALF
                self.view.constants[name].CopyFrom(numpy_helper.from_array(half, name))

    def _rewritten(self, node: NodeProto) -> list[NodeProto]:
        """The node with its inputs and outputs under their new names, then what casts its outputs."""
        copy = edit.copy_node(node)
        for index, name in enumerate(node.input):
            if name in self.floats:
                copy.input[index] = self.name(name, self.input_type(node, index))
        for index, name in enumerate(node.output):
            if name in self.floats:
                copy.output[index] = self.name(name, self.made_as[name])
        if self._is_read_in_both_types(node):
            return [copy, self._float_copy(node)]
        return [copy, *(cast for name in node.output for cast in self._casts(name))]

    def _casts(self, tensor: str) -> list[NodeProto]:
        """The one Cast of a tensor that is read in a type it is not made in."""
        others = self.wanted[tensor] - {self.made_as[tensor]} if tensor in self.floats else set()
        return [
            helper.make_node(
                "Cast",
                [self.name(tensor, self.made_as[tensor])],
                [self.name(tensor, kind)],
                f"{self.name(tensor, kind)}_Cast",
                to=kind,
            )
            for kind in others
        ]

    def _is_read_in_both_types(self, node: NodeProto) -> bool:
        """Is it a DequantizeLinear that both half and float32 nodes read?"""
        return (
            node.op_type == "DequantizeLinear"
            and self.made_as[node.output[0]] == HALF
            and FLOAT in self.wanted[node.output[0]]
        )

    def _float_copy(self, node: NodeProto) -> NodeProto:
        """A second DequantizeLinear for float32 readers: a Cast behind the first would stand between it and
        the layer.
        """
        copy = edit.copy_node(node, name=f"{node.name}_float")
        copy.input[1] = self.name(node.input[1], FLOAT)
        copy.output[0] = self.name(node.output[0], FLOAT)
        return copy


def types(model: ModelProto) -> dict[str, int]:
    """Element type by tensor name, as far as ONNX knows it."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    found = {tensor.name: tensor.data_type for tensor in graph.initializer}
    return found | {
        value.name: value.type.tensor_type.elem_type
        for value in [*graph.input, *graph.value_info, *graph.output]
    }


def float_tensors(model: ModelProto) -> list[str]:
    """What is float32 or half in a graph and no constant, in the graph's order."""
    kinds = types(model)
    names = [*View(model).inputs, *(name for node in model.graph.node for name in node.output)]
    return [name for name in names if kinds.get(name) in (FLOAT, HALF)]


def formal(parameters: Any, index: int) -> Any:
    """ONNX's description of an input or output; the last one stands for all that follow (Concat)."""
    return parameters[min(index, len(parameters) - 1)]


def takes_half(parameters: Any, index: int) -> bool:
    return bool(parameters) and "tensor(float16)" in formal(parameters, index).types


def to_float16(value: np.ndarray) -> np.ndarray:
    """Rounded to even; infinite beyond 65504, which a run shows."""
    with np.errstate(over="ignore"):
        return value.astype(np.float16)


def scale_to_half(scale: np.ndarray) -> np.ndarray:
    """No scale may become zero: a parse error in TensorRT."""
    return np.maximum(to_float16(scale), np.float16(SMALLEST))
