"""Evaluation of a network on labeled images.

In:  a network in torch and a loader of `Batch`es.
Out: top-1 and top-5 in percent, cross-entropy in nats, number of images.
Elsewhere: the command (distill.commands.eval), accuracy of exported artifacts (bench.accuracy).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from runtime.backends import is_index
from runtime.errors import DataError, MissingError, UsageError
from runtime.images.summary import ClassAccuracy, balanced_percent, class_accuracies
from runtime.intervals import wilson

from .data import Batch
from .models.depthwise import network_format
from .processes import together, world


@dataclass(frozen=True)
class Evaluation:
    """How good a network is on `images` labeled images."""

    top1: float
    """Percent."""
    top5: float
    """Percent; with fewer than five classes, of the best K."""
    loss: float
    """Cross-entropy, nats per image."""
    images: int
    skipped: int
    """Unreadable images left out."""
    classes: torch.Tensor = field(repr=False, compare=False)
    """(images,) predicted class of each, in order."""
    right: torch.Tensor = field(repr=False, compare=False)
    """(images,) bool: whether that class is the label."""
    labels: torch.Tensor = field(
        repr=False, compare=False, default_factory=lambda: torch.zeros(0, dtype=torch.int64)
    )
    """(images,) the label of each."""
    unreadable: tuple[str, ...] = field(default=(), repr=False, compare=False)
    """Each image left out, with the reason."""

    @property
    def balanced(self) -> float | None:
        """Balanced accuracy: the mean over the classes that have images, percent."""
        classes = int(self.labels.max()) + 1 if len(self.labels) else 0
        return balanced_percent(each.percent for each in self.of_classes([""] * classes))

    def of_classes(self, names: Sequence[str]) -> list[ClassAccuracy]:
        """Accuracy of each class, in the order of the names."""
        right = self.right[: len(self.labels)]
        return class_accuracies(self.labels.numpy(), right.numpy(), names)


@dataclass(frozen=True)
class EvaluationReport:
    """How good a checkpoint is, and on which images: the result of `distill eval`."""

    checkpoint: str
    model: str
    """Architecture."""
    data: str
    """The images, as --data names them."""
    split: str
    result: Evaluation
    notes: list[str]
    """What was done to the file to read it."""
    class_names: Sequence[str] = ()

    @property
    def top1(self) -> float:
        """Percent."""
        return self.result.top1

    @property
    def top1_interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of top-1, percent."""
        low, high = wilson(int(self.result.right.sum()), self.result.images)
        return 100 * low, 100 * high

    @property
    def balanced(self) -> float | None:
        """Balanced accuracy: the mean over the classes that have images, percent."""
        return self.result.balanced

    @property
    def classes(self) -> list[ClassAccuracy]:
        """Accuracy of each class."""
        return self.result.of_classes(self.class_names)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "checkpoint": self.checkpoint,
            "data": self.data,
            "model": self.model,
            "top1_percent": self.result.top1,
            "top1_low_percent": self.top1_interval[0],
            "top1_high_percent": self.top1_interval[1],
            "top5_percent": self.result.top5,
            "balanced_percent": self.balanced,
            "loss_nats": self.result.loss,
            "images": self.result.images,
            "skipped_images": self.result.skipped,
            "notes": self.notes,
            "classes": [each.to_dict() for each in self.classes],
        }


def same_class_percent(one: torch.Tensor, other: torch.Tensor) -> float | None:
    """Percent of images on which two networks predict the same class; None when they did not see the same
    images.
    """
    return 100 * (one == other).double().mean().item() if one.shape == other.shape else None


