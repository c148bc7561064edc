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

from runtime import ArtifactError, files
from runtime.cli.settings import Setting, settings_of
from runtime.recorded import is_plain

from ..accuracy import ANSWERS, Answers

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
                f" {kind.__name__}. {AGAIN}"
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
            f" {FORMAT}. {AGAIN}"
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


def read_answers(saved: Saved) -> Answers:
    """What a network said to each image. Raises ArtifactError where the file holds none."""
    found = saved.need("answers", dict)
    for name in ANSWERS:
        if not all(type(each) is int and abs(each) < 2**31 for each in saved.need(name, list, found)):
            raise ArtifactError(f"{saved.path}: answers.{name}: expected whole numbers. {AGAIN}")
    if len({len(found[name]) for name in ANSWERS}) != 1 or not found[ANSWERS[0]]:
        raise ArtifactError(f"{saved.path}: answers of different lengths, or none. {AGAIN}")
    return Answers.from_dict(found)


def read_durations(saved: Saved) -> list[float]:
    """Of single calls at the boundary compute, ms; empty where the file keeps none. Raises ArtifactError for
    what are not durations.
    """
    samples = saved.values.get("samples_ms")
    found = samples.get("compute") if isinstance(samples, Mapping) else None
    known = found if isinstance(found, list) else []
    if not all(type(each) in (int, float) and 0 < each < 1e9 for each in known):
        raise ArtifactError(f"{saved.path}: samples_ms: expected durations. {AGAIN}")
    return known
