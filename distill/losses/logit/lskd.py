"""Logit standardization: z-scores of both networks' logits, then KL or DKD on them.

In:  student and teacher logits (N, K); the target only for `dkd_loss`, as in distill.losses.logit.dkd.
Out: nats per image times temperature**2.
Elsewhere: the losses of the standardized logits (distill.losses.logit.kl, distill.losses.logit.dkd).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from runtime.errors import UsageError

from ..base import FLAT, MixedLabels, Outputs, float_logits, norm
from . import dkd, kl

NEEDS_ALL_LOGITS = True
"""A z-score divides by the deviation of all logits, which the largest ones alone do not tell."""


def loss(
    student: Outputs, teacher: Outputs, target: Tensor, *, temperature: float = 2.0, eps: float = 1e-7
) -> Tensor:
    """KL of standardized logits (Sun et al. 2024, arXiv:2403.01427): z becomes (z - mean) / (eps + std), row
    by row.

    std is the unbiased one over the K classes; temperature, eps > 0. Defaults: the reference's (it weighs the
    loss by 9). Returns nats per image times temperature**2, averaged. Raises UsageError for shapes that do
    not fit.

    A student whose logits are constant has no z-scores: with the default eps its gradient is about 1e6.
    `degenerate` refuses to start so; eps = 0.1 bounds the gradient at about ten and changes the z-scores of
    trained networks by a few percent.
    """
    return kl.loss(*_standardized(student, teacher, eps), target, temperature=temperature)


def dkd_loss(
    student: Outputs,
    teacher: Outputs,
    target: Tensor,
    *,
    temperature: float = 2.0,
    alpha: float = 1.0,
    beta: float = 8.0,
    eps: float = 1e-7,
    mixed_labels: MixedLabels = "argmax",
) -> Tensor:
    """DKD of standardized logits (Sun et al. 2024, arXiv:2403.01427; Zhao et al. 2022, arXiv:2203.08679).

    Settings and unit are those of `loss` here and of distill.losses.logit.dkd.
    """
    return dkd.loss(
        *_standardized(student, teacher, eps),
        target,
        temperature=temperature,
        alpha=alpha,
        beta=beta,
        mixed_labels=mixed_labels,
    )


def _standardized(student: Outputs, teacher: Outputs, eps: float) -> tuple[Outputs, Outputs]:
    s, t = float_logits(student, teacher)
    return Outputs(_z_scores(s, eps)), Outputs(_z_scores(t, eps))


def _z_scores(z: Tensor, eps: float) -> Tensor:
    centered = z - z.mean(dim=1, keepdim=True)
    return centered * (eps + _std(centered)).reciprocal()  # backward is cheaper than of a division


def _std(centered: Tensor) -> Tensor:
    return norm(centered, 1).unsqueeze(1) / (centered.shape[1] - 1) ** 0.5


def degenerate(num_classes: int, batch: int, logits: Tensor | None, settings: dict[str, Any]) -> list[str]:
    """Errors, because nothing is left to train with: two classes, or constant logits of the student before
    training.
    """
    if num_classes == 2:
        raise UsageError(
            "lskd with 2 classes: two standardized logits are always 0.71 and -0.71, so the gradient is 0 and"
            " nothing is learned. Use kl"
        )
    if logits is not None:
        z = logits.detach().double()
        spread = _std(z - z.mean(dim=1, keepdim=True)).median().item()
        if spread + settings["eps"] < FLAT:
            raise UsageError(
                f"lskd: the student's first logits are constant (standard deviation {spread:.1g}), so the"
                " gradient is huge. Do not initialize the classifier with zeros, or set eps to 0.1"
            )
    return dkd.degenerate(num_classes, batch, logits, settings) if "alpha" in settings else []