@torch.inference_mode()
def evaluate(
    model: nn.Module | Callable[[torch.Tensor], torch.Tensor],
    loader: Iterable[Batch],
    device: torch.device,
    *,
    amp_dtype: torch.dtype | None = None,
    channels_last: bool = True,
    skip_bad: bool = False,
    after_batch: Callable[[int], None] = lambda n: None,
) -> Evaluation:
    """Run every batch; after_batch(images so far) may raise to stop. channels_last: the format of the images,
    unless another is faster for this network on this device. Raises DataError for an unreadable image unless
    skip_bad.
    """
    if isinstance(model, nn.Module):
        model.eval()
        channels_last = network_format(model, device, channels_last) == torch.channels_last

    def answered(batch: Batch) -> _Answers:
        inputs = batch.images.to(device, non_blocking=True)
        if channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, amp_dtype, enabled=amp_dtype is not None):
            logits = model(inputs)
        return _Answers.of(logits.float(), batch)

    batches, turns, images = iter(loader), getattr(loader, "turns", None), 0
    as_one = contextlib.nullcontext if turns is None else together.agreed
    found: list[_Answers] = []
    for _ in itertools.count() if turns is None else range(turns):
        with as_one():
            batch = next(batches, None)
            require_readable(batch.bad if batch else [], skip_bad)
        if batch is None and turns is None:
            break
        if batch is not None:
            found.append(answered(batch) if len(batch.labels) else _Answers(bad=batch.bad))
        images += len(batch.labels) if batch else 0
        with as_one():
            if batch is None or len(batch.labels):
                after_batch(images * (together.size() if turns else 1))
    return _together(found if turns is None else together.in_turns(found))


@dataclass(frozen=True)
class _Answers:
    """What a network says of a batch."""

    loss: float = 0.0
    """Sum of cross-entropies, nats."""
    right5: int = 0
    classes: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """(images,) as `Evaluation` has it, like the next two."""
    right: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    labels: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    bad: list[str] = field(default_factory=list)

    @staticmethod
    def of(logits: torch.Tensor, batch: Batch) -> _Answers:
        """logits: (N, K) float32."""
        labels = batch.labels.to(logits.device, non_blocking=True)
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hits = best == labels[:, None]
        return _Answers(
            F.cross_entropy(logits, labels, reduction="sum").double().item(),
            int(hits.sum()),
            best[:, 0].cpu(),
            hits[:, 0].cpu(),
            batch.labels.clone(),  # a worker's own memory is let go
            batch.bad,
        )


def _together(found: Sequence[_Answers]) -> Evaluation:
    """The figures of all batches, in their order. Raises DataError where there is no image."""
    images = sum(len(each.labels) for each in found)
    if not images:
        raise DataError("no readable image to evaluate on")
    unreadable = tuple(name for each in found for name in each.bad)
    right = torch.cat([each.right for each in found])
    return Evaluation(
        100 * int(right.sum()) / images,
        100 * sum(each.right5 for each in found) / images,
        sum(each.loss for each in found) / images,
        images,
        len(unreadable),
        torch.cat([each.classes for each in found]),
        right,
        torch.cat([each.labels for each in found]),
        unreadable,
    )


def require_readable(bad: list[str], skip_bad: bool) -> None:
    """Raise DataError naming the first unreadable image, unless they are to be skipped."""
    if bad and not skip_bad:
        raise DataError(
            f"{bad[0]}. Remove or replace it, or add --skip-bad-images to leave such images out and count"
            " them"
        )


def require_whole(batch: Batch, images: int, skip_bad: bool) -> None:
    """Raise DataError for a training batch with unreadable images, unless they are to be skipped, and for one
    of fewer than `images`, for which no readable ones were found.
    """
    require_readable(batch.bad, skip_bad)
    if len(batch.labels) < images:
        raise DataError(
            f"{len(batch.bad)} images in a row cannot be read (last: {batch.bad[-1]}). Check the data set"
        )


def pick_device(name: str) -> torch.device:
    """auto, cpu, cuda or cuda:INDEX; of several processes on a machine each has the GPU of its number. Raises
    MissingError when that GPU is not there, UsageError for another word.
    """
    kind, _, index = name.partition(":")
    if world.announced() > 1 and (kind == "cuda" or (name == "auto" and torch.cuda.is_available())):
        if index:
            raise UsageError(f"device {name!r}: several processes take the GPUs by their numbers. Give cuda")
        kind, index = "cuda", str(world.local_rank())
        name = f"{kind}:{index}"
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if kind not in ("cpu", "cuda") or (index and not is_index(index)):
        raise UsageError(f"device {name!r}: expected auto, cpu, cuda or cuda:INDEX")
    if kind == "cuda" and (not torch.cuda.is_available() or int(index or 0) >= torch.cuda.device_count()):
        raise MissingError(
            f"device {name!r}: torch {torch.__version__} sees {torch.cuda.device_count()} GPUs. Use"
            " --device cpu"
        )
    return torch.device(name)
