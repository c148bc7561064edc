"""A result of `bench` as a file: written by --save, read by `bench table`, `bench gate` and `bench report`.

In:  what a command found, as plain JSON values; the path of such a file.
Out: one JSON object: the keys that --json prints, and `large2small_result`, `kind`, `made`, `command`,
`samples_ms` and, for accuracies, `answers`. Described in docs/format.md.
Elsewhere: what the keys mean (each command), tables of several files (bench.results.gathered).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from runtime import ArtifactError, files
from runtime.cli.settings import Setting, settings_of
from runtime.recorded import is_plain

from ..accuracy import AccuracyResult, Answers

FORMAT = 1
KINDS = ("latency", "accuracy", "compare", "table", "gate", "robustness")
AGAIN, EXPECTED = "Measure again with --save", "Expected what distill bench --save wrote"
LARGEST = 2**28
"""Bytes of a file that is read; ten million durations are below."""


@dataclass(frozen=True, eq=False)
class Saved:
    """A result that was read."""

    path: Path
    kind: str
    made: str
    command: str
    values: Mapping[str, Any]
    """All keys of the object."""

    def need(self, key: str, kind: type, within: Mapping[str, Any] | None = None) -> Any:
        """A value of this type (for float also a whole number). Raises ArtifactError where it is another."""
        value = (self.values if within is None else within).get(key)
        kinds = (int, float) if kind is float else (kind,)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ArtifactError(
                f"{self.path}: {key} is not what distill bench {self.kind} writes there, a value of type"
                f" {kind.__name__}. Measure again with --save"
            )
        return value


def write(path: Path, kind: str, command: str, values: Mapping[str, Any]) -> None:
    """Write a result, whole or not at all."""
    about = {
        "large2small_result": FORMAT,
        "kind": kind,
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
    }
    files.write_text(path, files.json_text(about | dict(values), indent=2) + "\n")


def read(path: Path) -> Saved:
    """Read a result. Raises ArtifactError for a file that is not one, or of a later format."""
    if not path.is_file() or not is_plain(path):
        raise ArtifactError(f"{path}: no such file. {EXPECTED}")
    try:
        values = files.from_json(files.read_small(path, LARGEST), str(path))
    except ArtifactError as error:
        raise ArtifactError(f"{error}. {EXPECTED}") from None
    if not isinstance(values, dict) or values.get("kind") not in KINDS:
        raise ArtifactError(f"{path}: not a result of distill bench. Write one with --save {path.name}")
    if values.get("large2small_result") != FORMAT:
        raise ArtifactError(
            f"{path}: format {str(values.get('large2small_result'))[:20]} of results; this version reads"
            f" {FORMAT}. Measure again with --save"
        )
    return Saved(path, values["kind"], str(values.get("made")), str(values.get("command")), values)


def command_line(name: str, options: object) -> str:
    """The command that has these options: what is not a default, as it is typed."""
    words = ["distill", *name.split()]
    kind: type = type(options)
    for setting in settings_of(kind):
        value = getattr(options, setting.name)
        if value != setting.default:
            words += _typed(setting, value)
    return shlex.join(words)


def _typed(setting: Setting, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [setting.words[0] if value else str(setting.negated)]
    return [*setting.words[:1], *map(str, value if isinstance(value, tuple) else (value,))]


def answers(result: AccuracyResult) -> dict[str, Any]:
    """What a network said to each image, so that another can be compared with it later."""
    return {
        "indices": result.indices.tolist(),
        "labels": result.labels.tolist(),
        "classes": result.logits.argmax(1).tolist(),
        "right": result.right.astype(int).tolist(),
        "images_sha256": result.images_sha256,
    }


def read_answers(saved: Saved) -> Answers:
    """The same, read again. Raises ArtifactError where the file holds none."""
    found = saved.need("answers", dict)
    names = ("indices", "labels", "classes", "right")
    indices, labels, classes, right = (_whole_numbers(saved, name, found) for name in names)
    if len({len(each) for each in (indices, labels, classes, right)}) != 1 or not len(indices):
        raise ArtifactError(f"{saved.path}: answers of different lengths, or none. {AGAIN}")
    identity = found.get("images_sha256")  # which older versions left out
    return Answers(indices, labels, classes, right > 0, identity if isinstance(identity, str) else None)


def _whole_numbers(saved: Saved, name: str, within: Mapping[str, Any]) -> np.ndarray:
    values = saved.need(name, list, within)
    if not all(type(each) is int and abs(each) < 2**31 for each in values):
        raise ArtifactError(
            f"{saved.path}: answers.{name}: expected whole numbers. Measure again with --save"
        )
    return np.array(values, np.int64)
