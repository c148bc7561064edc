"""The figures of a training: summed over an epoch, and recorded per epoch.

In:  losses and times, step by step.
Out: an `EpochRecord` per epoch.
Elsewhere: where the records go (distill.training.loggers), what a person sees meanwhile
(distill.training.display).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from runtime import files
from runtime.recorded import UNREADABLE

from ..evaluate import Evaluation, same_class_percent

OF_CLASSES = ("val_balanced_percent", "val_class_percent")
"""Columns that older versions do not have; the second, a mapping, is only in metrics.jsonl."""
MOST_CLASSES = 1000
"""Classes up to which every epoch records each of them."""


class StepLosses(NamedTuple):
    """What one batch gave: scalars on the device."""

    total: Tensor
    distill: Tensor
    """Weighted sum of the distillation losses; its share of `total`."""
    task: Tensor
    """Cross-entropy, nats per image, without its weight."""
    each: list[Tensor]
    """The distillation losses, without their weights."""
    finite: Tensor
    """(2,) bool: whether the logits of student and teacher are."""

    def detached(self) -> StepLosses:
        """The same numbers without the graph that made them."""
        return StepLosses(
            self.total.detach(),
            self.distill.detach(),
            self.task.detach(),
            [x.detach() for x in self.each],
            self.finite,
        )


@dataclass
class Tally:
    """Sums over the optimizer steps of one epoch."""

    steps: int = 0
    loss: float = 0.0
    distill_loss: float = 0.0
    task_loss: float = 0.0
    each: list[float] = field(default_factory=list)
    """Every distillation loss by itself, without its weight."""
    images: int = 0
    seconds: float = 0.0
    teacher_seconds: float = 0.0

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Tally:
        """Read its values, also of a run of an earlier version, which held more."""
        return Tally(**{each.name: values[each.name] for each in fields(Tally) if each.name in values})

    @property
    def images_per_s(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def teacher_share(self) -> float | None:
        """Share of the time that the teacher took, 0 to 1; None where there is none."""
        return self.teacher_seconds / self.seconds if self.teacher_seconds and self.seconds else None

    def means(self, losses: Sequence[str] | None) -> dict[str, Any]:
        """The values of an `EpochRecord` that tell of its training. losses: names of the distillation losses;
        None where nobody teaches.
        """
        steps = max(self.steps, 1)
        return {
            "train_loss": self.loss / steps,
            "train_distill_loss": None if losses is None else self.distill_loss / steps,
            "train_task_loss": self.task_loss / steps,
            "train_each_loss": {
                name: value / steps for name, value in zip(losses or [], self.each, strict=True)
            },
            "train_images_per_s": self.images_per_s,
            "teacher_share_of_step": self.teacher_share,
            "train_seconds": self.seconds,
        }

    def add(self, loss: float, distill_loss: float, task_loss: float, each: Sequence[float]) -> None:
        """One optimizer step more."""
        self.steps += 1
        self.loss += loss
        self.distill_loss += distill_loss
        self.task_loss += task_loss
        self.each = [a + b for a, b in zip(self.each or [0.0] * len(each), each, strict=True)]


@dataclass(frozen=True)
class EpochRecord:
    """One row of summary.csv, one line of metrics.jsonl: an epoch's means, then its validation."""

    epoch: int
    """From 1."""
    step: int
    """Optimizer steps since the beginning."""
    lr: float
    """The largest learning rate of any layer."""
    train_loss: float
    train_distill_loss: float | None
    """Weighted sum of the distillation losses; None without a teacher."""
    train_task_loss: float
    """Cross-entropy, nats per image; weighted with --class-weights."""
    train_each_loss: Mapping[str, float]
    """Every distillation loss without its weight; the column of `kl` is train_kl_loss."""
    val_top1_percent: float
    val_top5_percent: float
    val_loss_nats: float
    val_images: int
    val_teacher_agreement_percent: float | None
    train_images_per_s: float
    teacher_share_of_step: float | None
    train_seconds: float
    bad_images: int
    """Images that could not be read since the beginning, each once however often it was drawn."""
    val_balanced_percent: float | None = None
    """Balanced accuracy: mean over the classes that have validation images; None in a run of an older
    version."""
    val_class_percent: Mapping[str, float | None] = field(default_factory=dict)
    """Accuracy of each class, None for one without validation images; empty beyond MOST_CLASSES. Only in
    metrics.jsonl."""

    def to_dict(self) -> dict[str, Any]:
        """The columns in their order, every distillation loss in one of its own; without what is of classes
        where the record does not say it.
        """
        values: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name == "train_each_loss":
                values |= {f"train_{name}_loss": loss for name, loss in value.items()}
            elif value not in (None, {}) or each.name not in OF_CLASSES:
                values[each.name] = value
        return values

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> EpochRecord:
        """Read what `to_dict` gave, also of a run folder of an earlier version."""
        known = {each.name for each in fields(EpochRecord)}
        losses = {
            key.removeprefix("train_").removesuffix("_loss"): value
            for key, value in values.items()
            if key not in known
        }
        own = {key: value for key, value in values.items() if key in known}
        return EpochRecord(**own, train_each_loss=losses)

    def metrics(self, select: str, weights: str) -> dict[str, Any]:
        """What best.pth says of the epoch. select: the measure it is best by; weights: "ema" or "raw"."""
        return {
            "top1": self.val_top1_percent,
            "top5": self.val_top5_percent,
            "loss": self.val_loss_nats,
            "balanced": self.val_balanced_percent,
            "select": select,
            "epoch": self.epoch,
            "images": self.val_images,
            "weights": weights,
        }


