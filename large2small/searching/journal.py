"""What a search has done already: a file that a search which was stopped goes on from.

In:  the folder of a search, its settings; what a step found.
Out: FOLDER/journal.json, written whole after every step; what is known of a step, or None.
Elsewhere: the steps (large2small.searching.search), trainings that were stopped in their middle, which go on
from their own last.pth (distill.training).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from runtime import ArtifactError, UsageError, files

FORMAT = 1
NAME = "journal.json"
LARGEST = 2**26
"""Bytes of a journal; one of ten thousand steps is far below."""


@dataclass(frozen=True)
class Step:
    """What every step has."""

    seconds: float
    """That it took."""


@dataclass(frozen=True)
class Exported(Step):
    """The winner's artifact."""

    int8_top1_percent: float | None
    """On the export's validation images; None of fp32, which is the student itself."""


@dataclass(frozen=True)
class Labeled(Step):
    """A teacher's answers."""

    epochs: int
    """That were added."""


@dataclass(frozen=True)
class Failed(Step):
    """A step that did not work."""

    reason: str


@dataclass(frozen=True)
class Timed(Step):
    """The latency of one call with one image, ms: its median with the 95 % interval, if there is one."""

    median_ms: float
    low_ms: float | None
    high_ms: float | None

    @property
    def words(self) -> str:
        """For a person."""
        between = f" ({self.low_ms:.4g} to {self.high_ms:.4g})" if self.low_ms and self.high_ms else ""
        return f"{self.median_ms:.4g} ms{between}"


@dataclass(frozen=True)
class Trained(Step):
    """The best epoch of a training, on so many validation images."""

    top1_percent: float
    images: int
    epochs: int
    """That were trained."""


KINDS: Mapping[str, type[Step]] = {
    "exported": Exported,
    "labeled": Labeled,
    "failed": Failed,
    "timed": Timed,
    "trained": Trained,
}
NAMES = {kind: name for name, kind in KINDS.items()}
AnyStep = TypeVar("AnyStep", bound=Step)


class Journal:
    """Steps by key. A key says all that a step depends on besides the settings."""

    def __init__(self, folder: Path, settings: Mapping[str, str], steps: Mapping[str, Step]) -> None:
        self.path, self.settings, self.steps = folder / NAME, settings, dict(steps)

    def find(self, key: str, kind: type[AnyStep]) -> AnyStep | None:
        """What is known of a step that ended so; None where it did not, or not yet."""
        step = self.steps.get(key)
        return step if isinstance(step, kind) else None

    def keep(self, key: str, step: AnyStep) -> AnyStep:
        """Write the step down."""
        self.steps[key] = step
        self.write()
        return step

    def forget_failures(self) -> None:
        """Let what failed be tried again."""
        self.steps = {key: step for key, step in self.steps.items() if not isinstance(step, Failed)}

    @property
    def seconds(self) -> float:
        """That all steps took."""
        return sum(step.seconds for step in self.steps.values())

    def write(self) -> None:
        """The file, whole or not at all."""
        steps = {key: {"kind": NAMES[type(step)]} | asdict(step) for key, step in self.steps.items()}
        values = {"large2small_search": FORMAT, "settings": dict(self.settings), "steps": steps}
        files.write_text(self.path, files.json_text(values, indent=1) + "\n")


def opened(folder: Path, settings: Mapping[str, str]) -> Journal:
    """The journal of a folder, a new one where it holds nothing.

    Raises UsageError for a folder of something else or of a search with other settings, ArtifactError for a
    damaged journal.
    """
    path = folder / NAME
    files.remove_leftovers(folder)
    if not path.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{folder}: holds something that is not a search. Choose another --output")
        return Journal(folder, settings, {})
    known, steps = _read(path)
    for name, value in settings.items():
        if known.get(name) != value:
            raise UsageError(
                f"{folder}: a search with another {name} ({files.short(str(known.get(name)))}; here"
                f" {files.short(value)}). Give the same flags to go on with it, or another --output"
            )
    return Journal(folder, settings, steps)


def _read(path: Path) -> tuple[Mapping[str, Any], dict[str, Step]]:
    values = files.from_json(files.read_small(path, LARGEST), str(path))
    steps = values.get("steps") if isinstance(values, dict) else None
    if not isinstance(steps, dict) or not isinstance(values.get("settings"), dict):
        raise _damaged(path, "not a journal of distill search")
    if values.get("large2small_search") != FORMAT:
        raise _damaged(path, f"of another version, where this one reads format {FORMAT}")
    return values["settings"], {key: _step(path, key, value) for key, value in steps.items()}


def _step(path: Path, key: str, value: Any) -> Step:
    kind = KINDS.get(str(value.get("kind"))) if isinstance(value, dict) else None
    if kind is None:
        raise _damaged(path, f"step {files.short(key)} is of no known kind")
    known = {each.name: str(each.type) for each in fields(kind)}
    given = {name: value.get(name) for name in known}
    if not all(_fits(given[name], type_) for name, type_ in known.items()):
        raise _damaged(path, f"step {files.short(key)} holds values that cannot be")
    return kind(**given)


def _fits(value: Any, type_: str) -> bool:
    if value is None:
        return type_.endswith("None")
    if type_.startswith("float"):
        return type(value) in (int, float) and 0 <= value < 1e12
    return type(value) is int and 0 <= value < 1e12 if type_ == "int" else isinstance(value, str)


def _damaged(path: Path, what: str) -> ArtifactError:
    return ArtifactError(f"{path}: {what}. Choose another --output, or remove this folder to search anew")
