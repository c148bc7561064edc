"""Hinton's distillation loss: KL(teacher || student) over softened classes.

In:  student and teacher logits (N, K); the target is not used.
Out: nats per image times temperature**2.
Elsewhere: the cross-entropy beside it (distill.training.trainer adds it with `task_loss_weight`).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ..base import Outputs, float_logits


def loss(student: Outputs, teacher: Outputs, target: Tensor, *, temperature: float = 4.0) -> Tensor:
    """KL(teacher || student) averaged over images (Hinton et al. 2015, arXiv:1503.02531).

    logits are (N, K) raw scores; temperature > 0 has no unit. Returns nats per image times temperature**2,
    which keeps gradients the same size at high temperature. Default: the usual one for CIFAR (for ImageNet:
    1). Raises UsageError when the two logits differ in shape.
    """
    s, t = float_logits(student, teacher)
    log_q = F.log_softmax(s / temperature, dim=1)
    log_p = F.log_softmax(t / temperature, dim=1)
    return temperature**2 * F.kl_div(log_q, log_p, reduction="sum", log_target=True) / len(s)