def figures_of(found: Evaluation, class_names: Sequence[str], teacher: Tensor | None) -> dict[str, Any]:
    """The values of an `EpochRecord` that tell of its validation. teacher: (images,) the classes that the
    teacher predicts.
    """
    classes = found.of_classes(class_names)
    return {
        "val_top1_percent": found.top1,
        "val_top5_percent": found.top5,
        "val_loss_nats": found.loss,
        "val_images": found.images,
        "val_teacher_agreement_percent": (
            None if teacher is None else same_class_percent(found.classes, teacher)
        ),
        "val_balanced_percent": found.balanced,
        "val_class_percent": (
            {each.name: each.percent for each in classes} if len(classes) <= MOST_CLASSES else {}
        ),
    }


class Stopwatch:
    """Seconds spent inside `with`; on a GPU by events, so that nothing waits."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.seconds = self.began = 0.0
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> None:
        if self.cuda:
            pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            pair[0].record()
            self.events.append(pair)
        else:
            self.began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        if self.cuda:
            self.events[-1][1].record()
        else:
            self.seconds += time.perf_counter() - self.began

    def take(self) -> float:
        """Seconds since the last call."""
        for begin, end in self.events:
            end.synchronize()
            self.seconds += begin.elapsed_time(end) / 1000
        self.events.clear()
        taken, self.seconds = self.seconds, 0.0
        return taken


def write_unreadable(folder: Path, unreadable: Mapping[str, Iterable[str]]) -> None:
    """UNREADABLE in the folder: a line for each image that could not be read, with its split and the reason;
    no file where all could be read.
    """
    lines = [f"{split}: {name}\n" for split, names in unreadable.items() for name in sorted(names)]
    if lines:
        text = "".join(lines)
        files.write_bytes(folder / UNREADABLE, text.encode("utf-8", "surrogateescape"))


def epoch_words(
    role: str, record: EpochRecord, epochs: int, best: str, balanced: bool = False, loss: bool = False
) -> list[str]:
    """What a person reads at the end of an epoch, the most important first. best: the measure of the best
    epoch; balanced, loss: what is shown of the validation beside top-1.
    """
    share, bad = record.teacher_share_of_step, record.bad_images
    words = [
        f"{role}: epoch {record.epoch}/{epochs}",
        f"loss {record.train_loss:.4f}",
        f"top-1 {record.val_top1_percent:.2f} %",
        f"balanced {record.val_balanced_percent or 0:.2f} %" if balanced else "",
        f"val loss {record.val_loss_nats:.4f}" if loss else "",
        f"(best {best})",
        f"{bad} unreadable images left out" if bad else "",
        f"{record.train_images_per_s:,.0f} images/s",
        f"teacher {share:.0%} of the step" if share is not None else "",
    ]
    return [word for word in words if word]
