"""FitNets: the student's map, through a small regressor, is the teacher's.

In:  matched maps; the regressor's kind follows from their two sizes.
Out: mean squared difference, in squared units of the teacher's features, summed over the pairs.
Elsewhere: matching (taps.py), the weight beside other losses (distill.training.objective; the
paper's successors use 100).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from runtime.errors import UsageError

from ..base import Outputs
from .base import ConvNorm, FeatureLoss, Relu, mse, one_image, rectified, resize, total

Regressor = Literal["auto", "same", "down", "up", "shrink", "resize"]
LARGEST_KERNEL = 7
"""Above it, pixels, a convolution without padding is no longer a sensible way to shrink a map."""

degenerate = one_image


class FitNets(FeatureLoss):
    """mse(relu(bn(conv(s))), t) (Romero et al. 2015, arXiv:1412.6550).

    regressor: `same` a 1 x 1 convolution, `down` 3 x 3 of stride 2, `up` a transposed 4 x 4 of stride 2,
    `shrink` one without padding whose kernel is the difference in size plus 1, `resize` the 1 x 1 after
    resizing; `auto` takes the first that leads to the teacher's size (`shrink` up to 7 x 7). relu: see
    `distill.losses.feature.base.Relu`. The paper takes one pair, in the middle of the network; here each
    matched pair has a regressor of its own and the losses are added. Raises UsageError when a regressor asked
    for does not lead to the teacher's size.
    """

    def __init__(self, *, regressor: Regressor = "auto", relu: Relu = "auto") -> None:
        super().__init__()
        self.regressor, self.relu = regressor, relu

    def build(
        self, s: list[Tensor], t: list[Tensor], teacher: Outputs, teacher_model: nn.Module | None
    ) -> None:
        self.kinds = [
            kind_of(a, b) if self.regressor == "auto" else self.regressor for a, b in zip(s, t, strict=True)
        ]
        self.regressors = nn.ModuleList(
            ConvNorm(convolution(kind, a, b), b.shape[1], rectified(self.relu, b))
            for kind, a, b in zip(self.kinds, s, t, strict=True)
        )

    def compute(self, s: list[Tensor], t: list[Tensor], teacher: Outputs, target: Tensor) -> Tensor:
        return total(
            mse(regress(resize(a, b.shape[2:]) if kind == "resize" else a), b)
            for a, b, regress, kind in zip(s, t, self.regressors, self.kinds, strict=True)
        )


def kind_of(a: Tensor, b: Tensor) -> Regressor:
    """The regressor that leads from the size of map `a` to that of `b`."""
    small, large = tuple(b.shape[2:]), tuple(a.shape[2:])
    if large == small:
        return "same"
    if tuple((side + 1) // 2 for side in large) == small:
        return "down"
    if tuple(2 * side for side in large) == small:
        return "up"
    if all(0 <= x - y < LARGEST_KERNEL for x, y in zip(large, small, strict=True)):
        return "shrink"
    return "resize"


def convolution(kind: Regressor, a: Tensor, b: Tensor) -> nn.Module:
    """The convolution of that kind from the channels of map `a` to those of `b`."""
    channels = a.shape[1], b.shape[1]
    if kind == "down":
        return nn.Conv2d(*channels, 3, stride=2, padding=1)
    if kind == "up":
        return nn.ConvTranspose2d(*channels, 4, stride=2, padding=1)
    if kind == "shrink":
        kernel = (1 + a.shape[2] - b.shape[2], 1 + a.shape[3] - b.shape[3])
        if min(kernel) < 1:
            raise UsageError(
                f"regressor shrink: a map {tuple(a.shape[2:])} cannot shrink to {tuple(b.shape[2:])}. Use"
                " auto"
            )
        return nn.Conv2d(*channels, kernel)
    return nn.Conv2d(*channels, 1)
