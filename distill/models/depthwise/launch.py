"""Launching the Triton kernels on torch's tensors.

In:  maps (N, C, H, W) of any strides, kernels (C, 1, KH, KW) of odd sides.
Out: outputs and gradients of the kernel.
Elsewhere: the kernels (kernels.py), when they are used (rule.py), what torch sees of it (operators.py).
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import forms
from .tiles import MOST, STAGES, Side, images, long_side, row_side, unit

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LEAST_CAPABILITY = (8, 0)
"""GPUs from Ampere on: with tensor cores for bfloat16 and TF32."""
PROGRAMS = 512
"""Programs that the kernel's gradient is divided into, where there are images enough. A constant, not the
size of this GPU: the same seed gives the same bits on all."""
WARPS_ONE, WARPS_TWO = 4, 8
FAR = 2**31
"""The first offset that 32 bits do not hold."""


_available: dict[tuple[str, int | None], bool] = {}


def interprets() -> bool:
    """Whether Triton runs its kernels on the CPU, in Python: for tests."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@torch.compiler.assume_constant_result
def is_available(device: str, index: int | None = None) -> bool:
    """Whether the kernels run on this device ("cuda", "cpu", ...). Asked once for each."""
    if (device, index) not in _available:
        _available[device, index] = _is_available(device, index)
    return _available[device, index]


def _is_available(device: str, index: int | None) -> bool:
    if importlib.util.find_spec("triton") is None:
        return False
    if device == "cpu":
        return interprets()
    if device != "cuda" or torch.version.cuda is None:
        return False
    if torch.cuda.get_device_capability(index) < LEAST_CAPABILITY:
        return False
    if reason := _why_triton_fails():
        warnings.warn(
            "large depthwise kernels are computed by cuDNN, which is slower: Triton does not work here"
            f" ({reason})",
            stacklevel=2,
        )
    return not reason


def _why_triton_fails() -> str | None:
    """What Triton says when it meets the GPU; None where it works. Its first step needs a C compiler."""
    try:
        from triton.runtime import driver

        driver.active.get_current_target()
    except Exception as error:  # of compilers, drivers and loaders, each with an exception of its own
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return None


def runs(x: Tensor) -> bool:
    """Whether the kernels take these maps."""
    return x.dtype in DTYPES and is_available(x.device.type, x.device.index)


def convolve(
    x: Tensor, weight: Tensor, other: Tensor | None, bias: Tensor | None, y: Tensor, flip: bool = False
) -> Tensor:
    """y = x * weight (+ x * other) (+ bias), each padded to keep the map's size. flip: both kernels turned by
    180 degrees, which gives the gradient of x from that of y.
    """
    if other is not None:
        _require_crossed(weight, other)
    if not y.numel():
        return y
    bias = None if bias is None else bias.contiguous()  # the kernels read it without a stride
    with _device_of(x):
        if other is None:
            _one(x, weight, bias, y, flip)
        else:
            _two(_Crossed.of(x, x, weight, other), bias, y, None, flip)
    return y


