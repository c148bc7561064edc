"""Which way a depthwise convolution is computed: a rule on plain values, never a stopwatch, so that the same
network computes the same way every time.

In:  device, type, size of the map, size of the kernel, whether Triton's kernels run there, whether the weight
     is frozen.
Out: a `Choice`: algorithm, and memory format of the maps while it computes.
Elsewhere: the algorithms (cpu.py, operators.py), torch's own convolution (torch.nn.functional.conv2d).

On CUDA, in order; the first that applies:

1. An even kernel, or one of at most 7 x 7: cuDNN. From 5 x 5 on, in half precision, channels-last, the format
   in which cuDNN has fast kernels for these.
2. No Triton kernels there (no Triton, as on Windows; a GPU before compute capability 8.0; float64): cuDNN on
   contiguous maps, because its large depthwise kernels are several times slower channels-last.
3. A frozen kernel that reaches from every place of the map to every other, on a map of at most 14 x 14 whose
   number of places is divisible by 4, in half precision: the map as one vector times one matrix per channel.
   Its matrix has no zeros, so nothing is computed in vain; the memory it takes is in forms.py.
4. Everything else: products with banded Toeplitz matrices, on contiguous maps.

On a CPU kernels of at most 3 x 3 are torch's, larger ones those of cpu.py. Other devices have torch's alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Algorithm = Literal["auto", "conv2d", "direct", "fft", "toeplitz", "matrix"]
ALGORITHMS = ("auto", "conv2d", "direct", "fft", "toeplitz", "matrix")
"""auto: by this rule; conv2d: torch's own; direct and fft: cpu.py; toeplitz and matrix: operators.py."""

SMALL_CPU, SMALL_CUDA = 3, 7
"""Kernels of at most this side are left to torch."""
PLACES = 14 * 14
"""Places of the largest map that is multiplied by a full matrix."""
HALF = (torch.bfloat16, torch.float16)
WITH_KERNELS = (*HALF, torch.float32)


@dataclass(frozen=True)
class Case:
    """What the rule looks at."""

    device: str
    """Type of the device: cpu, cuda, ..."""
    dtype: torch.dtype
    """Type in which it is computed; under autocast that of autocast."""
    size: tuple[int, int]
    """Height and width of the map."""
    kernel: tuple[int, int]
    """Height and width of the kernel."""
    has_kernels: bool
    """Whether Triton's kernels run on the device."""
    is_frozen: bool = False
    """Whether the weight is a parameter that is not trained."""


@dataclass(frozen=True)
class Choice:
    """How it is computed."""

    algorithm: Algorithm
    """conv2d, toeplitz or matrix; auto: cpu.py decides."""
    memory_format: torch.memory_format | None = None
    """Of the maps while it computes; None: as they are."""


def choose(case: Case) -> Choice:
    """The way of this case, by the rule above."""
    side = max(case.kernel)
    is_odd = all(k % 2 for k in case.kernel)
    if case.device == "cpu":
        return Choice("auto" if side > SMALL_CPU and is_odd else "conv2d")
    if case.device != "cuda":
        return Choice("conv2d")
    if not is_odd or side <= SMALL_CUDA:
        is_fast = case.dtype in HALF and is_odd and min(case.kernel) >= 5
        return Choice("conv2d", torch.channels_last if is_fast else None)
    if not case.has_kernels or case.dtype not in WITH_KERNELS:
        return Choice("conv2d", torch.contiguous_format)
    is_matrix = case.is_frozen and case.dtype in HALF and _is_full(case.size, case.kernel)
    return Choice("matrix" if is_matrix else "toeplitz", torch.contiguous_format)


def wants_contiguous(device: str, kernels: list[tuple[int, int]]) -> bool:
    """Whether a network with depthwise kernels (H, W) of these sizes computes faster on contiguous maps than
    channels-last: on CUDA, with any that is larger than 7 x 7. Narrow ones such as 1 x 11 are not.
    """
    return device == "cuda" and any(kh * kw > SMALL_CUDA**2 for kh, kw in kernels)


def _is_full(size: tuple[int, int], kernel: tuple[int, int]) -> bool:
    """Whether the map is small and every place of it sees every other; rows of matrices must be aligned."""
    places = size[0] * size[1]
    sees_all = all(k >= 2 * n - 1 for n, k in zip(size, kernel, strict=True))
    return sees_all and 0 < places <= PLACES and places % 4 == 0
