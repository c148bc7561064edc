"""What the search types: the commands of its steps.

In:  the settings of all trainings; a candidate.
Out: the words of `distill train`, `label`, `export onnx` and `bench latency`, with all settings that are not
     their defaults, so that each can be typed again by itself.
Elsewhere: running them (large2small.searching.processes), what they mean (each command).
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from bench.results.saved import command_line
from distill import losses
from distill.commands import label
from distill.recipe import Recipe
from distill.run.options import TrainOptions

from .candidates import Candidate

SECONDS = 3.0
"""That calls of one candidate are timed for."""
WARMUP = 10
"""Untimed calls before."""


@dataclass(frozen=True)
class Engine:
    """What the candidates are timed on, and in which precision."""

    backend: str | None
    threads: int | None
    int8: bool

    @property
    def precision(self) -> str:
        return "int8" if self.int8 else "fp32"

    @property
    def words(self) -> list[str]:
        """For bench latency."""
        chosen = ["--engine-backend", self.backend] if self.backend else []
        return [*chosen, *(["--threads", str(self.threads)] if self.threads else [])]


def has_teacher(recipe: Recipe) -> bool:
    """Does somebody teach?"""
    return bool(recipe.teacher_ckpt) or recipe.teacher not in ("auto", "none")


def stores_labels(recipe: Recipe) -> bool:
    """Can the teacher's answers be stored? Its feature maps cannot."""
    names = [recipe.feature_loss, *(each.partition(":")[0] for each in recipe.losses)]
    return has_teacher(recipe) and not any(name in losses.FEATURE for name in names)


def training(
    options: TrainOptions, candidate: Candidate, epochs: int, labels: Path | None, output: Path
) -> TrainOptions:
    """The training of one candidate. labels: of its teacher, in the place of the teacher itself."""
    changes: dict[str, Any] = {
        "student": candidate.network,
        "student_args": candidate.args,
        "img_size": candidate.size,
        "epochs": epochs,
        "output": str(output),
    }
    if labels:
        changes |= without_teacher() | {"teacher_labels": str(labels)}
    return replace(options, **changes)


def without_teacher() -> dict[str, Any]:
    """The settings that are a teacher's, as they are where there is none."""
    return {each.name: each.default for each in fields(Recipe) if each.name.startswith("teacher")}


def train(options: TrainOptions) -> list[str]:
    """`distill train` with these options; where its output folder holds a part of the run, the rest of it."""
    folder = Path(options.output)
    if (folder / "last.pth").is_file():
        return ["train", "--resume", str(folder), *([] if options.report else ["--no-report"]), "--json"]
    return [*typed("train", options), *(["--overwrite"] if folder.exists() else []), "--json"]


def labels(options: TrainOptions, size: int, epochs: int, top: int, folder: Path) -> list[str]:
    """`distill label` for trainings with these options at one size."""
    values = {each.name: getattr(options, each.name) for each in fields(Recipe)}
    values |= {"img_size": size, "epochs": epochs}
    return [*typed("label", label.Options(**values, top=top, output=str(folder))), "--json"]


def export(checkpoint: Path, target: Path, engine: Engine) -> list[str]:
    """`distill export onnx`."""
    words = ["export", "onnx", str(checkpoint), "--output", str(target), "--overwrite", "--json"]
    return [*words, *(["--int8"] if engine.int8 else [])]


def timing(file: Path, result: Path, engine: Engine) -> list[str]:
    """`distill bench latency`: one image at a time."""
    words = ["bench", "latency", str(file), "--boundary", "compute", "--duration", str(SECONDS)]
    words += ["--warmup", str(WARMUP), "--save", str(result), "--overwrite", "--json"]
    return [*words, *engine.words]


def typed(name: str, options: object) -> list[str]:
    """The words of a command with these options."""
    return shlex.split(command_line(name, options))[1:]
