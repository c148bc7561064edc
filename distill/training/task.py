"""What one training is given, all together: a student's budget, images, teacher and folder.

In:  a recipe, labeled images, a teacher or None.
Out: a `Task`; `lineage_of`, the record of where its checkpoints come from.
Elsewhere: who makes tasks (distill.run.job), what is built from one (distill.training.parts), the
training itself (distill.training.trainer).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime import files
from runtime.cli.terminal import loading
from runtime.env import versions
from runtime.images import ImageSet
from runtime.preprocess import Preprocess

from .. import recipe as recipes
from ..checkpoint import Checkpoint
from ..data.labels.store import Labels
from ..recipe import Recipe
from ..teacher import Teacher


@dataclass(frozen=True)
class Splits:
    """Training and validation images of the same classes, and the specs that find them again."""

    train: ImageSet
    val: ImageSet
    train_spec: str
    val_spec: str
    lists: dict[str, str] = field(default_factory=dict)
    """Files of the run folder that the specs name: name -> text."""


@dataclass(frozen=True)
class Start:
    """What a student begins as."""

    name: str
    """As recipes and lineages have it."""
    model: str
    """Architecture, as checkpoints have it."""
    model_args: dict[str, Any]
    preprocess: Preprocess
    assumed: list[str] = field(default_factory=list)
    """What was taken from the architecture because the file does not say it."""
    read: Callable[[], Checkpoint | None] = lambda: None
    """Gives the weights; None: fresh ones."""

    @cached_property
    def checkpoint(self) -> Checkpoint | None:
        """The weights it begins with, read or fetched at the first use; None: fresh ones."""
        return self.read()


@dataclass(frozen=True)
class Task:
    """One training: one student, one budget, one seed."""

    role: str
    """student (with a teacher), control (the same without it) or plain."""
    recipe: Recipe
    folder: Path
    """Where best.pth, last.pth and the records are written."""
    train: ImageSet
    val: ImageSet
    preprocess: Preprocess
    """The student's."""
    device: torch.device
    teacher: Teacher | None = None
    labels: Labels | None = None
    """A teacher's stored answers, in its place."""
    lineage: dict[str, Any] = field(default_factory=dict)
    """What every checkpoint says about its origin; see `lineage_of`."""
    teacher_classes: Tensor | None = None
    """(validation images,) what the teacher predicts; a control has them too, to compare with."""
    loggers: Mapping[str, str] = field(default_factory=dict)
    """Services that the figures are sent to besides, by name, and where there (distill.training.loggers)."""
    start: Start | None = None
    """What the student begins as; None: what the recipe says, opened again."""

    @property
    def class_names(self) -> list[str]:
        return self.train.class_names


@loading("hashing the images")
def lineage_of(
    recipe: Recipe, data: Splits, teacher: Teacher | None, labels: Labels | None = None
) -> dict[str, Any]:
    """Where a checkpoint comes from: data with fingerprints, the teacher's file, its stored answers and the
    file that the student starts from with SHA-256, recipe and versions.
    """
    origin = teacher.origin if teacher else labels.origin if labels else None
    return {
        "data": {
            "train_spec": data.train_spec,
            "val_spec": data.val_spec,
            "train_images": len(data.train),
            "val_images": len(data.val),
            "train_sha256": data.train.fingerprint(),
            "val_sha256": data.val.fingerprint(),
        },
        "teacher": origin.to_dict() if origin else None,
        **({"labels": {"sha256": labels.fingerprint()}} if labels else {}),
        "student": _start_of(recipe),
        "recipe": recipes.to_dict(recipe),
        "versions": versions(),
    }


def _start_of(recipe: Recipe) -> dict[str, str] | None:
    """The file that the student starts from."""
    path = recipe.student_ckpt
    return {"file": path, "sha256": files.sha256(path)} if path else None
