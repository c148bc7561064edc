"""Feature distillation: the student's map, projected, is the teacher's map after a normalization without
parameters.

In:  matched maps or tokens.
Out: smooth-L1 or squared difference, averaged over elements, summed over the pairs; in units of the
normalized target.
Elsewhere: matching (taps.py), the weight beside other losses (distill.training.objective; the paper
distills with this loss alone).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Outputs
from .base import FeatureLoss, require_equal_shapes, resize, total

EPS = 1e-5


class FD(FeatureLoss):
    """smooth_l1(project(s), normalize(t)) (Wei et al. 2022, arXiv:2205.14141).

    target_norm: `position` a layer norm over channels at every position (the paper's whitening), `map` one
    over (C, H, W) of every image (what the released large-kernel code builds and never applies), `none` (what
    it computes). criterion `smooth_l1` turns from squares to lines at beta >= 0, in units of the target;
    `mse` does not use beta. projector: a 1 x 1 convolution `always` (the paper) or where channels differ
    (`auto`), so that maps of equal channels are compared as they are. The student's map is resized to the
    teacher's size first.
    """

    def __init__(
        self,
        *,
        target_norm: Literal["position", "map", "none"] = "position",
        criterion: Literal["smooth_l1", "mse"] = "smooth_l1",
        beta: float = 2.0,
        projector: Literal["auto", "always"] = "auto",
    ) -> None:
        super().__init__()
        self.target_norm, self.criterion, self.beta, self.projector = target_norm, criterion, beta, projector

    def build(
        self, s: list[Tensor], t: list[Tensor], teacher: Outputs, teacher_model: nn.Module | None
    ) -> None:
        self.projectors = nn.ModuleList(
            (
                nn.Identity()
                if self.projector == "auto" and a.shape[1] == b.shape[1]
                else nn.Conv2d(a.shape[1], b.shape[1], 1)
            )
            for a, b in zip(s, t, strict=True)
        )

    def compute(self, s: list[Tensor], t: list[Tensor], teacher: Outputs, target: Tensor) -> Tensor:
        return total(
            self._pair(project(resize(a, b.shape[2:])), self.normalize(b))
            for a, b, project in zip(s, t, self.projectors, strict=True)
        )

    def normalize(self, x: Tensor) -> Tensor:
        """The target: map (N, C, H, W) after `target_norm`."""
        if self.target_norm == "position":
            return F.layer_norm(x.movedim(1, -1), x.shape[1:2], eps=EPS).movedim(-1, 1)
        return F.layer_norm(x, x.shape[1:], eps=EPS) if self.target_norm == "map" else x

    def _pair(self, x: Tensor, y: Tensor) -> Tensor:
        require_equal_shapes(x, y)
        return F.mse_loss(x, y) if self.criterion == "mse" else F.smooth_l1_loss(x, y, beta=self.beta)
