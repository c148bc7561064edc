"""What every distillation loss shares: its inputs, the cross-entropy with the labels, and classes taken from
a mixed label.

In:  student and teacher `Outputs`, target as class indices (N,) or soft labels (N, K).
Out: checked logits in float32 or wider, the teacher's without gradient; one class per image, or two with
their weights.
Elsewhere: the formulas (one file per loss beside this one); the mixing itself (distill.training.parts).

The rule for mixed labels (mixup, cutmix): a loss that needs one class takes the largest entry of the mixed
label, the lower index on a tie, as the reference codes do (`mixed_labels="argmax"`). With
`mixed_labels="both"` it is computed for both classes and weighted by the lambda they were mixed with, which
is read back from the label. Losses of soft labels use them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from runtime.errors import UsageError

MixedLabels = Literal["argmax", "both"]

FLAT = 1e-3
"""Standard deviation of an image's logits below which they count as constant: a correlation or a z-score then
has a gradient a thousand times the usual one."""


class Outputs(NamedTuple):
    """What a network gives to a loss."""

    logits: Tensor
    """(N, K) raw scores."""
    features: Sequence[Tensor] = ()
    """Feature maps, shallow to deep; unused by logit losses."""


def widen(logits: Tensor) -> Tensor:
    """The same numbers in float32 or wider: half precision cannot hold log-probabilities of confident
    networks.
    """
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


def float_logits(student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
    """Both logits in float32 or wider; no gradient flows to the teacher's.

    Raises UsageError when the shapes differ or there are fewer than two classes.
    """
    s, t = student.logits, teacher.logits
    if s.shape != t.shape or s.ndim != 2 or s.shape[1] < 2:
        raise UsageError(
            f"student logits {tuple(s.shape)}, teacher logits {tuple(t.shape)}: "
            "expected two equal shapes (N, K) with K >= 2. Both need the same classes"
        )
    return widen(s), widen(t.detach())


def cross_entropy(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with the labels in nats per image, averaged: the task loss beside a distillation loss.

    logits (N, K); target (N,), or soft labels (N, K), which are taken as they are: `smoothing` applies to
    class indices only, because mixed labels come smoothed. Computed in float32 or wider.
    """
    z = widen(logits)
    _require_target(target, z)
    if target.ndim == 2:
        return F.cross_entropy(z, target.to(z.dtype))
    return F.cross_entropy(z, target.long(), label_smoothing=smoothing)


def weighted_cross_entropy(logits: Tensor, target: Tensor, weights: Tensor, smoothing: float = 0.0) -> Tensor:
    """`cross_entropy` in which an image counts by the weight of its class, averaged over the images.

    target (N,), or mixed (N, K) and smoothed already, of which each of the two images counts by its share
    times the weight of its own class; weights (K,), 0 or more. Label smoothing is not weighted: for images of
    one class alone the best answer is their smoothed label, whatever the weights.
    """
    z = widen(logits)
    _require_target(target, z)
    weights = weights.to(z.dtype)
    if target.ndim == 1:
        target = target.long()
        each = F.cross_entropy(z, target, label_smoothing=smoothing, reduction="none")
        return (weights[target] * each).mean()
    off = smoothing / z.shape[1]
    counted = (target.to(z.dtype) - off).clamp_min(0) / (1 - smoothing) * weights
    return F.cross_entropy(z, (1 - smoothing) * counted + off * counted.sum(dim=1, keepdim=True))


def hard_labels(target: Tensor, logits: Tensor) -> Tensor:
    """Class indices (N,): the target itself, or the largest entry of a mixed label (N, K), the lower index on
    a tie.
    """
    _require_target(target, logits)
    return (
        target.argmax(dim=1) if target.ndim == 2 else target.long()
    )  # torch's argmax promises the first of equal entries


def two_labels(target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The two classes (N,), (N,) of mixed labels (N, K) and the share (N,) of the first, 1/2 to 1: what mixup
    put together.

    The label is share * onehot(first; on, off) + (1 - share) * onehot(second; on, off) with any smoothing:
    `off` is its smallest entry. At K = 2 no entry is left to show `off`; it is taken as 0, so the shares are
    the label's own two numbers. Where both classes are the same the share is 1 and the second index means
    nothing.
    """
    q = widen(target)
    (largest, second), (y1, y2) = (x.unbind(dim=1) for x in q.topk(2, dim=1))
    off = q.amin(dim=1) if q.shape[1] > 2 else torch.zeros_like(largest)
    parts = largest + second - 2 * off
    return y1, y2, torch.where(parts > 0, (largest - off) / parts, torch.ones_like(parts))


def over_labels(
    per_image: Callable[[Tensor], Tensor], target: Tensor, logits: Tensor, mixed_labels: MixedLabels
) -> Tensor:
    """Mean over images of a loss that needs one class: `per_image` takes classes (N, 1) and gives losses
    (N,).

    target is (N,), or mixed (N, K) and treated by the rule `mixed_labels`. Raises UsageError for another rule
    or shape.
    """
    if mixed_labels not in ("argmax", "both"):
        raise UsageError(f"mixed_labels {mixed_labels!r}: expected argmax or both")
    _require_target(target, logits)
    if target.ndim == 1 or mixed_labels == "argmax":
        return per_image(hard_labels(target, logits).unsqueeze(1)).mean()
    first, second, share = two_labels(target)
    share = share.to(logits.dtype)
    return (share * per_image(first.unsqueeze(1)) + (1 - share) * per_image(second.unsqueeze(1))).mean()


def norm(x: Tensor, dim: int) -> Tensor:
    """Euclidean norm along `dim`, whose gradient at 0 is 0."""
    return x.square().sum(dim).clamp_min(torch.finfo(x.dtype).tiny).sqrt()


def _require_target(target: Tensor, logits: Tensor) -> None:
    if target.shape != logits.shape and target.shape != logits.shape[:1]:
        raise UsageError(
            f"target {tuple(target.shape)} for logits {tuple(logits.shape)}: "
            f"expected class indices {tuple(logits.shape[:1])} or soft labels {tuple(logits.shape)}"
        )
