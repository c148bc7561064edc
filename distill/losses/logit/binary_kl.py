"""Binary cross-entropy of every class with the teacher's probability of it.

In:  student and teacher logits (N, K); the target is not used.
Out: nats per image and class.
Elsewhere: the cross-entropy beside it (distill.training.trainer adds it with `task_loss_weight`).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ..base import Outputs, float_logits

SHIFT_INVARIANT = False
"""A sigmoid per class has a zero point: the same constant added to all logits changes the loss."""


def loss(student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
    """Mean over N and K of BCE(sigmoid(s), softmax(t)) (the "binary KL" of Hao et al. 2023, VanillaKD,
    arXiv:2305.15781).

    For students trained with a sigmoid per class. It has no settings. Returns nats per image and class, so
    about K times smaller than KL; a cross-entropy: equal networks do not give 0. Raises UsageError when the
    two logits differ in shape.
    """
    s, t = float_logits(student, teacher)
    return F.binary_cross_entropy_with_logits(s, F.softmax(t, dim=1))
