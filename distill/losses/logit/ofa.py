"""OFA: cross-entropy with a teacher whose target class is enhanced, for teachers of another family than the
student.

In:  student and teacher logits (N, K), target (N,) or mixed labels (N, K) (the rule for these:
distill.losses.base).
Out: nats per image.
Elsewhere: the cross-entropy beside it (distill.training.trainer adds it with `task_loss_weight`).
"""

from __future__ import annotations

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
    eps: float = 1.0,
    mixed_labels: MixedLabels = "argmax",
) -> Tensor:
    """-sum_i ((p_t(i) + m_i)^eps - m_i) log p_s(i), m = one-hot of y (Hao et al. 2023, arXiv:2310.19444).

    p is the softmax at `temperature` > 0; eps > 0 above 1 favors the target class, and at 1 this is the
    cross-entropy with the teacher. Defaults: the reference's (1.5 in its ImageNet command). The reference
    applies the loss to the logits and to heads on four stages of the student; this is the part on the logits.
    Returns nats per image, averaged; without the T^2 of other losses, as in the reference. Raises UsageError
    for shapes that do not fit.
    """
    s, t = float_logits(student, teacher)
    log_p_s, p_t = F.log_softmax(s / temperature, dim=1), F.softmax(t / temperature, dim=1)

    def per_image(y: Tensor) -> Tensor:
        enhanced = torch.expm1(eps * p_t.gather(1, y).log1p())  # (1 + p)^eps - 1 without losing a small p
        return -(p_t.pow(eps).scatter(1, y, enhanced) * log_p_s).sum(dim=1)

    return over_labels(per_image, target, s, mixed_labels)
