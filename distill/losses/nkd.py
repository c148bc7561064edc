"""Normalized knowledge distillation: the target class and the others, each on its own scale.

In:  student and teacher logits (N, K), target (N,) or mixed labels (N, K) (their argmax is used).
Out: nats per image.
Elsewhere: the cross-entropy beside it (distill.trainer adds it with `task_loss_weight`; the paper's recipe adds none).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Outputs, float_logits, hard_labels


def loss(student: Outputs, teacher: Outputs, target: Tensor, *, temperature: float = 1.0, gamma: float = 1.5) -> Tensor:
    """-p_t(y) log p_s(y) - gamma T^2 sum over i != y of n_t(i) log n_s(i) (Yang et al. 2023, arXiv:2303.13005).

    p is the softmax at temperature 1; n is the softmax at `temperature` > 0 over the K - 1 classes other than y, found
    by taking y out before the softmax, so it stays finite for any logits. gamma >= 0 weighs the second term; at K = 2
    that term is 0. Returns nats per image, averaged. A cross-entropy, not a divergence: equal logits do not give 0.
    """
    s, t = float_logits(student, teacher)
    y = hard_labels(target).unsqueeze(1)
    target_term = -(F.softmax(t, dim=1).gather(1, y) * F.log_softmax(s, dim=1).gather(1, y)).sum()
    is_target = torch.zeros_like(s, dtype=torch.bool).scatter_(1, y, True)
    n_t = F.softmax((t / temperature).masked_fill(is_target, -torch.inf), dim=1)
    log_n_s = F.log_softmax((s / temperature).masked_fill(is_target, -torch.inf), dim=1).masked_fill(is_target, 0.0)
    return (target_term - gamma * temperature**2 * (n_t * log_n_s).sum()) / len(s)
