"""DIST: match the student's relations among classes and among images, not its probabilities.

In:  student and teacher logits (N, K); the target is not used.
Out: 1 minus a correlation, without unit, times temperature**2.
Elsewhere: the cross-entropy beside it (distill.training.trainer adds it with `task_loss_weight`).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from runtime.errors import UsageError

from ..base import FLAT, Outputs, float_logits, norm


def loss(
    student: Outputs,
    teacher: Outputs,
    target: Tensor,
    *,
    temperature: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
    eps: float = 1e-8,
) -> Tensor:
    """T^2 [beta (1 - mean over images of corr) + gamma (1 - mean over classes of corr)] (Huang et al. 2022,
    arXiv:2205.10536).

    corr is Pearson's correlation of the student's and the teacher's softmax at `temperature` > 0: of the two
    rows of an image, then of the two columns of a class; covariance / (norm * norm + eps). beta, gamma >= 0,
    eps > 0. Defaults: the reference's (its configurations weigh the whole by 2; CIFAR: temperature 4); T^2 is
    in its code, not in the paper. Returns a number without unit between 0 and 2 T^2 (beta + gamma). Raises
    UsageError for shapes that do not fit.

    A student whose logits are constant has no correlation: with the default eps its gradient is about 1e6 and
    rounding noise. `degenerate` refuses to start so. eps = 0.001 bounds the gradient at about a hundred; it
    changes the rows' term by less than a percent, but damps classes that hardly occur in a batch.
    """
    s, t = float_logits(student, teacher)
    p_s, p_t = F.softmax(s / temperature, dim=1), F.softmax(t / temperature, dim=1)
    images = 1 - _correlation(p_s, p_t, 1, eps).mean()
    classes = 1 - _correlation(p_s, p_t, 0, eps).mean()
    return temperature**2 * (beta * images + gamma * classes)


def _correlation(a: Tensor, b: Tensor, dim: int, eps: float) -> Tensor:
    a, b = a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True)
    return (a * b).sum(dim) / (norm(a, dim) * norm(b, dim) + eps)


def degenerate(num_classes: int, batch: int, logits: Tensor | None, settings: dict[str, Any]) -> list[str]:
    """Two numbers correlate by +1 or -1 whatever their distance, and one number not at all: such a term has
    no gradient.

    A warning while the other term teaches; an error when none is left, or when the student's first logits are
    constant.
    """
    beta, gamma = settings["beta"], settings["gamma"]
    rows, columns = beta > 0 and num_classes > 2, gamma > 0 and batch > 2
    if not rows and not columns:
        raise UsageError(
            f"dist with {num_classes} classes, batch {batch}, beta {beta:g} and gamma {gamma:g}: every"
            " correlation is constant, so nothing is learned. Use kl, or a batch of 3 or more with gamma"
            " above 0"
        )
    if logits is not None:
        _require_spread(logits, settings["temperature"], settings["eps"])
    found = []
    if beta and not rows:
        found.append(
            "dist with 2 classes: the correlation of an image's two probabilities is always +1 or -1, so only"
            " the correlation over the batch teaches; kl uses both"
        )
    if gamma and not columns:
        found.append(
            f"dist with batch {batch}: a correlation over {batch} of them is constant, so only the"
            " correlation over classes teaches; use a batch of 3 or more, or kl"
        )
    return found


def _require_spread(logits: Tensor, temperature: float, eps: float) -> None:
    p = F.softmax(logits.detach().double() / temperature, dim=1)
    spread = norm(p - p.mean(dim=1, keepdim=True), 1).median().item()
    if (
        spread + eps < FLAT / logits.shape[1] ** 0.5
    ):  # near-constant logits of that deviation give probabilities of this norm
        raise UsageError(
            "dist: the student's first logits are constant (norm of the probabilities' deviations"
            f" {spread:.1g}), so the gradient is huge. Do not initialize the classifier with zeros, or set"
            " eps to 0.001"
        )
