"""`distill label`: ask a teacher about the images that a training will see, and store what it says.

In:  the options of that training.
Out: a folder of labels, which distill train --teacher-labels reads.
Elsewhere: rows and files (distill.data.labels), what they are for (distill.run.labels).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import Mixup

from runtime.cli.terminal import loading, progress_bar, say
from runtime.errors import ArtifactError, UsageError
from runtime.images import ImageSet
from runtime.preprocess import Preprocess

from .. import teacher as teachers
from ..data import Batch, TrainLoader
from ..data.cached import cached
from ..data.labels.store import Header, Writer
from ..data.mixing import Place, mixed, mixing
from ..evaluate import pick_device, require_whole
from ..processes import together
from ..recipe import Recipe
from ..teacher import Teacher
from . import teacher_fit
from .folder import with_files
from .job import open_teacher, recipe_of, teacher_accuracy, with_balance
from .labels import header_for
from .options import TrainOptions
from .splits import open_splits
from .student import opened


@dataclass(frozen=True)
class Made:
    """What `distill label` did."""

    folder: Path
    header: Header
    seconds: float
    """Of this call; less than the labels took where an earlier one began them."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        header = self.header
        return {
            "labels": str(self.folder),
            "teacher": header.teacher["model"],
            "teacher_top1_percent": header.teacher_top1_percent,
            "classes": len(header.class_names),
            "top": header.top,
            "epochs": header.epochs,
            "images_per_epoch": header.batches * header.batch,
            "bytes": header.epochs * header.bytes_per_epoch,
            "seconds": self.seconds,
        }

    def summary(self) -> str:
        """Two lines for a person."""
        header = self.header
        return (
            f"{self.folder}: {header.epochs} epochs of {header.batches * header.batch} answers,"
            f" {header.epochs * header.bytes_per_epoch / 1e6:.1f} MB, {self.seconds:.0f} s\n"
            f"next: the same training with --teacher-labels {self.folder} in place of the teacher"
        )


