"""A run folder as values to show: its figures, its checkpoint's own words, its pictures.

In:  RUN: best.pth, metrics.jsonl, result.json, args.yaml, control/metrics.jsonl, erf/; all but best.pth may
     be missing.
Out: a `Run`. Text is on one line without control characters, numbers are finite.
Elsewhere: predictions on the validation images (distill.run.report.predictions), what is drawn
(distill.run.report.figures), the page (distill.run.report.page).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime import files
from runtime.cli.terminal import printable
from runtime.errors import ArtifactError, UsageError
from runtime.recorded import is_plain

from ... import checkpoint as checkpoints
from ...checkpoint import Checkpoint

LARGEST_TEXT = 2**26
"""Bytes of a text file or picture that are read; a run's own are far below."""
MOST_NUMBER = 1e300
"""What numbers are below in size; larger whole ones, which JSON may hold, are not floats."""
NETWORKS = ("teacher", "control", "student", "plain")
"""Receptive fields in this order, then others."""


@dataclass(frozen=True)
class Epoch:
    """One line of metrics.jsonl; None where it does not say."""

    epoch: int
    top1_percent: float | None
    loss_nats: float | None
    """Cross-entropy on the validation images."""
    train_loss_nats: float | None
    """Cross-entropy with the labels on the training images, as they were augmented."""


@dataclass(frozen=True)
class Field:
    """The receptive field of one network: its picture, and how much of the image holds how much of it."""

    label: str
    png: bytes
    areas: Sequence[tuple[str, str]]
    """(share of the score, share of the image), in percent."""


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    checkpoint: Checkpoint
    sha256: str
    """Of best.pth."""
    settings: str
    """args.yaml as it is; empty where there is none."""
    result: Mapping[str, Any]
    """result.json; empty where there is none."""
    history: Sequence[Epoch]
    control: Sequence[Epoch]
    fields: Sequence[Field]

    @property
    def name(self) -> str:
        """The folder's name."""
        return printable(self.folder.resolve().name)

    @property
    def class_names(self) -> list[str]:
        return [printable(str(name)) for name in self.checkpoint.class_names or ()]

    def number(self, *path: str) -> float | None:
        """A number of result.json, such as ("teacher", "top1_percent"); None where there is none."""
        return number(_at(self.result, path))

    def result_of(self, *path: str) -> Any:
        """A value of result.json, such as ("best", "select"); None where there is none."""
        return _at(self.result, path)

    @property
    def parameters(self) -> int:
        """Trained values of the network."""
        counted = ("running_mean", "running_var", "num_batches_tracked")
        return sum(
            tensor.numel()
            for name, tensor in self.checkpoint.state_dict.items()
            if not name.endswith(counted)
        )

    def recorded(self, *path: str) -> Any:
        """What the checkpoint's lineage says, such as ("data", "train_images"); None where it does not."""
        return _at(self.checkpoint.lineage, path)


def read_run(folder: Path) -> Run:
    """Read RUN. Raises UsageError when it is not a run folder, ArtifactError for a damaged best.pth."""
    if not (folder / "best.pth").is_file():
        what = "has no best.pth" if folder.is_dir() else "no such folder"
        raise UsageError(
            f"{folder}: {what}. Expected the folder of a run, which distill train --output names"
        )
    result = _json(_text(folder / "result.json"))
    return Run(
        folder=folder,
        checkpoint=checkpoints.load(folder / "best.pth"),
        sha256=files.sha256(folder / "best.pth"),
        settings=_text(folder / "args.yaml"),
        result=result if isinstance(result, Mapping) else {},
        history=history(_text(folder / "metrics.jsonl")),
        control=history(_text(folder / "control" / "metrics.jsonl")),
        fields=_fields(folder / "erf", _at(result, ("erf",))),
    )


def history(text: str) -> list[Epoch]:
    """The epochs in the text of a metrics.jsonl; lines that are none are left out."""
    lines = [_json(line) for line in text.splitlines()]
    found = [
        Epoch(
            int(line["epoch"]),
            number(line.get("val_top1_percent")),
            number(line.get("val_loss_nats")),
            number(line.get("train_task_loss")),
        )
        for line in lines
        if isinstance(line, Mapping) and number(line.get("epoch")) is not None
    ]
    return sorted(found, key=lambda epoch: epoch.epoch)


def number(value: Any) -> float | None:
    """A finite number as a float; None for everything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < MOST_NUMBER:
        return None
    return float(value)


def _at(values: Any, path: Sequence[str]) -> Any:
    for key in path:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def _json(text: str) -> Any:
    try:
        return files.from_json(text, "")
    except ArtifactError:
        return None


def _text(path: Path) -> str:
    return _bytes(path).decode(errors="replace")


def _bytes(path: Path) -> bytes:
    """The content of a regular file; empty where there is none or it is far too large."""
    if not path.is_file() or not is_plain(path) or path.stat().st_size > LARGEST_TEXT:
        return b""
    return files.read_small(path, LARGEST_TEXT)


def _fields(folder: Path, measured: Any) -> list[Field]:
    """The pictures of `distill erf` but the one of all networks together, with the areas of result.json."""
    entries = [each for each in measured if isinstance(each, Mapping)] if isinstance(measured, list) else []
    areas = {str(each.get("name")): _areas(each) for each in entries}
    names = sorted(path.stem for path in folder.glob("*.png") if path.name != "erf.png")
    names.sort(key=lambda name: NETWORKS.index(name) if name in NETWORKS else len(NETWORKS))
    return [
        Field(printable(name), content, areas.get(name, ()))
        for name in names
        if (content := _bytes(folder / f"{name}.png")).startswith(b"\x89PNG")
    ]


def _areas(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    shares, ratios = entry.get("thresholds"), _at(entry, ("reference", "area_ratios"))
    if not isinstance(shares, list) or not isinstance(ratios, list):
        return []
    return [
        (f"{100 * share:g} %", "more than was tried" if ratio is None else f"{100 * ratio:.1f} %")
        for share, ratio in zip(map(number, shares), map(number, ratios), strict=False)
        if share is not None
    ]
