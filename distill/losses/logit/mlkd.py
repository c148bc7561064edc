"""Multi-level logit distillation: images one by one, how images of the batch agree, how classes go together.

In:  student and teacher logits (N, K); the target is not used.
Out: a sum of nats per image times temperature**2 and of two squared distances without unit.
Elsewhere: the cross-entropy beside it (distill.training.trainer); augmentation (distill.data.augment), of
which the paper uses a second view.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from runtime.errors import UsageError

from ..base import Outputs, float_logits
from . import kl


def loss(
    student: Outputs,
    teacher: Outputs,
    target: Tensor,
    *,
    temperatures: tuple[float, ...] = (4.0, 2.0, 3.0, 5.0, 6.0),
    alpha: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
) -> Tensor:
    """Sum over temperatures of alpha KL + beta batch term + gamma class term (Jin et al. 2023, CVPR,
    "Multi-level logit distillation").

    With P the softmax (N, K) at a temperature > 0, t teacher and s student: the batch term is |P_t P_t' - P_s
    P_s'|^2 / N, the class term |P_t' P_t - P_s' P_s|^2 / K, squares summed over all entries; KL is
    distill.losses.logit.kl with its T^2. alpha, beta, gamma >= 0. Defaults: the reference's temperatures and
    equal weights. The reference adds the same terms on a second, strongly augmented view and scales those of
    the first by the share of confident images; here there is one view and no such factor. Raises UsageError
    for shapes that do not fit.
    """
    s, t = float_logits(student, teacher)
    total = s.new_zeros(())
    for temperature in temperatures:
        if alpha:
            total = total + alpha * kl.loss(Outputs(s), Outputs(t), target, temperature=temperature)
        if beta or gamma:
            images, classes = _relations(F.softmax(s / temperature, dim=1), F.softmax(t / temperature, dim=1))
            total = total + beta * images / s.shape[0] + gamma * classes / s.shape[1]
    return total


def _relations(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """|p p' - q q'|^2 and |p' p - q' q|^2, neither computed as a difference of large numbers."""
    with torch.autocast(p.device.type, enabled=False):  # it would multiply matrices in half precision
        if p.shape[0] <= p.shape[1]:
            return _both_squares(p, q)
        classes, images = _both_squares(p.T, q.T)
        return images, classes


def _both_squares(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """The same two for p, q (n, m), from n x n matrices only: with many classes the m x m ones would not fit.

    With d = p - q and c = (p + q) / 2, p p' - q q' = d c' + c d', and |p' p - q' q|^2 = 2 (<d d', c c'> + <d
    c', c d'>).
    """
    d, c = p - q, (p + q) / 2
    cross = d @ c.T
    small = (cross + cross.T).square().sum()
    large = 2 * ((d @ d.T) * (c @ c.T) + cross * cross.T).sum()
    return small, large


def degenerate(num_classes: int, batch: int, logits: Tensor | None, settings: dict[str, Any]) -> list[str]:
    """An error when every term is switched off. No number of classes or images makes the terms constant."""
    if not (settings["alpha"] or settings["beta"] or settings["gamma"]):
        raise UsageError(
            "mlkd with alpha, beta and gamma 0: the loss is always 0. Expected one of them above 0"
        )
    return []