def branches(x: Tensor, weight: Tensor, other: Tensor, ys: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """ys, of one memory format: x * weight and x * other, which are a tall and a wide kernel, in one pass."""
    _require_crossed(weight, other)
    if x.numel():
        tall, wide = ys if _is_tall(weight) else ys[::-1]
        with _device_of(x):
            _two(_Crossed.of(x, x, weight, other), None, wide, tall, False)
    return ys


def branches_input_gradient(
    grad: Tensor, other_grad: Tensor, weight: Tensor, other: Tensor, found: Tensor
) -> Tensor:
    """found: the gradient of x from those of `branches`, which are of the same strides."""
    _require_crossed(weight, other)
    if found.numel():
        with _device_of(grad):
            _two(_Crossed.of(grad, other_grad, weight, other), None, found, None, True)
    return found


def _require_crossed(weight: Tensor, other: Tensor) -> None:
    if _is_tall(weight) == _is_tall(other):
        raise ValueError(
            f"kernels {tuple(weight.shape[2:])} and {tuple(other.shape[2:])}: expected a tall and a wide one"
        )


@dataclass(frozen=True)
class _Crossed:
    """A tall and a wide kernel, and the maps that each reads."""

    x_tall: Tensor
    x_wide: Tensor
    tall: Tensor
    wide: Tensor

    @classmethod
    def of(cls, x: Tensor, other_x: Tensor, weight: Tensor, other: Tensor) -> _Crossed:
        """weight reads x, other the other."""
        if _is_tall(weight):
            return cls(x, other_x, weight, other)
        return cls(other_x, x, other, weight)


def matrix(x: Tensor, form: Tensor, bias: Tensor | None, y: Tensor) -> Tensor:
    """y = the maps of x, contiguous, times `forms.full` of every channel."""
    n, c, h, w = x.shape
    rows, out = (t.view(n, c, h * w).transpose(0, 1) for t in (x, y))
    torch.bmm(rows, form, out=out)
    return y if bias is None else y.add_(bias.to(y.dtype).view(-1, 1, 1))


def weight_gradient(x: Tensor, grad: Tensor, kernel: tuple[int, int]) -> Tensor:
    """(C, 1, *kernel) float32: the gradient of the kernel from x and the gradient of y."""
    size = _size(x)
    inside = _inside(size, kernel)
    tall = inside[0] > inside[1]
    (rows, long), (taps, length) = (_turned(pair, tall) for pair in (size, inside))
    with _device_of(x):
        sums = _weight_sums(x, grad, tall, row_side(rows), long_side(long, length), taps, length)
    found = sums.transpose(1, 2) if tall else sums
    top, left = ((k - i) // 2 for k, i in zip(kernel, inside, strict=True))
    return F.pad(found, (left, left, top, top)).unsqueeze(1)


def _device_of(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be that of the maps."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _one(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, flip: bool) -> None:
    from . import kernels

    n, c = x.shape[:2]
    kernel = _kernel(x, weight)
    tall = kernel.shape[1] > kernel.shape[2]
    taps = kernel.transpose(1, 2) if tall else kernel  # (C, K, L)
    rows_size, long_size = _turned(_size(x), tall)
    rows, long = row_side(rows_size), long_side(long_size, taps.shape[2])
    form = None if flip else _banded(weight, taps, long, x.dtype)
    per_program = images(rows.block, x.element_size())
    passed = _passed(tall, x, y)
    grid = (c * long.blocks * rows.blocks * -(-n // per_program),)
    kernels.one[grid](
        x,
        taps,
        taps if form is None else form,
        taps if bias is None else bias,
        y,
        n,
        c,
        *passed.size,
        *taps.shape[1:],
        *passed.strides[0],
        *taps.stride(),
        *passed.strides[1],
        P=per_program,
        BR=rows.block,
        B=long.block,
        BLOCKS=long.blocks,
        REACH=long.reach(taps.shape[2]),
        FORM=form is not None,
        BIAS=bias is not None,
        FLIP=flip,
        num_warps=WARPS_ONE,
        **passed.settings,
    )


def _two(pair: _Crossed, bias: Tensor | None, y: Tensor, y_tall: Tensor | None, flip: bool) -> None:
    """y: the sum; with y_tall what the wide kernel gives alone."""
    from . import kernels

    x, tall, wide = pair.x_wide, pair.tall, pair.wide
    n, c, h, w = x.shape
    down, across = _kernel(x, tall).transpose(1, 2), _kernel(x, wide)  # (C, K, L) each
    high, broad = long_side(h, down.shape[2]), long_side(w, across.shape[2])
    both = None
    if not flip:
        both = _banded(tall, down, high, x.dtype), _banded(wide, across, broad, x.dtype)
    has_forms = both is not None and None not in both
    tall_form, wide_form = both if both is not None and has_forms else (down, across)
    per_program = images(max(high.block, broad.block), x.element_size())
    passed = _passed(False, x, y)
    grid = (c * high.blocks * broad.blocks * -(-n // per_program),)
    kernels.two[grid](
        x,
        pair.x_tall,
        down,
        across,
        tall_form,
        wide_form,
        down if bias is None else bias,
        y,
        y if y_tall is None else y_tall,
        n,
        c,
        *passed.size,
        *down.shape[1:],
        *across.shape[1:],
        *passed.strides[0],
        *down.stride(),
        *across.stride(),
        *passed.strides[1],
        P=per_program,
        BH=high.block,
        BW=broad.block,
        H_BLOCKS=high.blocks,
        W_BLOCKS=broad.blocks,
        TALL_REACH=high.reach(down.shape[2]),
        WIDE_REACH=broad.reach(across.shape[2]),
        FORM=has_forms,
        BIAS=bias is not None,
        APART=y_tall is not None,
        FLIP=flip,
        num_warps=WARPS_TWO,
        **passed.settings,
    )


def _weight_sums(
    x: Tensor, grad: Tensor, tall: bool, rows: Side, long: Side, taps: int, length: int
) -> Tensor:
    """(C, taps, length) float32."""
    from . import kernels

    n, c = x.shape[:2]
    wide = x.new_zeros((c, taps, length), dtype=torch.float32)
    if not x.numel():
        return wide
    reach, per_program = long.reach(length), images(rows.block, x.element_size())
    groups = -(-n // per_program) * rows.blocks
    programs = c * taps * (2 * reach + 1) * long.blocks
    parts = min(groups, max(1, -(-PROGRAMS // programs)))
    shape = (parts, long.blocks, 2 * reach + 1, c, taps, 2 * long.block)
    sums = torch.empty(shape, dtype=torch.float32, device=x.device)
    passed = _passed(tall, x, grad)
    kernels.weight_sums[(parts * programs,)](
        x,
        grad,
        sums,
        n,
        c,
        *passed.size,
        taps,
        *passed.strides[0],
        *passed.strides[1],
        -(-groups // parts),
        P=per_program,
        BR=rows.block,
        B=long.block,
        BLOCKS=long.blocks,
        REACH=reach,
        num_warps=WARPS_ONE,
        **passed.settings,
    )
    return _diagonals(sums.sum((0, 1)), length)


def _diagonals(sums: Tensor, length: int) -> Tensor:
    """(2 * reach + 1, C, K, 2 * B) by i - j + B in pairs of blocks -> (C, K, length) by i - j."""
    offsets, c, taps, twice = sums.shape
    block, reach = twice // 2, offsets // 2
    line = sums.new_zeros((c, taps, (offsets + 1) * block))
    for index, each in enumerate(sums):
        line[..., index * block : index * block + twice] += each
    middle = (reach + 1) * block
    return line[..., middle - length // 2 : middle + length // 2 + 1]


@dataclass(frozen=True)
class _Passed:
    """The maps of a launch as every kernel takes them."""

    strides: tuple[tuple[int, ...], ...]
    """Of each map: from image to image, channel, row, and along the long side; in units."""
    size: tuple[int, int]
    """Rows of a map, and places of the long side; in units."""
    settings: dict[str, Any]
    """The units, and how it is computed."""


def _passed(tall: bool, *maps: Tensor) -> _Passed:
    """Strides and sizes are divided by the powers of two that the kernels multiply them by again."""
    strides = [(*t.stride()[:2], *_turned(t.stride()[2:], tall)) for t in maps]
    plane, row, long = _units(
        [step for each in strides for step in each[:2]],
        [each[2] for each in strides],
        [each[3] for each in strides],
    )
    rows, places = _turned(_size(maps[0]), tall)
    return _Passed(
        tuple((n // plane, c // plane, r // row, s // long) for n, c, r, s in strides),
        (rows // unit(rows), places // unit(places)),
        {
            "A_PLANE": plane,
            "A_ROW": row,
            "A_LONG": long,
            "A_SIDE": unit(rows),
            "A_SIZE": unit(places),
            "FAR": any(_reaches_far(t) for t in maps),
            "PRECISION": "tf32" if _tf32_is_allowed(maps[0]) else "ieee",
            "EMULATE": maps[0].device.type == "cpu",
            "num_stages": STAGES[maps[0].element_size()],
        },
    )


def _reaches_far(t: Tensor) -> bool:
    """Whether a stride, or an offset within one map or a tile that hangs over its edge, needs 64 bits."""
    within = sum((size + 2 * MOST) * step for size, step in zip(t.shape[2:], t.stride()[2:], strict=True))
    return max(within, *t.stride()[:2]) >= FAR


def _units(*strides: Sequence[int]) -> list[int]:
    """What the strides of each group are passed in multiples of; 1 for all where one is not a 32-bit number,
    because the kernels multiply again in the type of the argument.
    """
    if any(stride >= FAR for group in strides for stride in group):
        return [1] * len(strides)
    return [unit(*group) for group in strides]


def _tf32_is_allowed(x: Tensor) -> bool:
    """As for torch's own convolutions: torch.backends.cudnn.conv.fp32_precision; allow_tf32 sets it too."""
    return x.is_cuda and torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]


def _banded(weight: Tensor, taps: Tensor, side: Side, dtype: torch.dtype) -> Tensor | None:
    """The matrices of a frozen weight; None for a trained one, whose matrices are made inside the kernel."""
    kind = ("banded", tuple(taps.shape), taps.stride()[1] == 1, side, dtype)
    return forms.kept(weight, kind, lambda: forms.banded(taps, side, dtype))


def _kernel(x: Tensor, weight: Tensor) -> Tensor:
    """(C, KH, KW): the part of the kernel that can touch the map."""
    inside = _inside(_size(x), _size(weight))
    top, left = ((k - i) // 2 for k, i in zip(weight.shape[2:], inside, strict=True))
    return weight.detach()[:, 0, top : top + inside[0], left : left + inside[1]]


def _inside(size: tuple[int, int], kernel: tuple[int, int]) -> tuple[int, int]:
    reach = [min(k // 2, max(n - 1, 0)) for n, k in zip(size, kernel, strict=True)]
    return 2 * reach[0] + 1, 2 * reach[1] + 1


def _is_tall(weight: Tensor) -> bool:
    return weight.shape[2] > weight.shape[3]


def _size(t: Tensor) -> tuple[int, int]:
    return t.shape[2], t.shape[3]


def _turned(pair: Any, tall: bool) -> tuple[Any, Any]:
    """(rows, long side) from (H, W): the long side is H for a tall kernel."""
    return (pair[1], pair[0]) if tall else (pair[0], pair[1])
