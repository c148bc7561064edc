"""QuantizeLinear and DequantizeLinear nodes of an int8 graph: their names, their constants, their order.

In:  a model to change; scales, zero points and int8 weights, one call each; then the edges that read a pair.
Out: the same model with Q/DQ: TENSOR_int8, TENSOR_dequantized and TENSOR_scale for every quantized tensor.
Elsewhere: which tensors (export.int8.rules), which scales (export.int8.quantize).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto, helper

from ..graph import edit


class Int8Weight(NamedTuple):
    """A weight as the file holds it: steps x scale, the scale of its channel along `channel_axis`, is the
    float weight.
    """

    steps: np.ndarray
    """int8, the weight's shape, -127 to 127."""
    scales: np.ndarray
    """float32 (channels,), above 0."""


class Writer:
    """Adds Q/DQ to a model: scales and zero points as initializers, nodes in topological order."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.after: dict[str, list[NodeProto]] = {}
        self.first: list[NodeProto] = []
        self.weights: dict[str, Int8Weight] = {}
        self.layers: dict[str, str] = {}
        self.inputs: list[tuple[str, int, str]] = []
        self.unbiased: dict[str, str] = {}
        self.padded: set[str] = set()
        self.split: set[str] = set()

    def activation(
        self, tensor: str, scale: np.float32, zero: np.int8 | np.uint8, is_padded: bool = False
    ) -> None:
        scale_and_zero = self._constants(tensor, np.asarray(scale), np.asarray(zero))
        self.after[tensor] = [
            helper.make_node(
                "QuantizeLinear", [tensor, *scale_and_zero], [f"{tensor}_int8"], f"{tensor}_QuantizeLinear"
            ),
            helper.make_node(
                "DequantizeLinear",
                [f"{tensor}_int8", *scale_and_zero],
                [f"{tensor}_dequantized"],
                f"{tensor}_DequantizeLinear",
            ),
        ]
        if is_padded:
            self.padded.add(tensor)
            del self.after[tensor][0]

    def keep_float(
        self, name: str, index: int, tensor: str, scale: np.float32, zero: np.int8 | np.uint8
    ) -> None:
        """Let a float layer read the tensor through a Clip that changes nothing, so that no DequantizeLinear
        is next to it.
        """
        held = f"{tensor}_held"
        self.inputs.append((name, index, held))
        if any(node.output[0] == held for node in self.after[tensor]):
            return
        codes = np.iinfo(zero.dtype)
        names = [f"{tensor}_low", f"{tensor}_high"]
        for each, code in zip(names, (codes.min, codes.max), strict=True):
            edit.add_constant(self.model, each, np.float32((code - int(zero)) * scale))
        self.after[tensor].append(
            helper.make_node("Clip", [f"{tensor}_dequantized", *names], [held], f"{tensor}_Clip")
        )

    def weight(self, node: NodeProto, given: Int8Weight, axis: int) -> None:
        name = node.input[1]
        if name in self.weights and not self._same(
            name, given
        ):  # another layer shares the fp32 weight, but not this one
            name = f"{name}_{node.name}"
        self.layers[node.name] = f"{name}_dequantized"
        if name in self.weights:
            return
        self.weights[name] = given
        scales_and_zeros = self._constants(
            name, given.scales.astype(np.float32), np.zeros(given.scales.shape, np.int8)
        )
        edit.add_constant(self.model, f"{name}_int8", given.steps)
        self.first.append(
            helper.make_node(
                "DequantizeLinear",
                [f"{name}_int8", *scales_and_zeros],
                [f"{name}_dequantized"],
                f"{name}_DequantizeLinear",
                axis=axis,
            )
        )

    def bias(self, node: NodeProto, bias: np.ndarray, place: tuple[NodeProto, int] | None) -> None:
        name = edit.add_constant(self.model, f"{node.name}_bias_int8", bias)
        if place is not None:
            self.inputs.append((place[0].name, place[1], name))
        elif node.op_type != "MatMul":
            self.inputs.append((node.name, 2, name))
        else:
            self.unbiased[node.name] = name

    def insert(self, edges: Sequence[tuple[str, int]]) -> None:
        old = list(self.model.graph.node)
        nodes = {node.name: node for node in old}
        for name, index in edges:
            nodes[name].input[index] += "_dequantized"
        for name, weight in self.layers.items():
            nodes[name].input[1] = weight
        for name, index, constant in self.inputs:
            nodes[name].input.extend([""] * (index + 1 - len(nodes[name].input)))
            nodes[name].input[index] = constant
        ordered = list(self.first)
        for value in self.model.graph.input:
            ordered += self.after.get(value.name, [])
        for node in old:
            ordered.append(node)
            if node.op_type == "Pad" and node.output[0] in self.padded:
                ordered[-1] = self._integer_pad(node)
            outputs = list(node.output)
            if node.name in self.split and len(node.input) > 2:
                self.unbiased[node.name] = node.input.pop()
            if node.name in self.unbiased:
                ordered.append(self._add_after(node))
            for output in outputs:
                ordered += self.after.get(output, [])
        read = {name for node in ordered for name in node.input}
        edit.replace_nodes(
            self.model,
            [node for node in ordered if node.op_type != "DequantizeLinear" or node.output[0] in read],
        )
        edit.drop_unread(self.model)

    def _add_after(self, node: NodeProto) -> NodeProto:
        """An Add that puts out what the matrix put out, so that its readers stay as they are."""
        output, node.output[0] = node.output[0], f"{node.output[0]}_unbiased"
        return helper.make_node(
            "Add", [node.output[0], self.unbiased[node.name]], [output], f"{node.name}_bias"
        )

    def _integer_pad(self, node: NodeProto) -> NodeProto:
        """The same Pad on 8-bit numbers, in which zero is the zero point."""
        tensor, source = node.output[0], node.input[0].removesuffix("_dequantized")
        inputs = [f"{source}_int8", node.input[1], f"{tensor}_zero_point", *node.input[3:4]]
        return helper.make_node("Pad", inputs, [f"{tensor}_int8"], node.name, mode="constant")

    def _same(self, name: str, given: Int8Weight) -> bool:
        return all(np.array_equal(a, b) for a, b in zip(self.weights[name], given, strict=True))

    def _constants(self, name: str, scale: np.ndarray, zero: np.ndarray) -> list[str]:
        return [
            edit.add_constant(self.model, f"{name}_scale", scale),
            edit.add_constant(self.model, f"{name}_zero_point", zero),
        ]
