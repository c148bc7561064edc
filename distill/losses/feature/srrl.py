"""SRRL: the student's last map, through a connector, must mean the same to the teacher's own classifier.

In:  the last matched pair; the teacher's model, whose frozen head is used.
Out: squared difference of spatial means plus squared difference of logits, each averaged over elements and
weighted.
Elsewhere: matching (taps.py), the weight beside other losses (distill.training.objective; the paper
uses 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runtime.errors import UsageError

from ..base import Outputs, widen
from .base import ConvNorm, FeatureLoss, Relu, as_map, one_image, rectified

Head = Callable[[Tensor], Tensor]
"""Maps (N, C, H, W) to logits (N, K)."""

degenerate = one_image


class SRRL(FeatureLoss):
    """feature_weight * mse(mean s', mean t) + regression_weight * mse(head(s'), head(t)) (Yang et al. 2021,
    ICLR, openreview.net/forum?id=ZzwDy_wiWv), s' = relu(bn(conv(s))), a 1 x 1 convolution without bias; means
    are over positions.

    head: the teacher's layers from its last map to the logits; it is not trained, and not part of this loss's
    parameters or state. relu: see `distill.losses.feature.base.Relu`. `prepare` raises UsageError without the
    teacher's model, when that model is not frozen, and when layers stand between its last map and its head
    that cannot be told from the outside.
    """

    def __init__(
        self, *, feature_weight: float = 1.0, regression_weight: float = 1.0, relu: Relu = "auto"
    ) -> None:
        super().__init__()
        self.feature_weight, self.regression_weight, self.relu = feature_weight, regression_weight, relu

    def build(
        self, s: list[Tensor], t: list[Tensor], teacher: Outputs, teacher_model: nn.Module | None
    ) -> None:
        if teacher_model is None:
            raise UsageError(
                "srrl needs the teacher's classifier: call prepare(student, teacher, teacher_model) first. "
                "It cannot be used with stored teacher outputs"
            )
        if any(weight.requires_grad for weight in teacher_model.parameters()):
            raise UsageError("srrl: the teacher is not frozen. Call teacher_model.requires_grad_(False)")
        self.head = head_of(teacher_model, teacher)
        inputs, outputs = s[-1].shape[1], t[-1].shape[1]
        self.connector = ConvNorm(
            nn.Conv2d(inputs, outputs, 1, bias=False), outputs, rectified(self.relu, t[-1])
        )

    def compute(self, s: list[Tensor], t: list[Tensor], teacher: Outputs, target: Tensor) -> Tensor:
        connected = self.connector(s[-1])
        features = F.mse_loss(connected.mean((2, 3)), t[-1].mean((2, 3)))
        with torch.no_grad():
            wanted = self.head(t[-1])
        return self.feature_weight * features + self.regression_weight * F.mse_loss(
            self.head(connected), wanted
        )


def head_of(model: nn.Module, sample: Outputs) -> Head:
    """The layers of a timm model between its last map and its logits, told by trying: the first way that
    turns the sample's last map into the sample's logits. A ViT that reads a class token has no such way;
    there the mean of the map's tokens stands for it. Raises UsageError when nothing fits.
    """
    x, logits = as_map(sample.features[-1]).detach(), widen(sample.logits.detach())
    fallback = None
    for exact, head in _ways(model):
        try:
            with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
                y = head(x)
        except (
            RuntimeError,
            TypeError,
            ValueError,
            IndexError,
            AttributeError,
        ):  # this way is for other shapes of map
            continue
        if y.shape != logits.shape:
            continue
        if (y - logits).norm() <= 0.05 * logits.norm():  # the sample may have been computed in half precision
            return head
        fallback = fallback or (None if exact else head)
    if fallback is None:
        raise UsageError(
            f"srrl: {type(model).__name__} has layers between its last map, of {x.shape[1]} channels, and its"
            " classifier that cannot be used alone. Take another feature loss, for example fd"
        )
    return fallback


def _ways(model: nn.Module) -> Iterator[tuple[bool, Head]]:
    """(whether it must give the teacher's own logits, head), the likeliest first."""
    norm, prefix = getattr(model, "norm", nn.Identity()), max(1, getattr(model, "num_prefix_tokens", 1))
    tail, classifier = getattr(model, "forward_head", None), getattr(model, "get_classifier", None)
    if tail is not None:
        yield True, tail
        yield True, lambda x: tail(norm(x))
        yield True, lambda x: tail(norm(x.permute(0, 2, 3, 1)))  # Swin
        yield True, lambda x: tail(norm(x.flatten(2).mT))  # tokens, averaged by the model itself
        yield False, lambda x: tail(norm(x.flatten(2).mT).mean(1, keepdim=True).expand(-1, prefix, -1))
    if classifier is not None:
        yield True, lambda x: classifier()(x.mean((2, 3)))