def make_labels(options: TrainOptions, folder: Path, top: int) -> Made:
    """Store the answers of the options' teacher for the images of a training with these options. top: classes
    kept for each image, 0 for all.

    Goes on where an earlier call stopped. Raises UsageError without a teacher, for labels of something else
    in the folder, and for streamed images; what opening and asking the teacher raise.
    """
    options, start = opened(with_files(options), folder)
    preprocess = start.preprocess
    device = pick_device(options.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # as training does
    with loading(f"looking for the images of {options.data}"):
        data = open_splits(options, folder, False)
    options = with_balance(options, data.train)
    for line in start.assumed:
        say(f"student: {line}")
    source = open_teacher(options, folder, data.train.class_names, preprocess.exif)
    if source is None:
        raise UsageError("no teacher given. Name one with --teacher, or its file with --teacher-ckpt")
    if source.is_new:
        source = teacher_fit.fit_head(source, data.train, options, device)
        say(f"teacher: {source.origin.fitted}")
    teacher = teachers.ready(source, options, preprocess, device)
    if teacher.origin.fitted:  # by each process for itself
        together.copy_from_main(teacher.model.state_dict().values())
    accuracy = teacher_accuracy(teacher, data.val, options, device)
    recipe = recipe_of(options)
    with loading("hashing the images"):
        header = header_for(
            recipe, data.train, preprocess, teacher.origin, top=top, teacher_top1=accuracy.top1
        )
    together.require_same(
        asdict(header), "All processes need the same settings, the same files and the same packages"
    )
    began = time.monotonic()
    with _one_writer(folder, header) as writer:
        train = cached(data.train, recipe, preprocess)
        first = _first_missing(writer)
        seconds = together.from_main(lambda: seconds_per_batch(recipe, train, preprocess, teacher))
        for line in announcement(header, first, seconds / together.size()):
            say(f"labels: {line}")
        with progress_bar("labels, batches", header.epochs * header.batches) as advance:
            label(writer, header, recipe, train, preprocess, teacher, advance)
    return Made(folder, header, time.monotonic() - began)


@contextlib.contextmanager
def _one_writer(folder: Path, header: Header) -> Iterator[Writer | None]:
    """The writer of the folder, in the main process; in the others None."""
    with contextlib.ExitStack() as opened:
        with together.agreed():
            writer = opened.enter_context(Writer(folder, header)) if together.is_main() else None
        yield writer


def _first_missing(writer: Writer | None) -> tuple[int, int]:
    """(epoch, batch) of the first batch that is missing, from 0."""
    return together.from_main(lambda: writer.start() if writer else (0, 0))


def announcement(header: Header, first: tuple[int, int], seconds_per_batch: float) -> list[str]:
    """Size and time, said before the work. first: (epoch, batch) to begin with, from 0."""
    row, images = header.layout.dtype.itemsize, header.batches * header.batch
    lines = [
        f"{header.epochs} epochs of {images} images, {row} bytes for each image:"
        f" {header.epochs * header.bytes_per_epoch / 1e6:.1f} MB"
    ]
    epoch, batch = first
    left = (header.epochs - epoch) * header.batches - batch
    if not left:
        return [*lines, "all are there already"]
    if epoch or batch:
        lines.append(f"goes on with epoch {epoch + 1}, batch {batch + 1}")
    return [*lines, f"about {_duration(left * seconds_per_batch)} from here"]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def label(
    writer: Writer | None,
    header: Header,
    recipe: Recipe,
    train: ImageSet,
    preprocess: Preprocess,
    teacher: Teacher,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Store the teacher's answers for every batch that is missing. writer: of the main process, which has
    the others' answers written in the order of one process; progress: called with the number of batches that
    are there, those of an earlier call included.

    Of n processes each answers every n-th batch, whole, so that the answers are those of one process bit for
    bit. Raises DataError for an unreadable image, ArtifactError where the teacher's logits are NaN or
    infinite.
    """
    with together.alone():
        loader = TrainLoader(train, recipe, preprocess, teacher.device)
    if together.size() > 1:
        loader.order.stride = together.size()
    mixup = mixing(recipe, len(train.class_names))
    epoch, start = _first_missing(writer)
    while epoch < header.epochs:
        mine = start + together.rank()
        with contextlib.closing(loader.epoch(epoch, mine)) as batches:
            for number in range(mine, header.batches + together.rank(), together.size()):
                with together.agreed():
                    rows = None
                    if (batch := next(batches, None)) is not None:
                        images, logits = _answers(batch, Place(epoch, number), recipe, mixup, teacher)
                        rows = header.layout.pack(logits, images)
                turn = [each for each in together.to_main(rows) if each is not None]
                with together.agreed():
                    if writer:
                        writer.append(epoch, np.concatenate(turn))
                done = min(number - together.rank() + together.size(), header.batches)
                progress(epoch * header.batches + done)
        with together.agreed():
            if writer:
                writer.finish(epoch)
        epoch, start = _first_missing(writer)


def seconds_per_batch(recipe: Recipe, train: ImageSet, preprocess: Preprocess, teacher: Teacher) -> float:
    """What a batch takes, from reading to the answer: the second of two, for the first one warms up."""
    mixup = mixing(recipe, len(train.class_names))
    seconds = 0.0
    with together.alone():
        loader = TrainLoader(train, recipe, preprocess, teacher.device)
    with contextlib.closing(loader.epoch(0)) as batches:
        for number in range(2):
            began = time.monotonic()
            batch = next(batches, None)
            if batch is not None:
                _answers(batch, Place(0, number), recipe, mixup, teacher)
                seconds = time.monotonic() - began
    return seconds


def _answers(
    batch: Batch, place: Place, recipe: Recipe, mixup: Mixup | None, teacher: Teacher
) -> tuple[torch.Tensor, torch.Tensor]:
    """(images as training has them, the teacher's logits)."""
    require_whole(batch, recipe.batch, recipe.skip_bad_images)
    form = torch.channels_last if recipe.channels_last else torch.contiguous_format
    images = batch.images.to(teacher.device).contiguous(memory_format=form)
    labels = batch.labels.to(teacher.device)
    images, _ = mixed(mixup, images, labels, recipe.seed, place)
    logits = teacher(images).logits
    if not torch.isfinite(logits).all():
        raise ArtifactError(
            f"teacher {teacher.origin.model}: its logits hold NaN or inf in epoch {place.epoch + 1}, batch"
            f" {place.batch + 1}. Give --teacher-dtype fp32, or another file"
        )
    return images, logits
