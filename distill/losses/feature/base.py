"""What every feature loss shares: pairs of maps in one form and precision, learnable parts made when the
shapes are known.

In:  student and teacher `Outputs` whose features are matched: student.features[i] belongs to
     teacher.features[i], shallow to deep; each a map (N, C, H, W), tokens (N, L, C) or vectors (N, C).
Out: a module called as loss(student, teacher, target) -> scalar tensor, with its projectors as ordinary
parameters.
Elsewhere: where features come from and which are matched (taps.py), the formulas (one file per loss
beside this one).

The rule for maps of two sizes: where both sides shrink, adaptive average pooling, so that every pixel counts;
otherwise bilinear interpolation (corners not aligned). It is the student's map that is resized, to the
teacher's size, unless a loss says otherwise.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runtime.errors import UsageError

from ..base import Outputs, widen

Relu = Literal["auto", "always", "never"]
"""Whether a projector ends in a ReLU. The originals always do, for teachers whose maps do; auto: where the
teacher's sample has no negative value, because a rectified map can never reach the negative half of a
ConvNeXt, Swin or ViT."""


class FeatureLoss(nn.Module):
    """Base of the feature losses; a subclass gives `compute`, and `build` where it has something to learn.

    Everything is computed in float32 or wider, under autocast too, and no gradient reaches the teacher.
    """

    stages = "last"
    """What it compares unless told otherwise: last or all, in the words of `taps.match`."""
    teacher_maps = True
    """Whether the loss reads the teacher's maps; if not, it takes the student's alone."""

    def __init__(self) -> None:
        super().__init__()
        self.prepared = False

    def prepare(
        self, student: Outputs, teacher: Outputs, teacher_model: nn.Module | None = None
    ) -> FeatureLoss:
        """Make the learnable parts for features of these shapes, from torch's CPU generator; a second call
        does nothing.

        To be called with a sample batch before the optimizer is built and before a saved state is loaded; a
        loss that was not prepared does it at its first call. teacher_model is needed by losses that use the
        teacher's layers (srrl). Raises UsageError when the features do not come in pairs.
        """
        if not self.prepared:
            s, t = self._maps(student, teacher)
            with torch.inference_mode(False), torch.device("cpu"):
                self.build(s, t, teacher, teacher_model)
            self.to(s[0].device, s[0].dtype)
            self.prepared = True
        return self

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        if not self.prepared:
            self.prepare(student, teacher)
        s, t = self._maps(student, teacher)
        with torch.autocast(s[0].device.type, enabled=False):
            return self.compute(s, t, teacher, target)

    def build(
        self, s: list[Tensor], t: list[Tensor], teacher: Outputs, teacher_model: nn.Module | None
    ) -> None:
        """Make the learnable parts for maps of these shapes; nothing by default."""

    def compute(self, s: list[Tensor], t: list[Tensor], teacher: Outputs, target: Tensor) -> Tensor:
        """The loss of matched maps (N, C, H, W), float32 or wider."""
        raise NotImplementedError

    def notes(self, batch: int) -> list[str]:
        """Lines to show before training with batches of so many images, once prepared; none by default."""
        return []

    def _maps(self, student: Outputs, teacher: Outputs) -> tuple[list[Tensor], list[Tensor]]:
        name, theirs = type(self).__name__, teacher.features if self.teacher_maps else student.features
        if not student.features or len(student.features) != len(theirs):
            raise UsageError(
                f"{name}: {len(student.features)} maps of the student and {len(theirs)} of the teacher; "
                "expected one or more matched pairs"
            )
        for s, t in zip(student.features, theirs, strict=True):
            if len(s) != len(t):
                raise UsageError(
                    f"{name}: maps of {len(s)} student images and {len(t)} teacher images; expected the same"
                    " batch"
                )
            if not (_has_grid(s) and _has_grid(t)) and _positions(s) != _positions(t):
                raise UsageError(
                    f"{name}: {_positions(s)} and {_positions(t)} positions cannot be matched, because tokens"
                    " that fill no square have no neighbors. Give them without class token, or as a map (N,"
                    " C, H, W)"
                )
        return [as_map(x) for x in student.features], [as_map(x.detach()) for x in theirs]


def as_map(x: Tensor) -> Tensor:
    """(N, C, H, W) in float32 or wider: of a map, of tokens (N, L, C) in rows of a square (one row where L is
    no square), of vectors (N, C) as one position. Raises UsageError for other shapes.
    """
    x = widen(x)
    if x.ndim == 4:
        return x
    if x.ndim == 3:
        side = math.isqrt(x.shape[1])
        grid = (side, side) if side * side == x.shape[1] else (1, x.shape[1])
        return x.transpose(1, 2).unflatten(2, grid)
    if x.ndim == 2:
        return x[:, :, None, None]
    raise UsageError(
        f"a feature of shape {tuple(x.shape)}: expected a map (N, C, H, W), tokens (N, L, C) or vectors"
        " (N, C)"
    )


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Map (N, C, H, W) at `size` (H, W), by the rule above; itself where it has that size."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    if size[0] <= x.shape[2] and size[1] <= x.shape[3]:
        return F.adaptive_avg_pool2d(x, (size[0], size[1]))
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def total(values: Iterable[Tensor]) -> Tensor:
    """The sum of one value or more."""
    return functools.reduce(operator.add, values)


def mse(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared difference over all elements. Raises UsageError when the shapes differ, where torch would
    stretch one.
    """
    require_equal_shapes(x, y)
    return F.mse_loss(x, y)


def require_equal_shapes(x: Tensor, y: Tensor) -> None:
    if x.shape != y.shape:
        raise UsageError(
            f"the student's map became {tuple(x.shape)}, the teacher's is {tuple(y.shape)}: "
            "the loss was prepared for maps of another size, or for another projector"
        )


def rectified(relu: Relu, target: Tensor) -> bool:
    """Whether a projector to `target` ends in a ReLU (see `Relu`)."""
    return relu == "always" or (relu == "auto" and bool((target >= 0).all()))


class ConvNorm(nn.Module):
    """A convolution (or a chain of them), batch norm over `channels`, and a ReLU if wanted."""

    def __init__(self, conv: nn.Module, channels: int, relu: bool = False) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = conv, nn.BatchNorm2d(channels), relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.training and x.numel() == x.shape[1]:
            raise UsageError(
                "the batch norm of a projector sees one image of one position: use a batch of 2 or more"
            )
        x = self.bn(x)
        return F.relu(x) if self.relu else x


def one_image(num_classes: int, batch: int, logits: Tensor | None, settings: dict[str, Any]) -> list[str]:
    """Where losses with batch norm in their projectors degenerate: a warning at batch 1."""
    return (
        []
        if batch > 1
        else [
            "batch 1: the batch norm of the projectors has one image to measure, and none at all on a "
            "1 x 1 map, where training stops. Use a batch of 2 or more"
        ]
    )


def _has_grid(x: Tensor) -> bool:
    return x.ndim != 3 or math.isqrt(x.shape[1]) ** 2 == x.shape[1]


def _positions(x: Tensor) -> int:
    return math.prod(x.shape[2:]) if x.ndim != 3 else x.shape[1]
