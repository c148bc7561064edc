"""Normalized knowledge distillation: the target class and the others, each on its own scale.

In:  student and teacher logits (N, K), target (N,) or mixed labels (N, K) (the rule for these:
distill.losses.base).
Out: nats per image.
Elsewhere: the cross-entropy beside it (distill.training.trainer adds it with `task_loss_weight`; the paper's
recipe adds none).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..base import MixedLabels, Outputs, float_logits, over_labels


def loss(
    student: Outputs,
    teacher: Outputs,
    target: Tensor,
    *,
    temperature: float = 1.0,
    gamma: float = 1.5,
    mixed_labels: MixedLabels = "argmax",
) -> Tensor:
    """-p_t(y) log p_s(y) - gamma T^2 sum over i != y of n_t(i) log n_s(i) (Yang et al. 2023,
    arXiv:2303.13005).

    p is the softmax at temperature 1; n is the softmax at `temperature` > 0 over the K - 1 classes other than
    y, found by taking y out before the softmax, so it stays finite for any logits. gamma >= 0 weighs the
    second term; at K = 2 that term is 0. Defaults: the paper's for ConvNets on ImageNet (DeiT: gamma 1).
    Returns nats per image, averaged. A cross-entropy, not a divergence: equal logits do not give 0. Raises
    UsageError for shapes that do not fit.
    """
    s, t = float_logits(student, teacher)
    p_t, log_p_s = F.softmax(t, dim=1), F.log_softmax(s, dim=1)

    def per_image(y: Tensor) -> Tensor:
        target_term = -(p_t.gather(1, y) * log_p_s.gather(1, y)).squeeze(1)
        log_n_s, log_n_t = (
            _log_softmax_of_others(s / temperature, y),
            _log_softmax_of_others(t / temperature, y),
        )
        return target_term - gamma * temperature**2 * (log_n_t.exp() * log_n_s).sum(dim=1)

    return over_labels(per_image, target, s, mixed_labels)


def _log_softmax_of_others(z: Tensor, y: Tensor) -> Tensor:
    """(N, K): over the K - 1 classes other than y (N, 1), and 0 at y itself."""
    return F.log_softmax(z.scatter(1, y, -torch.inf), dim=1).scatter(1, y, 0.0)


def degenerate(num_classes: int, batch: int, logits: Tensor | None, settings: dict[str, Any]) -> list[str]:
    """A warning at K = 2, not an error: what is left is a cross-entropy weighted by the teacher, which still
    trains.
    """
    if num_classes > 2 or not settings["gamma"]:
        return []
    return [
        "nkd with 2 classes: one class is left beside the target, so the second term is 0 and gamma and"
        " temperature have no effect; kl uses all that the teacher knows"
    ]
