"""Matrices that a frozen depthwise kernel amounts to, made once and kept as long as the weight exists.

In:  a weight (C, 1, KH, KW) and the size of the maps.
Out: banded Toeplitz matrices along one side (`banded`), or the whole map as one matrix (`full`); the same
     from a cache (`kept`).
Elsewhere: what multiplies with them (kernels.py, launch.py), when which is used (rule.py).

Memory, in values of the maps' type: `banded` C * taps * (2 * reach + 1) * block**2, which for maps up to 64
is C * taps * 64**2 at most (5 MB for SLaK-T's first stage in bfloat16); `full` C * (H * W)**2 (39 MB for 512
channels of 14 x 14).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from .tiles import Side

SIZES_KEPT = 4
"""Forms of one weight that are kept at the same time: for maps of so many sizes and types."""

_kept: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""Weight -> {(version, place, kind): (form, the weight it is of)}. An entry goes when its weight does."""
_held: list[Tensor] | None = None
"""Forms that were used within `held`."""


def banded(kernel: Tensor, side: Side, dtype: torch.dtype) -> Tensor:
    """kernel (C, K, L), L along `side` -> (C, K, 2 * reach + 1, block, block): T[i, j] = kernel[i - j +
    L // 2] between the block of the inputs i and the one of the outputs j, by how far the first is behind.
    """
    length, reach = kernel.shape[2], side.reach(kernel.shape[2])
    place = torch.arange(side.block, device=kernel.device)
    apart = torch.arange(-reach, reach + 1, device=kernel.device)[:, None, None] * side.block
    return _picked(kernel.to(dtype), apart + place[:, None] - place + length // 2)


def full(weight: Tensor, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """weight (C, 1, KH, KW), odd -> (C, H * W, H * W): rows are places of x, columns of y."""
    (height, width), (kh, kw) = size, weight.shape[2:]
    down, right = (
        place[:, None] - place + k // 2
        for place, k in ((torch.arange(n, device=weight.device), k) for n, k in ((height, kh), (width, kw)))
    )
    rows = _picked(weight[:, 0].to(dtype).transpose(1, 2), down)  # (C, KW, H, H)
    both = _picked(rows.permute(0, 2, 3, 1), right)  # (C, H in, H out, W in, W out)
    return both.transpose(2, 3).reshape(len(weight), height * width, height * width)


def kept(weight: Tensor, kind: Hashable, make: Callable[[], Tensor]) -> Tensor | None:
    """The form of this kind of a frozen parameter, from the cache or made now; None for a weight that is
    trained, that is not a parameter (a passing copy), or that a CUDA graph reads (but see `held`).

    A weight that was changed in place, moved or replaced has another version or place, so its form is made
    anew. Writing through `weight.data` leaves the version as it was: torch's autograd does not see it either.
    """
    if not isinstance(weight, nn.Parameter) or weight.is_inference():
        return None
    if weight.requires_grad:
        _kept.pop(weight, None)  # fused optimizers change a weight without a new version
        return None
    is_recorded = weight.is_cuda and torch.cuda.is_current_stream_capturing()
    if is_recorded and _held is None:
        return None  # its replays read the weight, which may have changed by then
    key = (weight._version, weight.data_ptr(), weight.device, kind)
    found: dict[tuple[Hashable, ...], tuple[Tensor, Tensor]] = _kept.setdefault(weight, {})
    if key not in found:
        if is_recorded:
            return None  # memory of a graph is overwritten by its next replay
        for old in [each for each in found if each[:3] != key[:3]]:
            del found[old]
        while len(found) >= SIZES_KEPT:
            del found[next(iter(found))]
        with torch.inference_mode(False), torch.no_grad():
            found[key] = make(), weight.detach()  # no other weight comes to this place while it is in the key
    if _held is not None:
        _held.append(found[key][0])
    return found[key][0]


@contextlib.contextmanager
def held() -> Iterator[list[Tensor]]:
    """Within it a CUDA graph that is recorded reads the forms that were made before. Keep the list of them as
    long as the graph, and leave the weights as they are: a replay does not see that they have changed.
    """
    global _held
    before, _held = _held, []
    try:
        yield _held
    finally:
        _held = before


def _picked(values: Tensor, index: Tensor) -> Tensor:
    """values (..., L) at `index` (any shape) -> (..., *index.shape), zeros where it is outside."""
    inside = (index >= 0) & (index < values.shape[-1])
    return torch.where(inside, values[..., index.clamp(0, values.shape[-1] - 1)], 0)
