"""What a logger is: where the figures and pictures of a training go, besides the screen.

In:  nothing.
Out: `Logger`, the interface; `Run`, what one is told at the beginning; `tags`, the names of figures outside
     of this project; the ids that a run keeps, so that a resumed one goes on where it was.
Elsewhere: the loggers (the files beside this one), who calls them (distill.training.loggers).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from runtime import files
from runtime.errors import Large2SmallError
from runtime.recorded import LOGGER_IDS

UNITS = re.compile("_(percent|nats|loss)$")
TIMES = ("train_seconds", "train_images_per_s", "teacher_share_of_step")


class Outcome(Enum):
    """How a training ended."""

    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True)
class Run:
    """A training before its first step, or before the first one after a resume."""

    name: str
    folder: Path
    settings: Mapping[str, Any]
    """The recipe, as plain values."""
    rows: Sequence[Mapping[str, Any]]
    """The epochs that are done, as lines of metrics.jsonl."""
    step: int
    """Optimizer steps that are done."""


class Logger(Protocol):
    """Where figures and pictures go. Any method may raise: what happens then is the caller's business."""

    name: str

    def begin(self, run: Run) -> str:
        """Open the run, or go on with it; a line for a person that says where it is, or nothing."""

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """The figures of an epoch after optimizer step `step`: a line of metrics.jsonl."""

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """A picture, (H, W, 3) uint8."""

    def end(self, outcome: Outcome) -> None:
        """Close the run; nothing comes after it."""


def tags(values: Mapping[str, Any]) -> dict[str, float]:
    """The figures of an epoch, grouped: train_kl_loss is train/kl, val_top1_percent val/top1."""
    return {
        _tag(name): float(value)
        for name, value in values.items()
        if isinstance(value, (int, float)) and name not in ("step", "val_images")
    }


def _tag(name: str) -> str:
    if name in TIMES:
        return f"time/{name.removeprefix('train_')}"
    if name == "lr":
        return "lr/largest"
    group, _, figure = name.partition("_")
    if group not in ("train", "val"):
        return f"run/{name}"
    return f"{group}/{UNITS.sub('', figure)}"


def kept_id(folder: Path, logger: str) -> str:
    """The id that the run has there, empty where it has none."""
    found = _ids(folder).get(logger)
    return found if isinstance(found, str) and re.fullmatch(r"[\w-]{1,64}", found) else ""


def keep_id(folder: Path, logger: str, run_id: str) -> None:
    """Write the id into the run folder."""
    files.write_text(folder / LOGGER_IDS, files.json_text(_ids(folder) | {logger: run_id}) + "\n")


def _ids(folder: Path) -> dict[str, Any]:
    try:
        found = files.from_json(files.read_small(folder / LOGGER_IDS), LOGGER_IDS)
    except (OSError, Large2SmallError):
        return {}
    return found if isinstance(found, dict) else {}
