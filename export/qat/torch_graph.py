"""An exported ONNX graph as a torch module, so that what is trained is the graph that ships, Q/DQ included.

In:  the fp32 graph of a student (export.graph.from_torch); the same graph with Q/DQ (export.int8.quantize),
or none for plain fp32.
Out: `TorchGraph`: images (N, C, H, W) -> logits (N, K), differentiable in its weights, biases and scales.
Elsewhere: where Q/DQ goes (export.int8.quantize), training (export.qat.trainer). Batch norm is folded in
these graphs; dropout is not in them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto
from torch import Tensor, nn
from torch.nn import functional as F

from runtime.errors import UsageError

from ..graph.view import View
from ..int8.quantize import LARGEST

LEARNED_BY = ("Conv", "Gemm", "MatMul", "LayerNormalization", "Mul", "Add")
"""Operators whose float constants with more than one value are trained; a single value belongs to a formula
(GELU's 0.5)."""

SCALE_SPEED = 300.0
"""How much faster scales learn than weights: an Adam step of 5e-5 changes a scale by 1.5 %. Chosen by
measurement (docs/qat.md): ranges may have to shrink tenfold in a few hundred steps in which weights should
hardly move."""

Attributes = dict[str, Any]


class Step(NamedTuple):
    """One node, ready to be called."""

    call: Callable[..., Tensor]
    attributes: Attributes
    inputs: tuple[str, ...]
    output: str
    done: tuple[str, ...]
    """Tensors that no later step reads."""


class FakeQuant(NamedTuple):
    """The integer grid that a tensor is put on: (q - zero) x scale with q in [lowest, highest]."""

    tensor: str
    """The activation, or the float initializer of a weight."""
    scale: str
    """Name of its scale's initializer in the quantized graph, and of the parameter that changes it."""
    axis: int | None
    """Channel axis of a weight's scales; None for the one scale of an activation."""
    zero: int
    lowest: int
    highest: int


class TorchGraph(nn.Module):
    """Runs the nodes of an ONNX graph in torch; state_dict keys are the names of its initializers.

    Float weights come from `fp32`. With `quantized` (the same layers with Q/DQ) every QuantizeLinear becomes
    a fake quantization with a learned scale, the graph's own x exp(SCALE_SPEED x parameter): it stays above
    0, and one learning rate suits large and small ones. `scales` gives the values. shared maps an activation
    to the one whose scale it must keep. Raises UsageError for an operator that is not known here.
    """

    def __init__(
        self, fp32: ModelProto, quantized: ModelProto | None = None, shared: Mapping[str, str] | None = None
    ) -> None:
        super().__init__()
        model = quantized or fp32
        view, float_view = View(model), View(fp32)
        require_known(view)
        # names with a leading underscore leave all others to the network's own modules
        self._input, self._output = view.inputs[0], view.outputs[0]
        self._integers: dict[
            str, Tensor
        ] = {}  # shapes and axes stay on the host: reading them must not wait for a GPU
        trained = learned(float_view)
        for name in float_view.constants:
            value = torch.from_numpy(float_view.constant(name).copy())
            if value.is_floating_point():
                _place(self, name, nn.Parameter(value) if name in trained else value)
            else:
                self._integers[name] = value
        self._weights = float_weights(view, float_view)
        self._grids = grids(view, self._weights, shared or {})
        for scale in {grid.scale: None for grid in self._grids.values()}:
            start = torch.tensor(view.constant(scale))
            _place(self, scale, nn.Parameter(torch.zeros_like(start)))
            _place(self, start_of(scale), start, persistent=True)
        self._steps = self._compile(view, float_view)

    def _compile(self, view: View, float_view: View) -> list[Step]:
        steps, read = [], {self._output}
        for node in reversed(view.model.graph.node):
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                names, attributes, call = self._grid_step(node)
            elif (
                node.op_type == "Clip" and node.name not in float_view.nodes
            ):  # keeps a pair from a float layer, changes nothing
                names, call = (node.input[0],), identity
            else:
                names, call = without_integer_filling(node, view), OPERATORS[node.op_type]
            done = tuple(name for name in dict.fromkeys(names) if name in view.producer and name not in read)
            read.update(names)
            steps.append(Step(call, attributes, names, node.output[0], done))
        return steps[::-1]

    def _grid_step(self, node: NodeProto) -> tuple[tuple[str, ...], Attributes, Callable[..., Tensor]]:
        """A Q node, or the DQ node of a weight, rounds; the DQ node behind a Q passes on, what comes is float
        already.
        """
        grid = self._grids.get(node.output[0])
        if grid is None:
            return (node.input[0],), {}, identity
        return (grid.tensor, start_of(grid.scale), grid.scale), {"grid": grid}, fake_quantize

    def forward(self, images: Tensor) -> Tensor:
        values: dict[str, Tensor] = {self._input: images, **self._integers}
        for step in self._steps:
            inputs = [self._value(name, values) if name else None for name in step.inputs]
            values[step.output] = step.call(step.attributes, *inputs)
            for name in step.done:
                del values[name]
        return values[self._output]

    def _value(self, name: str, values: Mapping[str, Tensor]) -> Tensor:
        return values[name] if name in values else _find(self, name)


def grids_of(graph: TorchGraph) -> dict[str, FakeQuant]:
    """The grids that tensors are rounded to, by what is rounded."""
    return graph._grids


def scales_of(graph: TorchGraph, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """{tensor: scale} of a state_dict (its own): float32, () for an activation, (channels,) for a weight; all
    above 0.
    """
    state = graph.state_dict() if state is None else state
    return {
        grid.tensor: scale_of(state[start_of(grid.scale)], state[grid.scale].detach())
        for grid in grids_of(graph).values()
    }


def require_known(view: View) -> None:
    """Raise UsageError naming the first operator that cannot be trained here."""
    for node in view.model.graph.node:
        if node.op_type not in OPERATORS and node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            raise UsageError(
                f"node {node.name}: operator {node.op_type} cannot be trained as part of an ONNX graph. "
                f"Known: {', '.join(sorted(OPERATORS))}. Train without --qat, or choose another student"
            )
        if any(node.output[1:]):
            raise UsageError(
                f"node {node.name}: {node.op_type} with {len(node.output)} outputs cannot be trained as part"
                " of an ONNX graph; one is expected. Train without --qat, or choose another student"
            )


def learned(view: View) -> list[str]:
    """Names of the constants that training changes: weights, biases, the affine part of norms,
    layer scales.
    """
    found = []
    for node in view.model.graph.node:
        if node.op_type in LEARNED_BY:
            found += node.input
        elif node.op_type == "BatchNormalization":  # one that could not be folded: its statistics stay
            found += node.input[1:3]
    return [
        name
        for name in dict.fromkeys(found)
        if name in view.constants
        and view.constants[name].data_type == TensorProto.FLOAT
        and np.prod(view.constants[name].dims) > 1
    ]


def without_integer_filling(node: NodeProto, view: View) -> tuple[str, ...]:
    """The inputs of a node; a Pad of 8-bit numbers fills with the zero point, which is the 0 that a Pad of
    floats fills with.
    """
    fills_with = view.constants.get(node.input[2]) if node.op_type == "Pad" and len(node.input) > 2 else None
    is_integer = fills_with is not None and fills_with.data_type in (TensorProto.INT8, TensorProto.UINT8)
    return (*node.input[:2], "", *node.input[3:]) if is_integer else tuple(node.input)


def float_weights(quantized: View, fp32: View) -> dict[str, str]:
    """{tensor that a quantized layer reads as its weight: the float initializer that it replaces}."""
    return {
        quantized.nodes[node.name].input[1]: node.input[1]
        for node in fp32.weighted()
        if quantized.nodes[node.name].input[1] != node.input[1]
    }


def grids(view: View, weights: Mapping[str, str], shared: Mapping[str, str]) -> dict[str, FakeQuant]:
    """{output of a Q node, or of the DQ node of a weight: its grid}."""
    scales = {
        node.input[0]: node.input[1] for node in view.model.graph.node if node.op_type == "QuantizeLinear"
    }
    found = {}
    for node in view.model.graph.node:
        if node.op_type == "QuantizeLinear":
            tensor, zero = node.input[0], view.constant(node.input[2])
            limits = np.iinfo(zero.dtype)
            scale = scales[shared.get(tensor, tensor)]
            found[node.output[0]] = FakeQuant(tensor, scale, None, int(zero), limits.min, limits.max)
        elif node.op_type == "DequantizeLinear" and node.output[0] in weights:
            axis = next(a.i for a in node.attribute if a.name == "axis")
            found[node.output[0]] = FakeQuant(
                weights[node.output[0]], node.input[1], axis, 0, -LARGEST, LARGEST
            )
    return found


# quantization


class Rounded(torch.autograd.Function):
    """Fake quantization with ONNX's rounding; straight through for x, LSQ for the scale (Esser et al. 2020,
    arXiv:1902.08153).

    For a scale s, dy/ds is round(x/s) - x/s inside the grid and the border outside, times LSQ's 1 /
    sqrt(values x largest step).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, lowest: int, highest: int, values: int) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.limits, ctx.values = (lowest, highest), values
        return (
            (x / scale).round_().clamp_(lowest, highest).mul_(scale)
        )  # ties to even, as ONNX QuantizeLinear rounds

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale = ctx.saved_tensors
        exact = x / scale
        rounded = exact.round()
        clipped = rounded.clamp(*ctx.limits)
        inside = clipped == rounded
        by_scale = torch.where(inside, clipped - exact, clipped).mul_(grad).sum_to_size(scale.shape)
        strength = (ctx.values * max(map(abs, ctx.limits))) ** -0.5
        return grad * inside, by_scale * strength, None, None, None


def start_of(scale: str) -> str:
    """Name of the buffer with the value a scale began with."""
    return f"{scale}_start"


def scale_of(start: Tensor, learned: Tensor) -> Tensor:
    """The scale itself; exactly `start` before any training."""
    return start * (SCALE_SPEED * learned).exp()


def fake_quantize(attributes: Attributes, x: Tensor, start: Tensor, learned: Tensor) -> Tensor:
    """x on its grid, still float: what DequantizeLinear(QuantizeLinear(x)) gives."""
    grid: FakeQuant = attributes["grid"]
    scale = scale_of(start, learned)
    values = x[0].numel()
    if grid.axis is not None:
        scale = scale.reshape([-1 if i == grid.axis else 1 for i in range(x.ndim)])
        values = x.numel() // x.shape[grid.axis]
    return Rounded.apply(x, scale, grid.lowest - grid.zero, grid.highest - grid.zero, values)


# operators: f(attributes, *inputs), as https://onnx.ai/onnx/operators defines them


def identity(_: Attributes, x: Tensor) -> Tensor:
    return x


def conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    sides = weight.ndim - 2
    x, padding = _padded(x, a, sides, 0.0)
    return _CONV[sides](
        x,
        weight,
        bias,
        tuple(a.get("strides", [1] * sides)),
        padding,
        tuple(a.get("dilations", [1] * sides)),
        a.get("group", 1),
    )


def gemm(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    x = x.t() if a.get("transA", 0) else x
    weight = weight.t() if a.get("transB", 0) else weight
    product = a.get("alpha", 1.0) * (x @ weight)
    return product if bias is None else product + a.get("beta", 1.0) * bias


def layer_norm(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.layer_norm(x, x.shape[a.get("axis", -1) :], weight, bias, a.get("epsilon", 1e-5))


def batch_norm(
    a: Attributes, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    return F.batch_norm(x, mean, variance, weight, bias, eps=a.get("epsilon", 1e-5))


def average_pool(a: Attributes, x: Tensor) -> Tensor:
    x, padding = _padded(x, a, 2, None)
    return F.avg_pool2d(
        x,
        tuple(a["kernel_shape"]),
        tuple(a.get("strides", (1, 1))),
        padding,
        bool(a.get("ceil_mode", 0)),
        bool(a.get("count_include_pad", 0)),
    )


def max_pool(a: Attributes, x: Tensor) -> Tensor:
    x, padding = _padded(x, a, 2, -torch.inf)
    return F.max_pool2d(
        x,
        tuple(a["kernel_shape"]),
        tuple(a.get("strides", (1, 1))),
        padding,
        tuple(a.get("dilations", (1, 1))),
        bool(a.get("ceil_mode", 0)),
    )


def reduce_mean(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.mean(_axes(a, x, axes), keepdim=bool(a.get("keepdims", 1)))


def reduce_l2(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return torch.linalg.vector_norm(x, 2, _axes(a, x, axes), keepdim=bool(a.get("keepdims", 1)))


def reshape(a: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    keeps = not a.get("allowzero", 0)  # then a 0 copies the size
    return x.reshape([x.shape[i] if size == 0 and keeps else size for i, size in enumerate(shape.tolist())])


def slice_(
    _: Attributes,
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    places = range(len(starts)) if axes is None else axes.tolist()
    strides = [1] * len(starts) if steps is None else steps.tolist()
    for axis, start, end, stride in zip(places, starts.tolist(), ends.tolist(), strides, strict=True):
        if stride > 0:
            x = x[(slice(None),) * (axis % x.ndim) + (slice(start, end, stride),)]
        else:  # torch's own slices only go forward
            x = x.index_select(axis, torch.tensor([*range(x.shape[axis])[start:end:stride]], device=x.device))
    return x


def pad(
    a: Attributes, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    kind = a.get("mode", b"constant").decode()
    if kind != "constant":
        raise UsageError(
            f"a Pad of mode {kind} cannot be trained as part of an ONNX graph. Train without --qat"
        )
    places = range(x.ndim) if axes is None else axes.tolist()
    widths = pads.view(2, -1).tolist()
    both = [[0, 0] for _ in range(x.ndim)]
    for axis, before, after in zip(places, *widths, strict=True):
        both[axis] = [before, after]
    return F.pad(
        x, [n for pair in reversed(both) for n in pair], value=0.0 if value is None else float(value)
    )


def clip(_: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x if low is None and high is None else torch.clamp(x, low, high)


def unsqueeze(_: Attributes, x: Tensor, axes: Tensor) -> Tensor:
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def _axes(a: Attributes, x: Tensor, axes: Tensor | None) -> list[int]:
    given = axes.tolist() if axes is not None else a.get("axes") or range(x.ndim)
    return list(given)


def _padded(x: Tensor, a: Attributes, sides: int, value: float | None) -> tuple[Tensor, tuple[int, ...]]:
    """(x, padding for torch): torch pads both ends alike, so what is uneven is padded here. value None:
    cannot be padded.
    """
    if a.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise UsageError(
            f"auto_pad {a['auto_pad'].decode()} cannot be trained as part of an ONNX graph. Train without"
            " --qat"
        )
    pads = a.get("pads", [0] * (2 * sides))
    before, after = pads[:sides], pads[sides:]
    if before == after:
        return x, tuple(before)
    if value is None:
        raise UsageError(
            "an AveragePool with uneven padding cannot be trained as part of an ONNX graph. Train without"
            " --qat"
        )
    return (
        F.pad(
            x, [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair], value=value
        ),
        (0,) * sides,
    )


_CONV = {1: F.conv1d, 2: F.conv2d}

OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Add": lambda a, x, y: x + y,
    "AveragePool": average_pool,
    "BatchNormalization": batch_norm,
    "Clip": clip,
    "Concat": lambda a, *parts: torch.cat(parts, a["axis"]),
    "Conv": conv,
    "Div": lambda a, x, y: x / y,
    "Erf": lambda a, x: torch.erf(x),
    "Flatten": lambda a, x: x.reshape(int(np.prod(x.shape[: a.get("axis", 1)])), -1),
    "Gelu": lambda a, x: F.gelu(x, approximate=a.get("approximate", b"none").decode()),
    "Gemm": gemm,
    "GlobalAveragePool": lambda a, x: x.mean((2, 3), keepdim=True),
    "HardSigmoid": lambda a, x: (a.get("alpha", 0.2) * x + a.get("beta", 0.5)).clamp(0, 1),
    "HardSwish": lambda a, x: F.hardswish(x),
    "Identity": identity,
    "LayerNormalization": layer_norm,
    "LeakyRelu": lambda a, x: F.leaky_relu(x, a.get("alpha", 0.01)),
    "MatMul": lambda a, x, y: x @ y,
    "MaxPool": max_pool,
    "Mul": lambda a, x, y: x * y,
    "Pad": pad,
    "Pow": lambda a, x, y: x**y,
    "ReduceL2": reduce_l2,
    "ReduceMean": reduce_mean,
    "Relu": lambda a, x: F.relu(x),
    "Reshape": reshape,
    "Sigmoid": lambda a, x: torch.sigmoid(x),
    "Slice": slice_,
    "Softmax": lambda a, x: torch.softmax(x, a.get("axis", -1)),
    "Sqrt": lambda a, x: torch.sqrt(x),
    "Squeeze": lambda a, x, axes=None: x.squeeze() if axes is None else x.squeeze(tuple(axes.tolist())),
    "Sub": lambda a, x, y: x - y,
    "Tanh": lambda a, x: torch.tanh(x),
    "Transpose": lambda a, x: x.permute(a.get("perm") or tuple(reversed(range(x.ndim)))),
    "Unsqueeze": unsqueeze,
}


# names with dots as nested modules, so that state_dict keys are the names of the initializers


def _place(root: nn.Module, name: str, value: Tensor, persistent: bool = False) -> None:
    *path, leaf = name.split(".")
    for part in path:
        inner = root._modules.get(part)
        if inner is None:
            inner = nn.Module()
            root.add_module(part, inner)
        root = inner
    if isinstance(value, nn.Parameter):
        root.register_parameter(leaf, value)
    else:
        root.register_buffer(leaf, value, persistent)


def _find(root: nn.Module, name: str) -> Tensor:
    *path, leaf = name.split(".")
    modules: Any = root._modules  # what `_place` put there
    for part in path:
        root, modules = modules[part], modules[part]._modules
    value: Tensor | None = root._parameters.get(leaf)
    if value is None:
        value = root._buffers[leaf]
    assert value is not None, name
    return value
