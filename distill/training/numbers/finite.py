"""Which part of a training step is NaN or infinite, or has gradients too large for their norm.

In:  logits of a batch and the norm of a step's gradients, on the device; networks.
Out: flags that stay on the device until they are taken, so that no step waits for them; the name of a weight.
Elsewhere: losses that wait for being looked at (distill.training.numbers.pending), errors
(distill.training.numbers.diagnosis).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Flags(NamedTuple):
    """What of one optimizer step is finite."""

    student: bool = True
    """The student's logits."""
    teacher: bool = True
    """The teacher's logits."""
    gradients: bool = True
    """The norm of all of them together."""


def of_logits(student: Tensor, teacher: Tensor | None) -> Tensor:
    """(2,) bool on the device: whether student's and teacher's logits (N, K) are finite."""
    ours = student.detach().isfinite().all()
    return torch.stack([ours, ours if teacher is None else teacher.isfinite().all()])


def taken(logits: Sequence[Tensor], norms: Sequence[Tensor], batches_a_step: int) -> list[Flags]:
    """The flags of whole steps, on the host. logits: `of_logits` of every batch; norms: of every step's
    gradients, scalars that are not finite where one of them is NaN or infinite, or too large for its square;
    empty where nobody looks at them.
    """
    of_steps = torch.stack(list(logits)).view(-1, batches_a_step, 2).all(1).cpu().tolist()
    gradients = torch.stack(list(norms)).isfinite().cpu().tolist() if norms else [True] * len(of_steps)
    return [Flags(ours, its, norm) for (ours, its), norm in zip(of_steps, gradients, strict=True)]


def norm_of(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The norm of all gradients together, which are only read."""
    return torch.nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None])


def are_finite(values: Sequence[Tensor]) -> bool:
    """Whether all numbers of all tensors are. Waits for the device."""
    return all(bool(value.isfinite().all()) for value in values)


STATISTICS = ("running_mean", "running_var")


def first_bad(network: nn.Module) -> str | None:
    """The name of a weight, or of a running statistic of batch norm, that holds NaN or infinity; None where
    there is none. Waits for the device.
    """
    values: dict[str, Tensor] = dict(network.named_parameters())
    values |= {name: each for name, each in network.named_buffers() if name.endswith(STATISTICS)}
    if not values:
        return None
    flags = torch.stack([each.detach().isfinite().all() for each in values.values()]).tolist()
    return next((name for name, is_finite in zip(values, flags, strict=True) if not is_finite), None)
