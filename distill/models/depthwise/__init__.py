"""Depthwise convolution with a large kernel: one module for every kernel shape, map size, device and
precision. It needs nothing else of this project.

In:  (N, C, H, W) of any floating type and memory format, kernels (C, 1, KH, KW).
Out: (N, C, H, W), padded with KH // 2 and KW // 2 zeros on every side; gradients; in ONNX a plain `Conv`.
Elsewhere: which algorithm is used (rule.py), on a CPU (cpu.py), on a GPU (operators.py, launch.py, kernels.py
with tiles.py and forms.py), memory formats (layout.py); the networks (distill.models.slak,
distill.models.replknet, distill.models.unireplknet); how fast it is (measurements/large_kernel.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import cpu, launch, operators, rule
from .layout import format_of, network_format
from .rule import ALGORITHMS, Algorithm, Case, Choice

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "DepthwiseConv2d",
    "depthwise_conv2d",
    "depthwise_conv2d_branches",
    "depthwise_conv2d_pair",
    "forced",
    "joins",
    "network_format",
]

_forced: Algorithm = "auto"


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution of stride 1, padded by k // 2 on every side; state-dict names as of nn.Conv2d.

    kernel_size: an int or (height, width). Odd sizes keep the map's size, even ones add a row or column as
    nn.Conv2d does. algorithm: auto, or one of ALGORITHMS, for measuring.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | tuple[int, int],
        bias: bool = True,
        algorithm: Algorithm = "auto",
    ) -> None:
        kh, kw = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        super().__init__(channels, channels, (kh, kw), padding=(kh // 2, kw // 2), groups=channels, bias=bias)
        self.algorithm = algorithm

    def forward(self, input: Tensor) -> Tensor:
        return depthwise_conv2d(input, self.weight, self.bias, self.algorithm)


@contextlib.contextmanager
def forced(algorithm: Algorithm) -> Iterator[None]:
    """Within it every convolution of algorithm "auto" takes this one: to count operations (conv2d) or to
    compare.
    """
    global _forced
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm {algorithm!r}: expected one of {', '.join(ALGORITHMS)}")
    before, _forced = _forced, algorithm
    try:
        yield
    finally:
        _forced = before


@torch.fx.wrap
def depthwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, algorithm: Algorithm = "auto"
) -> Tensor:
    """x (N, C, H, W) with weight (C, 1, KH, KW) and bias (C,), padded by KH // 2 and KW // 2 -> (N, C, H, W).

    Under autocast it computes in autocast's type, as F.conv2d does. On a GPU sums are float32; a NaN or
    infinite value of x reaches the outputs whose window it is in, and no others. On a CPU spectra are float32
    (float64 for float64), and gradients are of first order only, except where torch's own convolution is
    used. Raises what F.conv2d raises for shapes and types that do not fit together.
    """
    choice = _choice(x, weight, algorithm)
    if choice.algorithm == "conv2d":
        kh, kw = weight.shape[2:]
        y = F.conv2d(_formatted(x, choice), weight, bias, padding=(kh // 2, kw // 2), groups=len(weight))
        return y if choice.memory_format is None else y.contiguous(memory_format=format_of(x))
    if choice.algorithm in ("toeplitz", "matrix"):
        return _operator(x, weight, None, bias, choice)
    dtype = _computed_in(x)
    bias = None if bias is None else bias.to(dtype)
    with torch.autocast(x.device.type, enabled=False):
        return cpu.convolution(x.to(dtype), weight.to(dtype), bias, choice.algorithm)


def depthwise_conv2d_pair(
    x: Tensor, weight: Tensor, other: Tensor, bias: Tensor | None = None, algorithm: Algorithm = "auto"
) -> Tensor:
    """depthwise_conv2d(x, weight, bias) + depthwise_conv2d(x, other), for a tall and a wide kernel in one
    pass over x where both are products with Toeplitz matrices.
    """
    if _join(x, weight, other, algorithm):
        return _operator(x, weight, other, bias, _choice(x, weight, algorithm))
    return depthwise_conv2d(x, weight, bias, algorithm) + depthwise_conv2d(x, other, None, algorithm)


def depthwise_conv2d_branches(
    x: Tensor, weight: Tensor, other: Tensor, algorithm: Algorithm = "auto"
) -> tuple[Tensor, Tensor]:
    """(depthwise_conv2d(x, weight), depthwise_conv2d(x, other)). Where a tall and a wide kernel are products
    with Toeplitz matrices, in one pass over x, and the gradients of x are added in one accumulator: for
    branches that are trained, each with a batch norm behind it.
    """
    if _join(x, weight, other, algorithm):
        choice = _choice(x, weight, algorithm)
        given = format_of(x)
        y, z = operators.branches(_formatted(x.to(_computed_in(x)), choice), weight, other)
        if choice.memory_format is None:
            return y, z
        return y.contiguous(memory_format=given), z.contiguous(memory_format=given)
    return depthwise_conv2d(x, weight, None, algorithm), depthwise_conv2d(x, other, None, algorithm)


def joins(x: object, layer: nn.Conv2d, other: nn.Conv2d) -> bool:
    """Whether `depthwise_conv2d_pair` and `_branches` compute two layers in one pass over x, and no hook
    watches either.

    False for the symbols of torch.fx, whose graph then holds the two layers.
    """
    if not (isinstance(layer, DepthwiseConv2d) and isinstance(other, DepthwiseConv2d)):
        return False
    if not isinstance(x, Tensor) or layer.algorithm != other.algorithm:
        return False
    watched = any(each._forward_hooks or each._forward_pre_hooks for each in (layer, other))
    return not watched and _join(x, layer.weight, other.weight, layer.algorithm)


def _join(x: Tensor, weight: Tensor, other: Tensor, algorithm: Algorithm) -> bool:
    ways = {_choice(x, each, algorithm).algorithm for each in (weight, other)}
    return ways == {"toeplitz"} and (weight.shape[2] > weight.shape[3]) != (other.shape[2] > other.shape[3])


def _choice(x: Tensor, weight: Tensor, algorithm: Algorithm) -> Choice:
    """What was asked for, or what the rule says; torch's own where only it knows what to do or to say."""
    chosen = _forced if algorithm == "auto" else algorithm
    kernel = weight.shape[2], weight.shape[3]
    if chosen == "conv2d" or not all(k % 2 for k in kernel) or not _fit(x, weight):
        return Choice("conv2d")
    if chosen != "auto":
        return Choice(chosen)
    if torch.onnx.is_in_onnx_export() or torch.compiler.is_exporting():
        return Choice("conv2d")  # exported graphs hold a plain convolution
    device = x.device.type
    if device not in ("cpu", "cuda") or (device == "cpu" and torch.compiler.is_compiling()):
        return Choice("conv2d")
    is_frozen = isinstance(weight, nn.Parameter) and not weight.requires_grad
    if torch.are_deterministic_algorithms_enabled():
        is_frozen = False  # torch refuses cuBLAS then, which multiplies by the full matrix
    kernels = device == "cuda" and launch.is_available(device, x.device.index)
    return rule.choose(Case(device, _computed_in(x), (x.shape[2], x.shape[3]), kernel, kernels, is_frozen))


def _fit(x: Tensor, weight: Tensor) -> bool:
    """Whether these are maps and kernels of so many channels and one type (autocast makes it one)."""
    one_type = x.dtype == weight.dtype or torch.is_autocast_enabled(x.device.type)
    return x.dim() == weight.dim() == 4 and x.shape[1] == len(weight) and one_type


def _operator(x: Tensor, weight: Tensor, other: Tensor | None, bias: Tensor | None, choice: Choice) -> Tensor:
    given = format_of(x)
    x = _formatted(x.to(_computed_in(x)), choice)
    y = operators.convolution(x, weight, other, bias, choice.algorithm == "matrix")
    return y if choice.memory_format is None else y.contiguous(memory_format=given)


def _formatted(x: Tensor, choice: Choice) -> Tensor:
    return x if choice.memory_format is None else x.contiguous(memory_format=choice.memory_format)


def _computed_in(x: Tensor) -> torch.dtype:
    """The type of the result: autocast's, as F.conv2d decides it, else that of x."""
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(x.device.type):
        return x.dtype
    return torch.get_autocast_dtype(x.device.type)
