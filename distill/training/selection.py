"""Which epoch is the best one, and when further epochs are not worth their time.

In:  the records of the epochs; what --select and --early-stop say.
Out: a `Selection`: whether an epoch is better, whether the training is over, and the words for both.
Elsewhere: the records (distill.training.records), the loop that asks (distill.training.trainer).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..recipe import Recipe
from .records import EpochRecord

NAMES = {"top1": "top-1", "balanced": "balanced accuracy", "loss": "validation loss"}
"""What --select takes, in words."""


@dataclass(frozen=True)
class Selection:
    """How epochs are compared."""

    measure: str = "top1"
    """top1, balanced or loss."""
    patience: int = 0
    """Epochs without a better one after which the training ends; 0: it goes on."""

    @staticmethod
    def of(recipe: Recipe) -> Selection:
        return Selection(recipe.select, recipe.early_stop)

    @property
    def name(self) -> str:
        """The measure in words."""
        return NAMES[self.measure]

    def value(self, record: EpochRecord) -> float:
        """The measure of an epoch in its own unit, percent or nats; NaN where the record does not say."""
        if self.measure == "balanced":
            return math.nan if record.val_balanced_percent is None else record.val_balanced_percent
        return record.val_loss_nats if self.measure == "loss" else record.val_top1_percent

    def shown(self, record: EpochRecord) -> str:
        """The same for a person, named where it is not top-1."""
        value = self.value(record)
        if self.measure == "loss":
            return f"val loss {value:.4f}"
        return f"{value:.2f} %" if self.measure == "top1" else f"balanced {value:.2f} %"

    def is_better(self, record: EpochRecord, best: EpochRecord | None) -> bool:
        """Is it strictly better than the best so far? The first one is; one whose measure is NaN is not."""
        if best is None:
            return True
        new, old = self.value(record), self.value(best)
        if math.isnan(old):
            return not math.isnan(new)
        return new < old if self.measure == "loss" else new > old

    def is_over(self, history: Sequence[EpochRecord], best: EpochRecord | None) -> bool:
        """Did so many epochs pass since the best one that the training ends?"""
        return bool(self.patience and best and history[-1].epoch - best.epoch >= self.patience)

    def end(self, history: Sequence[EpochRecord], best: EpochRecord | None, epochs: int) -> str:
        """Why and when the training ended before its last epoch; empty where it did not.

        epochs: those planned.
        """
        if not history or history[-1].epoch >= epochs or not self.is_over(history, best):
            return ""
        return (
            f"stopped after epoch {history[-1].epoch} of {epochs}: no better {self.name} in {self.patience}"
            f" epoch{'s' * (self.patience > 1)} (--early-stop {self.patience})"
        )
