"""Attention transfer: where the energy of a map is, whatever its channels are.

In:  matched maps of any channels and sizes; nothing is learned.
Out: squared difference of unit attention maps, averaged over positions and images, summed over the pairs; no
unit.
Elsewhere: matching (taps.py), the weight beside other losses (distill.training.objective; the
reference uses 1000).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from runtime.errors import UsageError

from ..base import Outputs
from .base import FeatureLoss, resize, total


class AT(FeatureLoss):
    """Sum over pairs of mean((A_s - A_t)^2), A = l2norm(flatten(mean_c |x|^p)) (Zagoruyko & Komodakis 2017,
    arXiv:1612.03928).

    p >= 1. The larger of two maps is average-pooled to the smaller before its attention is taken. A map of
    zeros has no attention: A is 0 there, and its gradient too.
    """

    stages = "all"

    def __init__(self, *, p: float = 2.0) -> None:
        super().__init__()
        if p < 1:
            raise UsageError(f"p {p}: expected 1 or more")
        self.p = p

    def compute(self, s: list[Tensor], t: list[Tensor], teacher: Outputs, target: Tensor) -> Tensor:
        return total(self._pair(a, b) for a, b in zip(s, t, strict=True))

    def _pair(self, a: Tensor, b: Tensor) -> Tensor:
        size = [min(sides) for sides in zip(a.shape[2:], b.shape[2:], strict=True)]
        return F.mse_loss(self.attention(resize(a, size)), self.attention(resize(b, size)))

    def attention(self, x: Tensor) -> Tensor:
        """(N, H W), every row of length 1."""
        return F.normalize(x.abs().pow(self.p).mean(dim=1).flatten(1), dim=1)
