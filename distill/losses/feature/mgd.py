"""Masked generative distillation: from the student's map with channels blotted out, a small generator
restores the teacher's.

In:  matched maps.
Out: alpha_mgd times the sum of squared differences over an image, averaged over images, summed over the
pairs.
Elsewhere: matching (taps.py), the weight beside other losses (distill.training.objective; alpha_mgd
is the paper's, for 1).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from runtime.errors import UsageError

from ..base import Outputs
from .base import FeatureLoss, require_equal_shapes, resize, total


class MGD(FeatureLoss):
    """alpha_mgd * sum((G(mask * align(s)) - t)^2) / N, G = 3 x 3 conv, ReLU, 3 x 3 conv (Yang et al. 2022,
    arXiv:2205.01529).

    The mask drops each channel of each image with probability lambda_mgd (0 to 1), anew at every step, from
    torch's generator. align is a 1 x 1 convolution where channels differ. The student's map is resized to the
    teacher's size first. Defaults: the paper's for classification, on the last stage; the sum grows with the
    map, so a shallower stage weighs more.
    """

    def __init__(self, *, alpha_mgd: float = 7e-5, lambda_mgd: float = 0.15) -> None:
        super().__init__()
        if lambda_mgd >= 1:
            raise UsageError(f"lambda_mgd {lambda_mgd}: expected a share of channels below 1")
        self.alpha_mgd, self.lambda_mgd = alpha_mgd, lambda_mgd

    def build(
        self, s: list[Tensor], t: list[Tensor], teacher: Outputs, teacher_model: nn.Module | None
    ) -> None:
        channels = [(a.shape[1], b.shape[1]) for a, b in zip(s, t, strict=True)]
        self.align = nn.ModuleList(nn.Identity() if a == b else nn.Conv2d(a, b, 1) for a, b in channels)
        self.generators = nn.ModuleList(
            nn.Sequential(nn.Conv2d(b, b, 3, padding=1), nn.ReLU(), nn.Conv2d(b, b, 3, padding=1))
            for _, b in channels
        )

    def compute(self, s: list[Tensor], t: list[Tensor], teacher: Outputs, target: Tensor) -> Tensor:
        differences = []
        for a, b, align, generate in zip(s, t, self.align, self.generators, strict=True):
            aligned = align(resize(a, b.shape[2:]))
            restored = generate(aligned * self.draw_mask(aligned))
            require_equal_shapes(restored, b)
            differences.append((restored - b).square().sum() / len(b))
        return self.alpha_mgd * total(differences)

    def draw_mask(self, x: Tensor) -> Tensor:
        """(N, C, 1, 1) of zeros and ones for maps x (N, C, H, W)."""
        return (torch.rand(*x.shape[:2], 1, 1, device=x.device) >= self.lambda_mgd).to(x.dtype)
