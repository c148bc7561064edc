"""Another network, or the same one rounded in another way?

In:  a torch network and images; two sets of its logits in fp32.
Out: `Rounding`: how far each is from the network's logits in float64.
Elsewhere: the comparison that asks where two sets differ by more than is allowed (export.checks.verify).

Merged branches and an engine's kernels take the same sums in another order. Some networks, most of all such
with fresh weights, make large differences of that; but then torch's own fp32 is as far from float64.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import nn  # a plan is checked on boards without torch

MOST = 2.0
"""How many times as far from float64 as torch's fp32 logits may be."""


def torch_logits(network: nn.Module, images: np.ndarray, batch: int = 16) -> np.ndarray:
    """(N, K) of preprocessed images (N, C, H, W), in their dtype, which is the network's."""
    import torch

    with torch.inference_mode():
        parts = [
            network(torch.from_numpy(images[i : i + batch])).numpy() for i in range(0, len(images), batch)
        ]
    return np.concatenate(parts)


@dataclass(frozen=True)
class Rounding:
    """Distances to the logits in float64."""

    torch_max_abs: float
    """Largest difference of torch's fp32 logits."""
    max_abs: float
    """That of the others."""
    torch_flips: int
    """Images for which torch's fp32 logits have another best class."""
    flips: int

    @property
    def explains(self) -> bool:
        """Are the others as near to float64 as torch is?"""
        return self.max_abs <= MOST * self.torch_max_abs and self.flips <= self.torch_flips


class Exact:
    """A network's logits in float64, computed when they are asked for."""

    def __init__(self, network: nn.Module, images: np.ndarray) -> None:
        """images: (N, C, H, W) float32, preprocessed."""
        self.network, self.images = network, images

    @cached_property
    def logits(self) -> np.ndarray:
        """(N, K) float64."""
        return torch_logits(copy.deepcopy(self.network).double(), self.images.astype(np.float64))

    def rounding(self, reference: np.ndarray, logits: np.ndarray) -> Rounding:
        """reference: (N, K), torch's fp32 logits for the first N images; logits: (N, K), the others."""
        exact = self.logits[: len(reference)]
        own, other = (float(np.abs(each - exact).max()) for each in (reference, logits))
        own_flips, flips = (int((each.argmax(1) != exact.argmax(1)).sum()) for each in (reference, logits))
        return Rounding(own, other, own_flips, flips)
