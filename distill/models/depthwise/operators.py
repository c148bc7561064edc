"""Large depthwise convolution as operators of torch: `torch.ops.large2small.*`, with shapes for the compiler
and gradients of every order.

In:  maps (N, C, H, W); one kernel (C, 1, KH, KW) of odd sides, or two of which one is tall and one is wide.
Out: maps of the same size, type and memory format, and the gradients.
Elsewhere: what runs on the GPU (launch.py), when it is used (rule.py). Where no Triton kernel takes the maps
     (a CPU, float64), the operators are torch's own convolution.

A weight may be of another type than the maps: it is rounded to theirs, and its gradient is of its own type.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from . import forms, launch
from .layout import format_of

Maybe = Optional[Tensor]  # noqa: UP045  (torch reads the operators' schemas from these annotations)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=format_of(x))


@torch.library.custom_op("large2small::depthwise_conv2d", mutates_args=())
def convolution(x: Tensor, weight: Tensor, other: Maybe, bias: Maybe, full: bool) -> Tensor:
    """x * weight (+ x * other) (+ bias). full: by one matrix per channel, for maps of few places."""
    if not launch.runs(x):
        y = _torchs(x, weight, bias)
        y = y if other is None else y + _torchs(x, other, None)
        return y.contiguous(memory_format=format_of(x))
    if full and x.numel():
        y = launch.matrix(x.contiguous(), _full(x, weight, other), bias, torch.empty_like(x.contiguous()))
        return y.contiguous(memory_format=format_of(x))
    return launch.convolve(x, weight, other, bias, _like(x))


@torch.library.custom_op("large2small::depthwise_conv2d_input_gradient", mutates_args=())
def input_gradient(grad: Tensor, weight: Tensor, other: Maybe) -> Tensor:
    """The gradient of x from that of y."""
    if launch.runs(grad):
        return launch.convolve(grad, weight, other, None, _like(grad), flip=True)
    found = _torchs(grad, weight.flip(2, 3), None)
    found = found if other is None else found + _torchs(grad, other.flip(2, 3), None)
    return found.contiguous(memory_format=format_of(grad))


@torch.library.custom_op("large2small::depthwise_conv2d_weight_gradient", mutates_args=())
def weight_gradient(x: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient of the weight, of which only shape and type are read: summed in float32 or wider."""
    kernel = weight.shape[2], weight.shape[3]
    if launch.runs(x):
        return launch.weight_gradient(x, grad, kernel).to(weight.dtype).contiguous()
    wide = torch.promote_types(x.dtype, torch.float32)
    return conv2d_weight(
        x.to(wide),
        list(weight.shape),
        grad.to(wide),
        padding=(kernel[0] // 2, kernel[1] // 2),
        groups=len(weight),
    ).to(weight.dtype, copy=True, memory_format=torch.contiguous_format)


@torch.library.custom_op("large2small::depthwise_conv2d_branches", mutates_args=())
def branches(x: Tensor, weight: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """x * weight and x * other, a tall and a wide kernel, in one pass over x."""
    if launch.runs(x):
        return launch.branches(x, weight, other, (_like(x), _like(x)))
    ys = _torchs(x, weight, None), _torchs(x, other, None)
    return ys[0].contiguous(memory_format=format_of(x)), ys[1].contiguous(memory_format=format_of(x))


@torch.library.custom_op("large2small::depthwise_conv2d_branches_input_gradient", mutates_args=())
def branches_input_gradient(grad: Tensor, other_grad: Tensor, weight: Tensor, other: Tensor) -> Tensor:
    """The gradient of x from both of `branches`, in one accumulator."""
    found = _like(grad)
    if launch.runs(grad):
        if grad.stride() != other_grad.stride():
            grad, other_grad = (t.contiguous(memory_format=format_of(found)) for t in (grad, other_grad))
        return launch.branches_input_gradient(grad, other_grad, weight, other, found)
    return found.copy_(_torchs(grad, weight.flip(2, 3), None) + _torchs(other_grad, other.flip(2, 3), None))


@convolution.register_fake
def _(x: Tensor, weight: Tensor, other: Maybe, bias: Maybe, full: bool) -> Tensor:
    return _like(x)


@input_gradient.register_fake
def _(grad: Tensor, weight: Tensor, other: Maybe) -> Tensor:
    return _like(grad)


@weight_gradient.register_fake
def _(x: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


@branches.register_fake
def _(x: Tensor, weight: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    return _like(x), _like(x)


@branches_input_gradient.register_fake
def _(grad: Tensor, other_grad: Tensor, weight: Tensor, other: Tensor) -> Tensor:
    return _like(grad)


def _keep_convolution(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, other, bias, _ = inputs
    is_trained = weight.requires_grad or (other is not None and other.requires_grad)
    ctx.save_for_backward(x if is_trained else None, weight, other, bias)


def _of_convolution(ctx: Any, grad: Tensor) -> tuple[Maybe, ...]:
    x, weight, other, bias = ctx.saved_tensors
    needs = ctx.needs_input_grad
    grad = grad.contiguous(memory_format=format_of(grad))
    return (
        input_gradient(grad, weight, other) if needs[0] else None,
        weight_gradient(x, grad, weight) if needs[1] else None,
        weight_gradient(x, grad, other) if needs[2] else None,
        _over_places(grad).to(bias.dtype) if needs[3] else None,
        None,
    )


def _keep_input_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _of_input_gradient(ctx: Any, second: Tensor) -> tuple[Maybe, ...]:
    grad, weight, other = ctx.saved_tensors
    needs = ctx.needs_input_grad
    return (
        convolution(second, weight, other, None, False) if needs[0] else None,
        weight_gradient(second, grad, weight) if needs[1] else None,
        weight_gradient(second, grad, other) if needs[2] else None,
    )


def _keep_weight_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _of_weight_gradient(ctx: Any, second: Tensor) -> tuple[Maybe, ...]:
    x, grad = ctx.saved_tensors
    needs = ctx.needs_input_grad
    return (
        input_gradient(grad, second, None) if needs[0] else None,
        convolution(x, second, None, None, False) if needs[1] else None,
        None,
    )


def _keep_branches(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _of_branches(ctx: Any, grad: Tensor, other_grad: Tensor) -> tuple[Maybe, ...]:
    x, weight, other = ctx.saved_tensors
    needs, kind = ctx.needs_input_grad, format_of(x)
    grad, other_grad = (t.contiguous(memory_format=kind) for t in (grad, other_grad))
    return (
        branches_input_gradient(grad, other_grad, weight, other) if needs[0] else None,
        weight_gradient(x, grad, weight) if needs[1] else None,
        weight_gradient(x, other_grad, other) if needs[2] else None,
    )


def _of_branches_input_gradient(ctx: Any, second: Tensor) -> tuple[Maybe, ...]:
    grad, other_grad, weight, other = ctx.saved_tensors
    needs = ctx.needs_input_grad
    firsts = branches(second, weight, other) if needs[0] or needs[1] else (None, None)
    return (
        firsts[0] if needs[0] else None,
        firsts[1] if needs[1] else None,
        weight_gradient(second, grad, weight) if needs[2] else None,
        weight_gradient(second, other_grad, other) if needs[3] else None,
    )


convolution.register_autograd(_of_convolution, setup_context=_keep_convolution)
input_gradient.register_autograd(_of_input_gradient, setup_context=_keep_input_gradient)
weight_gradient.register_autograd(_of_weight_gradient, setup_context=_keep_weight_gradient)
branches.register_autograd(_of_branches, setup_context=_keep_branches)
branches_input_gradient.register_autograd(_of_branches_input_gradient, setup_context=_keep_branches)


def _torchs(x: Tensor, weight: Tensor, bias: Maybe) -> Tensor:
    kh, kw = weight.shape[2:]
    bias = None if bias is None else bias.to(x.dtype)
    return F.conv2d(x, weight.to(x.dtype), bias, padding=(kh // 2, kw // 2), groups=len(weight))


def _over_places(grad: Tensor) -> Tensor:
    """(C,): summed over images and places, in float32 or wider."""
    return grad.sum((0, 2, 3), dtype=torch.promote_types(grad.dtype, torch.float32))


def _full(x: Tensor, weight: Tensor, other: Maybe) -> Tensor:
    form = _one_full(x, weight)
    return form if other is None else form + _one_full(x, other)


def _one_full(x: Tensor, weight: Tensor) -> Tensor:
    size = (x.shape[2], x.shape[3])
    form = forms.kept(weight, ("full", size, x.dtype), lambda: forms.full(weight.detach(), size, x.dtype))
    return forms.full(weight.detach(), size, x.dtype) if form is None else form
