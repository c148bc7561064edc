"""The few changes that every rewrite of an ONNX graph is made of.

In:  an ONNX model; new nodes in topological order, new values of constants, names.
Out: a changed copy (`copy`, `without_constant_nodes`, `with_values`), or the same model changed (the others).
Elsewhere: who reads what (export.graph.view), what is changed and why (export.graph.rewrite, export.int8.qdq,
export.fp16.cast).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, helper, numpy_helper


def copy(model: ModelProto) -> ModelProto:
    """The same model once more; what is done to one does not change the other."""
    result = ModelProto()
    result.CopyFrom(model)
    return result


def copy_node(node: NodeProto, **changes: Any) -> NodeProto:
    """The same node once more, with other `name`, `op_type` or `domain` where given."""
    result = NodeProto()
    result.CopyFrom(node)
    for field, value in changes.items():
        setattr(result, field, value)
    return result


def replace_nodes(model: ModelProto, nodes: Iterable[NodeProto]) -> None:
    """Give the graph these nodes in this order; they may be some of its own."""
    copies = [copy_node(node) for node in nodes]  # clearing the field frees the old ones
    del model.graph.node[:]
    model.graph.node.extend(copies)


def add_constant(model: ModelProto, name: str, value: np.ndarray | np.generic) -> str:
    """A new initializer; returns its name."""
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def with_values(model: ModelProto, values: Mapping[str, np.ndarray]) -> ModelProto:
    """A copy whose initializers of these names have these values; a name that it does not have is passed
    over.
    """
    result = copy(model)
    for tensor in result.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    return result


def drop_unread(model: ModelProto) -> None:
    """Remove initializers that no node reads and that are not an output."""
    read = {*names_read(model.graph), *(value.name for value in model.graph.output)}
    tensors = model.graph.initializer
    for index in reversed([i for i, tensor in enumerate(tensors) if tensor.name not in read]):
        del tensors[index]


def names_read(graph: GraphProto) -> Iterator[str]:
    """Names of the tensors that nodes read, also those inside the branches of an If or the body of a Loop."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for inner in _subgraphs(attribute):
                yield from names_read(inner)
                yield from (value.name for value in inner.output)


def _subgraphs(attribute: AttributeProto) -> Sequence[GraphProto]:
    return [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs


def fresh(name: str, taken: Collection[str]) -> str:
    """`name`, or `name` with the first number that is not taken yet."""
    return next(each for each in (name, *(f"{name}_{i}" for i in range(len(taken) + 1))) if each not in taken)


def with_outputs(model: ModelProto, tensors: Iterable[str]) -> ModelProto:
    """A copy that gives out these tensors too, their types left to inference; those it gives out already stay
    once.
    """
    result = copy(model)
    present = {value.name for value in result.graph.output}
    result.graph.output.extend(
        helper.make_empty_tensor_value_info(name) for name in tensors if name not in present
    )
    return result


def without_constant_nodes(model: ModelProto) -> ModelProto:
    """A copy in which numbers of Constant nodes are initializers, so that there is one kind of constant."""
    result, kept = copy(model), []
    for node in result.graph.node:
        value = constant_value(node) if node.op_type == "Constant" else None
        if value is None:
            kept.append(node)
        else:
            add_constant(result, node.output[0], value)
    replace_nodes(result, kept)
    return result


def constant_value(node: NodeProto) -> np.ndarray | None:
    """The numbers of a Constant node; None for text and sparse tensors."""
    name, value = node.attribute[0].name, helper.get_attribute_value(node.attribute[0])
    if name == "value":
        return numpy_helper.to_array(value)
    kinds = {
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_int": np.int64,
        "value_ints": np.int64,
    }
    return np.array(value, kinds[name]) if name in kinds else None
