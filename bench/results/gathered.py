"""Saved results as one table: rows that were measured on different days, and whether they may stand together.

In:  results that `bench latency`, `bench accuracy` and `bench table` saved.
Out: a `Table`; UsageError where machines, engines, their settings, images or batch differ and nobody allowed
that.
Elsewhere: the files (bench.results.saved), rows (bench.table), how it is shown (bench.tables).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from runtime import ArtifactError, UsageError, env
from runtime.env.conditions import Warned

from .. import stats
from ..subject import ran_on
from ..table import Origins, Row, Table, points, speedup
from .saved import AGAIN, Saved, read_durations

MACHINE = ("cpu", "cores", "system", "gpu")
WAY = ("with", "hint")
"""What is said of the engine's settings: "with CPUExecutionProvider, device cpu, 4 threads"."""
OF_LATENCY = ("latency_p50_ms", "latency_p99_ms", "throughput_images_per_s")
OF_ACCURACY = (
    "top1_percent",
    "top1_low_percent",
    "top1_high_percent",
    "top5_percent",
    "loss_nats",
    "balanced_percent",
)
OF_FILE = ("file", "role", "precision", "model", "parameters", "macs", "file_bytes", "sha256")
KINDS = ("latency", "accuracy", "table")
KINDS_OF = {
    name: next(kind for kind in (float, int, str) if kind.__name__ in str(hint))
    for name, hint in Row.__annotations__.items()
}
"""Field of a row -> type of its value, where there is one."""


def gather(results: Sequence[Saved], mixed: bool) -> Table:
    """One table of all. mixed: allow rows that were not measured alike, and mark them.

    Raises UsageError for results that cannot stand in one table, ArtifactError for a damaged file.
    """
    found = [part for saved in results for part in _parts(saved)]
    groups = _groups(found)
    if len(groups) > 1 and not mixed:
        raise UsageError(
            f"{results[0].path} and the others were not measured alike: {_difference(groups)}. Measure them"
            " again together, or add --mixed to mark the rows"
        )
    _require_one("images", [str(each) for saved in results if (each := _images(saved))])
    _require_one("batch", [f"batch {part.row.batch}" for part in found if part.row.batch])
    rows = _rows(found, groups)
    marked = [replace(row, group=group + 1 if len(groups) > 1 else None) for (_, group), row in rows.items()]
    ordered = sorted(marked, key=lambda row: {"teacher": 0, "control": 1}.get(row.role or "", 2))
    warned = list(dict.fromkeys(each for part in found for each in part.warned))
    return Table(_compared(ordered), Origins(_origins(results, groups), warned))


Alike = tuple[tuple[str, str], ...]
"""What rows of one table have in common: (what, value)."""


@dataclass(frozen=True)
class _Part:
    """What one file says of one artifact."""

    row: Row
    alike: Alike
    """Machine and engine."""
    way: Alike
    """How the engine was set, where times were taken; accuracy does not depend on it."""
    warned: list[Warned]
    made: str

    @property
    def artifact(self) -> str:
        return self.row.sha256 or self.row.file

    def groups(self, known: Sequence[Alike]) -> list[int]:
        """The groups that it may be in: its own, or for an accuracy all of its machine and engine."""
        left_out = () if self.way else WAY
        wanted = self.alike + self.way
        return [
            place
            for place, group in enumerate(known)
            if tuple(pair for pair in group if pair[0] not in left_out) == wanted
        ]


def _groups(parts: Sequence[_Part]) -> list[Alike]:
    """What was measured alike, in the order of the files."""
    timed = [part.alike + part.way for part in parts if part.way]
    alone = [part.alike for part in parts if not part.groups(timed)]
    found = [part.alike + part.way for part in parts]
    return list(dict.fromkeys(each for each in found if each in timed or each in alone))


def _rows(parts: Sequence[_Part], groups: Sequence[Alike]) -> dict[tuple[str, int], Row]:
    """A row for each artifact and group, in the order of the files; what was measured last counts."""
    timed = {(part.artifact, part.groups(groups)[0]) for part in parts if part.way}
    places: list[tuple[_Part, list[tuple[str, int]]]] = []
    for part in parts:
        keys = [(part.artifact, group) for group in part.groups(groups)]
        places.append((part, [key for key in keys if key in timed] or keys[:1]))
    found: dict[tuple[str, int], Row] = {}
    for part, keys in sorted(places, key=lambda each: each[0].made):
        for key in keys:
            found[key] = _joined(found[key], part.row) if key in found else part.row
    return {key: found[key] for _, keys in places for key in keys}


def _parts(saved: Saved) -> list[_Part]:
    if saved.kind not in KINDS:
        raise UsageError(
            f"{saved.path}: a result of bench {saved.kind}. Expected one of bench {', '.join(KINDS)}"
        )
    about, warned = _about(saved), warnings_of(saved)
    if saved.kind == "table":
        rows = [(_row_of(saved, each), each) for each in saved.need("rows", list)]
    else:
        rows = [(_row(saved), saved.values)]
    return [
        _Part(
            row,
            _alike(saved, about, values),
            () if saved.kind == "accuracy" else _way(row, about),
            warned,
            saved.made,
        )
        for row, values in rows
    ]


def _about(saved: Saved) -> Mapping[str, Any]:
    """Where a result tells its conditions."""
    found: Mapping[str, Any] = saved.need("conditions", dict) if saved.kind == "table" else saved.values
    return found


def warnings_of(saved: Saved) -> list[Warned]:
    """Reasons not to quote the times of a result."""
    about = _about(saved)
    known = saved.need("warnings", list, about) if about.get("warnings") is not None else []
    return [
        Warned(str(each.get("kind")), str(each.get("text"))) for each in known if isinstance(each, Mapping)
    ]


