"""Who produces and who reads each tensor of an ONNX graph: what every rule about a graph asks for.

In:  an ONNX model.
Out: a `View`; it does not follow later edits of the model.
Elsewhere: the rules (export.int8.quantize).
"""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

WEIGHTED = ("Conv", "Gemm", "MatMul")
"""Operators that hold a weight and have an int8 kernel."""


class View:
    """A model read once: producers, consumers, constants, shapes."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.nodes = {node.name: node for node in model.graph.node}
        self.producer: dict[str, NodeProto] = {}
        self.consumers: dict[str, list[tuple[NodeProto, int]]] = defaultdict(list)
        for node in model.graph.node:
            for output in node.output:
                self.producer[output] = node
            for index, name in enumerate(node.input):
                self.consumers[name].append((node, index))
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.inputs = [value.name for value in model.graph.input if value.name not in self.constants]
        self.outputs = [value.name for value in model.graph.output]

    def constant(self, name: str) -> np.ndarray:
        """The value of an initializer."""
        return numpy_helper.to_array(self.constants[name])

    def weighted(self) -> list[NodeProto]:
        """Conv, and Gemm or MatMul with a constant matrix, in the graph's order."""
        return [
            node for node in self.candidates() if node.op_type in WEIGHTED and self.has_constant_matrix(node)
        ]

    def candidates(self) -> list[NodeProto]:
        """Every node that multiplies a map with a weight, constant or not, in the graph's order."""
        return [node for node in self.model.graph.node if node.op_type in (*WEIGHTED, "ConvTranspose")]

    def has_constant_matrix(self, node: NodeProto) -> bool:
        """Is the weight of this candidate an initializer, of a shape that has output channels?"""
        return (
            len(node.input) > 1
            and node.input[1] in self.constants
            and (node.op_type == "Conv" or len(self.constants[node.input[1]].dims) == 2)
        )

    def only_reader(self, tensor: str) -> NodeProto | None:
        """The one node that reads `tensor`, or None when there are more, none, or it is an output of the
        graph.
        """
        readers = self.consumers[tensor]
        return readers[0][0] if len(readers) == 1 and tensor not in self.outputs else None

    @cached_property
    def shapes(self) -> dict[str, list[int | None]]:
        """Sizes by tensor name as far as shape inference gets; None where a size is dynamic."""
        graph = onnx.shape_inference.infer_shapes(self.model).graph
        return {
            value.name: [
                d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim
            ]
            for value in [*graph.input, *graph.value_info, *graph.output]
            if value.type.tensor_type.HasField("shape")
        }

    @cached_property
    def depth(self) -> dict[str, int]:
        """Number of nodes on the longest way from the input to each tensor."""
        found: dict[str, int] = defaultdict(int)
        for node in self.model.graph.node:
            level = 1 + max((found[name] for name in node.input), default=0)
            for output in node.output:
                found[output] = level
        return found


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """The value of a node's attribute, or `default` when it is not set."""
    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def along(values: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """(channels,) in a shape that multiplies axis `axis` of a tensor with `rank` axes."""
    return values.reshape([-1 if i == axis else 1 for i in range(rank)])


def channel_axis(node: NodeProto) -> int:
    """Where the output channels are: axis 0 of Conv and of a transposed Gemm, axis 1 of any other matrix."""
    return 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1
