"""A recipe: all groups of settings in one flat dataclass.

In:  the groups (distill.recipe.groups).
Out: a frozen `Recipe`, checked.
Elsewhere: YAML (distill.recipe.reader), where a run goes (distill.run.options).
"""

from __future__ import annotations

from dataclasses import dataclass

from .groups import (
    Augmentation,
    Data,
    Distillation,
    Length,
    Machine,
    Networks,
    Optimizer,
    Regularization,
    Sparsity,
)


@dataclass(frozen=True)
class Recipe(
    Machine, Sparsity, Regularization, Augmentation, Optimizer, Length, Distillation, Networks, Data
):
    """How a student is trained. Every field is a flag (`kd_loss` is --kd-loss) and a YAML key.

    A dataclass takes the fields of its last base first: they are in the order Data, Networks, ...
    """

    def check(self) -> None:
        """Refuse what two groups contradict each other in."""
        self.need(
            not (self.mixup or self.cutmix) or self.batch % 2 == 0,
            "batch",
            "an even number with mixup or cutmix",
        )

    @property
    def peak_lr(self) -> float:
        """The learning rate at the top of the schedule."""
        if self.lr is not None:
            return self.lr
        return self.lr_base * self.batch * self.grad_accum / self.lr_base_size