def _way(row: Row, about: Mapping[str, Any]) -> Alike:
    """Provider, device, threads and whatever else the row tells behind its engine; the hint."""
    return (WAY[0], row.ran_on.partition(", ")[2]), (WAY[1], str(about.get("hint")))


def _images(saved: Saved) -> tuple[Any, ...] | None:
    """What accuracies were measured on: name, split, number."""
    if saved.kind == "latency":
        return None
    about = saved.need("conditions", dict) if saved.kind == "table" else saved.values
    return about.get("data"), about.get("split"), about.get("images" if saved.kind == "table" else "n")


def _require_one(what: str, found: Sequence[str]) -> None:
    """Raise UsageError where results are of different images or batches: no mark makes them comparable."""
    if len(different := list(dict.fromkeys(found))) > 1:
        raise UsageError(
            f"results of different {what}: {different[0]} and {different[1]}. Measure them alike, or make two"
            " tables"
        )


def _alike(saved: Saved, about: Mapping[str, Any], row: Mapping[str, Any]) -> Alike:
    machine = saved.need("fingerprint", dict, about)
    engine = row.get("engine") or str(row.get("ran_on")).split(",")[0]
    found = {name: machine.get(name) for name in MACHINE} | {"engine": engine}
    packages = machine.get("packages")
    if isinstance(packages, Mapping):
        found |= {name: packages[name] for name in env.ENGINE_PACKAGES if name in packages}
    return tuple((name, str(value)) for name, value in found.items())


def _difference(groups: Sequence[Alike]) -> str:
    """The first thing that differs, in words."""
    known = [dict(each) for each in groups]
    name = next(key for key in known[0] | known[1] if known[0].get(key) != known[1].get(key))
    return f"{name} {known[0].get(name)} against {known[1].get(name)}"


def _row(saved: Saved) -> Row:
    """Of `bench latency` or `bench accuracy`."""
    values = saved.values
    known = {name: values.get(name) for name in OF_FILE}
    known |= {"artifact": values.get("name"), "ran_on": _ran_on(saved)}
    if saved.kind == "accuracy":
        known |= {name: values.get(name) for name in OF_ACCURACY}
        return _checked(saved, known | {"images": values.get("n"), "skipped": values.get("skipped")})
    compute, whole = values.get("compute"), values.get("end_to_end")
    if isinstance(compute, Mapping):
        known |= {name: compute.get(name) for name in OF_LATENCY} | {"batch": values.get("batch")}
        low, high = stats.interval_of_median(np.array(read_durations(saved), float) * stats.NS_PER_MS)
        known |= {"latency_low_ms": low, "latency_high_ms": high}
    if isinstance(whole, Mapping):
        known |= {"end_to_end_p50_ms": whole.get("latency_p50_ms")}
    return _checked(saved, known)


def _ran_on(saved: Saved) -> str:
    """As a row of `bench table` tells it."""
    values = saved.values
    engine, provider, device = (
        saved.need(name, str) if values.get(name) is not None else ""
        for name in ("engine", "provider", "device")
    )
    threads, contexts = (
        saved.need(name, int) if values.get(name) is not None else None for name in ("threads", "contexts")
    )
    return ran_on(engine, provider, device, threads, contexts, values.get("cuda_graph") is True)


def _row_of(saved: Saved, values: Any) -> Row:
    """A row of `bench table`."""
    if not isinstance(values, Mapping):
        raise ArtifactError(f"{saved.path}: rows: expected objects. {AGAIN}")
    return _checked(saved, {name: value for name, value in values.items() if name in KINDS_OF})


def _checked(saved: Saved, values: Mapping[str, Any]) -> Row:
    """The row, every value of its field's type. Raises ArtifactError."""
    for name in ("artifact", "file"):
        saved.need(name, str, values)
    for name, value in values.items():
        if value is not None:
            saved.need(name, KINDS_OF[name], values)
    return Row(**values)


def _joined(one: Row, other: Row) -> Row:
    """What either of two rows about one file knows; the later result where both do."""
    known = {each.name: getattr(other, each.name) for each in fields(Row)}
    return replace(one, **{name: value for name, value in known.items() if value is not None})


def _compared(rows: Sequence[Row]) -> list[Row]:
    """Differences to teacher and control by accuracies, speed-ups where one machine measured both."""
    teacher = next((row for row in rows if row.role == "teacher"), None)
    control = next((row for row in rows if row.role == "control"), None)
    found = []
    for row in rows:
        if teacher:
            row = replace(row, speedup=speedup(teacher, row) if row.group == teacher.group else None)
            row = replace(row, delta_teacher_points=None if row.role == "teacher" else points(row, teacher))
        if control and row.role not in ("teacher", "control"):
            row = replace(row, delta_control_points=points(row, control))
        found.append(row)
    return found


def machines(results: Sequence[Saved]) -> list[str]:
    """Where results were measured, a line for each machine and engine."""
    return _machines(_groups([part for saved in results for part in _parts(saved)]))


def _machines(groups: Sequence[Alike]) -> list[str]:
    lines = []
    for place, group in enumerate(groups):
        known = ", ".join(f"{name} {value}" for name, value in group if value != "None")
        lines.append(f"[{place + 1}] measured on {known}" if len(groups) > 1 else f"measured on {known}")
    return lines


def _origins(results: Sequence[Saved], groups: Sequence[Alike]) -> list[str]:
    """What is said below the table: where each group was measured, and the commands."""
    lines = _machines(groups)
    if sum(saved.kind != "accuracy" for saved in results) > 1:
        lines.append(
            "times of different files were not measured in turn: distill bench compare tells whether a"
            " difference between them is one"
        )
    return [*lines, *(f"{saved.path.name}: {saved.made}, {saved.command}" for saved in results)]
