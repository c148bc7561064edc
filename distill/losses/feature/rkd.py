"""Relational knowledge distillation: images that are near, or in line, for the teacher are so for the
student.

In:  the last matched pair, averaged over positions to one vector per image; nothing is learned.
Out: smooth-L1 of relative distances and of cosines, each averaged over the batch's pairs or triplets,
weighted; no unit.
Elsewhere: the weight beside other losses (distill.training.objective; the defaults here are the paper's, for
a weight of 1).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runtime.errors import UsageError

from ..base import Outputs
from .base import FeatureLoss

LARGE = 5e8
"""Bytes from which the pairs and triplets of a batch are worth a line."""
COPIES = 6
"""Differences of all pairs that are held at once at the peak, squares, units and their gradients among
them."""


class RKD(FeatureLoss):
    """distance_weight * distances + angle_weight * angles (Park et al. 2019, arXiv:1904.05068).

    Distances between all images are divided by their mean; angles are the cosines at each image between every
    two others. Differences are formed before they are squared, so near images lose no digits; images closer
    than sqrt(eps) count as one point, at distance sqrt(eps) and in no direction, and send back no gradient.
    eps is in squared units of the features. Time and memory grow with batch**2 * channels and batch**3.
    Raises UsageError below 3 images: relative distances of 2 are always 1.
    """

    def __init__(
        self, *, distance_weight: float = 25.0, angle_weight: float = 50.0, eps: float = 1e-12
    ) -> None:
        super().__init__()
        if not distance_weight and not angle_weight:
            raise UsageError(
                "rkd with both weights 0: nothing is taught. Raise distance_weight or angle_weight"
            )
        self.distance_weight, self.angle_weight, self.eps = distance_weight, angle_weight, eps
        self.channels = 0

    def build(
        self, s: list[Tensor], t: list[Tensor], teacher: Outputs, teacher_model: nn.Module | None
    ) -> None:
        self.channels = max(s[-1].shape[1], t[-1].shape[1])

    def notes(self, batch: int) -> list[str]:
        """A warning where the pairs of a batch, or its triplets, take much memory."""
        size = 4 * batch**2 * (COPIES * self.channels + (batch if self.angle_weight else 0))
        if size < LARGE:
            return []
        return [
            f"the differences of all pairs of {batch} images in {self.channels} channels take about"
            f" {size / 1e9:.1f} GB. Use a smaller batch if that is too much"
        ]

    def compute(self, s: list[Tensor], t: list[Tensor], teacher: Outputs, target: Tensor) -> Tensor:
        if len(s[-1]) < 3:
            raise UsageError(_too_few(len(s[-1])))
        (distance_s, unit_s), (distance_t, unit_t) = (self._relations(x[-1].mean((2, 3))) for x in (s, t))
        loss = self.distance_weight * F.smooth_l1_loss(distance_s, distance_t)
        if self.angle_weight:
            cosines_s, cosines_t = unit_s @ unit_s.mT, unit_t @ unit_t.mT
            loss = loss + self.angle_weight * F.smooth_l1_loss(cosines_s, cosines_t)
        return loss

    def _relations(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(distances over their mean (N, N), unit vectors from image i to image j (N, N, C)) of vectors (N,
        C).
        """
        difference = x.unsqueeze(0) - x.unsqueeze(1)
        squared = difference.square().sum(dim=2)
        same = squared < self.eps  # where the slope of the root is infinite
        length = squared.masked_fill(same, self.eps).sqrt()
        unit = difference / length.masked_fill(same, torch.inf).unsqueeze(2)
        others = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
        length = length * others
        return length * (others.sum() / length.sum()), unit


def degenerate(num_classes: int, batch: int, logits: Tensor | None, settings: dict[str, Any]) -> list[str]:
    """An error below 3 images."""
    if batch < 3:
        raise UsageError(_too_few(batch))
    return []


def _too_few(batch: int) -> str:
    return (
        f"rkd with batch {batch}: relations between fewer than 3 images are always the same. Use a batch of 3"
        " or more"
    )
