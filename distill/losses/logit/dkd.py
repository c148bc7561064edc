"""Decoupled knowledge distillation: Hinton's loss split into target against the rest, and the rest among
themselves.

In:  student and teacher logits (N, K), target (N,) or mixed labels (N, K) (the rule for these:
distill.losses.base).
Out: nats per image times temperature**2.
Elsewhere: the cross-entropy beside it (distill.training.trainer adds it with `task_loss_weight`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from runtime.errors import UsageError

from ..base import MixedLabels, Outputs, float_logits, over_labels


def loss(
    student: Outputs,
    teacher: Outputs,
    target: Tensor,
    *,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
    mixed_labels: MixedLabels = "argmax",
) -> Tensor:
    """T^2 [alpha KL(b_t || b_s) + beta KL(n_t || n_s)] (Zhao et al. 2022, arXiv:2203.08679).

    b = (p(y), 1 - p(y)) with p the softmax at `temperature` > 0; n is the softmax at the same temperature
    over the K - 1 classes other than y. alpha, beta >= 0. Defaults: the paper's for CIFAR-100 (ImageNet: beta
    0.5, temperature 1; the reference raises the weight from 0 over the first epochs). At K = 2 the second
    term is 0. Returns nats per image times temperature**2, averaged. Raises UsageError for shapes that do not
    fit.
    """
    s, t = (z / temperature for z in float_logits(student, teacher))

    def per_image(y: Tensor) -> Tensor:
        (odds_s, log_n_s), (odds_t, log_n_t) = _apart(s, y), _apart(t, y)
        others = (log_n_t.exp() * (log_n_t - log_n_s)).sum(dim=1)
        return temperature**2 * (alpha * _binary_kl(odds_s, odds_t) + beta * others)

    return over_labels(per_image, target, s, mixed_labels)


def _apart(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax of z (N, K) taken apart at the classes y (N, 1), finite for any logits.

    Returns log(p(y) / (1 - p(y))) as (N,), and the log-softmax over the K - 1 other classes as (N, K), 0 at y
    itself. Both come from logits relative to the largest of the others: nothing is subtracted from a rounded
    probability, and y is left out of the sum, not taken away from it.
    """
    largest = z.detach().scatter(1, y, -torch.inf).amax(dim=1, keepdim=True)
    relative = z - largest
    others = relative.scatter(1, y, -torch.inf)
    log_sum = others.exp().sum(dim=1, keepdim=True).log()  # 0 to log(K - 1)
    return (relative.gather(1, y) - log_sum).squeeze(1), (others - log_sum).scatter(1, y, 0.0)


def _binary_kl(odds_s: Tensor, odds_t: Tensor) -> Tensor:
    """KL of two yes-or-no distributions given by their log-odds: no p or 1 - p is rounded to 0 on the way."""
    yes = odds_t.sigmoid() * (F.logsigmoid(odds_t) - F.logsigmoid(odds_s))
    no = (-odds_t).sigmoid() * (F.logsigmoid(-odds_t) - F.logsigmoid(-odds_s))
    return yes + no


def degenerate(num_classes: int, batch: int, logits: Tensor | None, settings: dict[str, Any]) -> list[str]:
    """At K = 2 a warning, because alpha's term still trains (it is then KL); an error when nothing
    is left.
    """
    if not settings["alpha"] and (num_classes == 2 or not settings["beta"]):
        raise UsageError(
            f"dkd with {num_classes} classes, alpha 0 and beta {settings['beta']:g}: the loss is always 0. "
            "Use alpha above 0, or kl"
        )
    if num_classes > 2 or not settings["beta"]:
        return []
    return [
        "dkd with 2 classes: one class is left beside the target, so the second term is 0 and beta has no"
        " effect; what is left is alpha times kl"
    ]
