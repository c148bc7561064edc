"""DeiT's two distillation terms: the teacher's probabilities (soft) or its decision (hard).

In:  student and teacher logits (N, K); the target is not used.
Out: nats per image and class times temperature**2 (soft); nats per image (hard).
Elsewhere: the cross-entropy with the labels beside them (distill.training.trainer adds it with
    `task_loss_weight`). DeiT weighs the two by 0.5 and 0.5: --distill-loss-weight 0.5 --task-loss-weight 0.5.
    SLaK's hard distillation is the same with soft labels.
"""

from __future__ import annotations

from torch import Tensor

from ..base import Outputs, cross_entropy, float_logits
from . import kl


def soft(student: Outputs, teacher: Outputs, target: Tensor, *, temperature: float = 1.0) -> Tensor:
    """T^2 KL(teacher || student) / (N K) (Touvron et al. 2021, arXiv:2012.12877).

    temperature > 0; default: the reference's. Its code divides by N times K, where Hinton's loss
    (distill.losses.logit.kl) divides by N: at 1000 classes the term is a thousand times smaller. Returns nats
    per image and class times temperature**2. Raises UsageError when the two logits differ in shape.
    """
    return kl.loss(student, teacher, target, temperature=temperature) / student.logits.shape[1]


def hard(student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
    """Cross-entropy with the teacher's largest class, the lower index on a tie (Touvron et al. 2021,
    arXiv:2012.12877).

    It has no settings. Returns nats per image, averaged. Raises UsageError when the two logits differ in
    shape.
    """
    s, t = float_logits(student, teacher)
    return cross_entropy(s, t.argmax(dim=1))
