"""OFA-KD's stages: what each stage of the student knows, as logits, learns the teacher's logits.

In:  the student's maps; the teacher's logits, none of its maps, so a teacher of any family will do.
Out: nats per image, summed over the stages.
Elsewhere: the loss itself (distill.losses.logit.ofa, also used alone on the student's own logits), the choice
     (taps.py), the weight beside other losses (distill.training.objective; the paper uses 1).
"""

from __future__ import annotations

import functools
import math

from torch import Tensor, nn

from ..base import MixedLabels, Outputs
from ..logit import ofa
from .base import ConvNorm, FeatureLoss, one_image, total

degenerate = one_image


class OFAStages(FeatureLoss):
    """Sum over stages of ofa(branch_i(s_i), teacher's logits) (Hao et al. 2023, arXiv:2310.19444).

    A branch halves its map (depthwise 3 x 3 of stride 2, 1 x 1, batch norm, ReLU) until it has the size of
    the student's deepest one, doubling channels up to that one's, averages over positions and ends in a
    linear classifier. temperature, eps, mixed_labels: as in `distill.losses.logit.ofa`. The reference has the
    same shape of branch with longer blocks.
    """

    stages = "all"
    teacher_maps = False

    def __init__(
        self, *, temperature: float = 1.0, eps: float = 1.0, mixed_labels: MixedLabels = "argmax"
    ) -> None:
        super().__init__()
        self.loss = functools.partial(ofa.loss, temperature=temperature, eps=eps, mixed_labels=mixed_labels)

    def build(
        self, s: list[Tensor], t: list[Tensor], teacher: Outputs, teacher_model: nn.Module | None
    ) -> None:
        self.branches = nn.ModuleList(branch(a, s[-1], teacher.logits.shape[1]) for a in s)

    def compute(self, s: list[Tensor], t: list[Tensor], teacher: Outputs, target: Tensor) -> Tensor:
        return total(
            self.loss(Outputs(project(a)), teacher, target)
            for a, project in zip(s, self.branches, strict=True)
        )


def branch(x: Tensor, deepest: Tensor, num_classes: int) -> nn.Sequential:
    """Map x (N, C, H, W), at least the size of the student's deepest map, to logits (N, num_classes)."""
    channels, blocks = x.shape[1], []
    for _ in range(max(0, round(math.log2(x.shape[2] / deepest.shape[2])))):
        wider = max(channels, min(2 * channels, deepest.shape[1]))
        halve = nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False)
        blocks.append(
            ConvNorm(nn.Sequential(halve, nn.Conv2d(channels, wider, 1, bias=False)), wider, relu=True)
        )
        channels = wider
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
