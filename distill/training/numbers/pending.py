"""Losses and gradient norms that stay on the device until someone looks, so that no step waits.

In:  the losses of every batch, the norm of every step's gradients: scalars on the device.
Out: a `Step` of numbers for each optimizer step, over the images of all processes that train together.
Elsewhere: sums over an epoch (distill.training.records), what is done with numbers that are not finite
(distill.training.numbers.diagnosis).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...processes import together
from ..records import StepLosses
from . import finite


class Step(NamedTuple):
    """An optimizer step: means over its batches."""

    loss: float
    distill_loss: float
    task_loss: float
    each: list[float]
    """Every distillation loss, without its weight."""
    finite: finite.Flags


class Pending:
    """What was added since the last `take`."""

    def __init__(self, batches_a_step: int) -> None:
        self._batches_a_step = batches_a_step
        self._losses: list[StepLosses] = []
        self._norms: list[Tensor] = []

    def __len__(self) -> int:
        """Batches that wait."""
        return len(self._losses)

    def add(self, losses: StepLosses) -> None:
        """One batch more."""
        self._losses.append(losses.detached())

    def add_norm(self, norm: Tensor) -> None:
        """Of the gradients of one step; of every step or of none."""
        self._norms.append(norm.detach())

    def take(self) -> list[Step]:
        """The steps in order, and forget them. Waits for the device."""
        if not self._losses:
            return []
        stacked = torch.stack([torch.stack([*found[:3], *found.each]) for found in self._losses])
        values = together.average(stacked)
        of_steps = values.view(-1, self._batches_a_step, stacked.shape[1]).mean(1).tolist()
        own = finite.taken([found.finite for found in self._losses], self._norms, self._batches_a_step)
        flags = [finite.Flags(*each) for each in (together.average(torch.tensor(own)) == 1).tolist()]
        self._losses.clear()
        self._norms.clear()
        return [
            Step(loss, distill_loss, task_loss, each, found)
            for (loss, distill_loss, task_loss, *each), found in zip(of_steps, flags, strict=True)
        ]
