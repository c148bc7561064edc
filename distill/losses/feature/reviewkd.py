"""ReviewKD: each stage of the student, fused with all deeper ones, learns the teacher's map of that stage.

In:  matched maps of all stages, shallow to deep.
Out: hierarchical context loss, in squared units of the teacher's features, summed over the stages.
Elsewhere: matching (taps.py), the weight beside other losses (distill.training.objective; the paper
     uses 1 for ImageNet, raised from 0 over the first epochs).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Outputs
from .base import ConvNorm, FeatureLoss, mse, one_image, total

LEVELS = (4, 2, 1)
"""Sizes, in positions, at which maps are compared beside their own."""

degenerate = one_image


class ReviewKD(FeatureLoss):
    """Sum over stages of hcl(fused student map, teacher map) (Chen et al. 2021, arXiv:2104.09044).

    The fusion goes from the deepest stage up: a 1 x 1 convolution to `mid_channels` (0: those of the
    student's deepest map, 512 at most), a weighted sum with the result of the stage below, and a 3 x 3
    convolution to the teacher's channels. pooled: the averages of the deepest maps are a stage of their own,
    1 x 1, below them, as in the paper.
    """

    stages = "all"

    def __init__(self, *, mid_channels: int = 0, pooled: bool = True) -> None:
        super().__init__()
        self.mid_channels, self.pooled = mid_channels, pooled

    def build(
        self, s: list[Tensor], t: list[Tensor], teacher: Outputs, teacher_model: nn.Module | None
    ) -> None:
        s, t = self._deepest_first(s, t)
        mid = self.mid_channels or min(512, s[0].shape[1])
        self.fusions = nn.ModuleList(
            Fusion(a.shape[1], mid, b.shape[1], fused=i > 0)
            for i, (a, b) in enumerate(zip(s, t, strict=True))
        )

    def compute(self, s: list[Tensor], t: list[Tensor], teacher: Outputs, target: Tensor) -> Tensor:
        s, t = self._deepest_first(s, t)
        residual, outputs = None, []
        for fusion, a, b in zip(self.fusions, s, t, strict=True):
            output, residual = fusion(a, residual, b.shape[2:])
            outputs.append(output)
        return hcl(outputs, t)

    def _deepest_first(self, s: list[Tensor], t: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        if self.pooled:
            s, t = [*s, s[-1].mean((2, 3), keepdim=True)], [*t, t[-1].mean((2, 3), keepdim=True)]
        return s[::-1], t[::-1]


class Fusion(nn.Module):
    """Attention-based fusion of one stage with the result of the stage below."""

    def __init__(self, inputs: int, mid: int, outputs: int, fused: bool) -> None:
        super().__init__()
        reduce = nn.Conv2d(inputs, mid, 1, bias=False)
        self.reduce = ConvNorm(reduce, mid)
        expand = nn.Conv2d(mid, outputs, 3, padding=1, bias=False)
        self.expand = ConvNorm(expand, outputs)
        self.attention = nn.Conv2d(2 * mid, 2, 1) if fused else None
        for convolution in (reduce, expand):
            nn.init.kaiming_uniform_(convolution.weight, a=1)

    def forward(self, x: Tensor, residual: Tensor | None, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(map for the teacher's channels, map for the next stage up), both of `size` (H, W)."""
        x = self.reduce(x)
        if self.attention is not None and residual is not None:
            residual = F.interpolate(residual, x.shape[2:], mode="nearest")
            share = self.attention(torch.cat([x, residual], dim=1)).sigmoid()
            x = x * share[:, :1] + residual * share[:, 1:]
        if x.shape[2:] != size:
            x = F.interpolate(x, tuple(size), mode="nearest")
        return self.expand(x), x


def hcl(student: Sequence[Tensor], teacher: Sequence[Tensor], levels: Sequence[int] = LEVELS) -> Tensor:
    """Hierarchical context loss: sum over maps of the mean of mse at full size (weight 1) and average-pooled
    to each of `levels` that is smaller than the map (weights 1/2, 1/4, 1/8 in turn), divided by the sum of
    the weights used.
    """
    stages = []
    for s, t in zip(student, teacher, strict=True):
        terms, weights = [mse(s, t)], [1.0]
        for level in levels:
            if level < min(s.shape[2:]):
                terms.append(F.mse_loss(F.adaptive_avg_pool2d(s, level), F.adaptive_avg_pool2d(t, level)))
                weights.append(weights[-1] / 2)
        stages.append(total(w * term for w, term in zip(weights, terms, strict=True)) / sum(weights))
    return total(stages)
