"""What every distillation loss shares: its inputs, and the one class taken from a mixed label.

In:  student and teacher `Outputs`, target as class indices (N,) or soft labels (N, K).
Out: checked shapes; float32 logits; hard labels.
Elsewhere: the formulas (one file per loss beside this one).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from runtime.errors import UsageError


class Outputs(NamedTuple):
    """What a network gives to a loss."""

    logits: Tensor
    """(N, K) raw scores."""
    features: Sequence[Tensor] = ()
    """Feature maps, shallow to deep; unused by logit losses."""


def float_logits(student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
    """Both logits in float32 or wider: half precision cannot hold log-probabilities of confident networks.

    Raises UsageError when the shapes differ.
    """
    if student.logits.shape != teacher.logits.shape or student.logits.ndim != 2:
        raise UsageError(f"student logits {tuple(student.logits.shape)}, teacher logits {tuple(teacher.logits.shape)}: "
                         "expected two equal shapes (N, K). Both need the same classes")
    return tuple(z if z.dtype in (torch.float32, torch.float64) else z.float() for z in (student.logits, teacher.logits))


def hard_labels(target: Tensor) -> Tensor:
    """Class indices (N,): the target itself, or the argmax of a mixed label (N, K), as the reference codes take it."""
    return target.argmax(dim=1) if target.ndim == 2 else target
