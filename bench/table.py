"""Teacher, control and students in one table of accuracy against latency.

In:  what was measured of each artifact: accuracy, and durations of calls that alternated with the others'.
Out: a `Table` of `Row`s and `Conditions`; the columns of CSV and JSON have the names of the fields.
Elsewhere: accuracy (bench.accuracy), the clock (bench.clock.latency), the order of measuring and the flags
(bench.commands.table), how it is shown and written (bench.tables).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from runtime import Predictor
from runtime.env.conditions import Warned

from . import stats
from .accuracy import AccuracyResult, difference
from .subject import Description, label


@dataclass(frozen=True)
class Row:
    """One artifact. The field names are the CSV columns and the JSON keys; None is not measured or
    not known.
    """

    artifact: str
    """Role and precision."""
    file: str
    role: str | None = None
    precision: str | None = None
    model: str | None = None
    top1_percent: float | None = None
    delta_teacher_points: float | None = None
    delta_control_points: float | None = None
    parameters: int | None = None
    macs: int | None = None
    file_bytes: int | None = None
    latency_p50_ms: float | None = None
    """Boundary compute, like p99 and images/s."""
    latency_p99_ms: float | None = None
    throughput_images_per_s: float | None = None
    end_to_end_p50_ms: float | None = None
    speedup: float | None = None
    """Teacher's median / this median, boundary compute; from interleaved calls, except where rows were put
    together from saved results."""
    top5_percent: float | None = None
    loss_nats: float | None = None
    images: int | None = None
    skipped: int | None = None
    ran_on: str = ""
    """Engine, provider, device, threads, as the engine reports them."""
    balanced_percent: float | None = None
    """Balanced accuracy: the mean over the classes that have images."""
    top1_low_percent: float | None = None
    """Wilson's 95 % interval of top-1."""
    top1_high_percent: float | None = None
    delta_teacher_low_points: float | None = None
    """Newcombe's 95 % interval for pairs, as that of the control."""
    delta_teacher_high_points: float | None = None
    delta_control_low_points: float | None = None
    delta_control_high_points: float | None = None
    sha256: str | None = None
    batch: int | None = None
    """Images per timed call."""
    latency_low_ms: float | None = None
    """95 % interval of the median."""
    latency_high_ms: float | None = None
    group: int | None = None
    """Which of several machines measured it, from 1; None in a table of one."""


@dataclass(frozen=True)
class Conditions:
    """What the rows were measured under. The names are JSON keys; an engine's value that differs between the
    artifacts says so in words.
    """

    data: str
    split: str
    images: int
    skipped: int
    batch: int
    iterations: int
    warmup: int
    seed: int
    engine: str
    backend: str
    provider: str
    device: str
    threads: int | str | None
    hint: str | None
    contexts: int | str | None
    cuda_graph: bool | str | None
    boundary: str
    input: dict[str, str]
    """Boundary -> what the calls were fed, in words."""
    warnings: list[Warned]
    """Reasons not to quote the times."""
    fingerprint: dict[str, Any]
    """Of the machine, as runtime.env gives it."""


ENGINE_KEYS = ("engine", "backend", "provider", "device", "threads", "hint", "contexts", "cuda_graph")
"""The fields of a `Description` that say where an artifact ran."""


@dataclass(frozen=True)
class Origins:
    """The same of rows that were read from files."""

    lines: list[str]
    """Machines and commands, for a person."""
    warnings: list[Warned]


@dataclass(frozen=True)
class Table:
    """The rows, and the conditions they were measured under."""

    rows: list[Row]
    conditions: Conditions | Origins


def ran_under(subjects: Sequence[Description]) -> dict[str, Any]:
    """The engine's fields of `Conditions`: the value that all artifacts have; where they differ, the rows
    say which has which.
    """
    found = {}
    for key in ENGINE_KEYS:
        values = [getattr(subject, key) for subject in subjects]
        same = all(value == values[0] for value in values)
        found[key] = values[0] if same else "differs, see ran_on of the rows"
    return found


def with_differences(rows: Sequence[Row], results: Sequence[AccuracyResult] = ()) -> list[Row]:
    """Differences to the teacher (the first row) and to the control (the second, if it is one); None to
    oneself. results: of each row, for the intervals of the differences.
    """
    has_control = len(rows) > 1 and rows[1].role == "control"
    found = []
    for place, row in enumerate(rows):
        row = replace(row, speedup=speedup(rows[0], row))
        for name, other in (("teacher", 0), ("control", 1))[: 1 + has_control]:
            if place > other:
                row = replace(row, **_difference(name, rows, place, other, results))
        found.append(row)
    return found


def _difference(
    name: str, rows: Sequence[Row], this: int, other: int, results: Sequence[AccuracyResult]
) -> dict[str, Any]:
    """The fields of `Row` that compare it with the teacher or the control."""
    found = {f"delta_{name}_points": points(rows[this], rows[other])}
    if results and np.array_equal(results[this].indices, results[other].indices):  # not with images left out
        *_, low, high = difference(results[this], results[other])
        found |= {f"delta_{name}_low_points": low, f"delta_{name}_high_points": high}
    return found


def speedup(reference: Row, row: Row) -> float | None:
    """The reference's median over the row's; None where one was not measured."""
    return (
        reference.latency_p50_ms / row.latency_p50_ms
        if reference.latency_p50_ms and row.latency_p50_ms
        else None
    )


def points(row: Row, other: Row) -> float | None:
    """Top-1 of the row minus the other's; None where one was not measured."""
    if row.top1_percent is None or other.top1_percent is None:
        return None
    return row.top1_percent - other.top1_percent


def make_row(
    role: str | None,
    predictor: Predictor,
    subject: Description,
    result: AccuracyResult,
    samples: Mapping[str, np.ndarray],
    batch: int,
) -> Row:
    """The row of one artifact, without its differences to others. role: None for what the file says; samples:
    boundary -> durations (n,), ns.
    """
    timing = stats.summarize(samples["compute"], batch, (50, 99))
    between = stats.interval_of_median(samples["compute"])
    role = role or subject.role or "student"
    return Row(
        artifact=label(predictor, role),
        file=subject.file,
        role=role,
        precision=subject.precision,
        model=subject.model,
        top1_percent=result.top1,
        delta_teacher_points=None,
        delta_control_points=None,
        parameters=subject.parameters,
        macs=subject.macs,
        file_bytes=subject.file_bytes,
        latency_p50_ms=timing.percentiles_ms[50],
        latency_p99_ms=timing.percentiles_ms[99],
        throughput_images_per_s=timing.throughput_images_per_s,
        end_to_end_p50_ms=stats.percentile(samples["end_to_end"] / stats.NS_PER_MS, 50),
        speedup=1.0,
        top5_percent=result.top5,
        loss_nats=result.loss,
        images=result.n,
        skipped=len(result.skipped),
        ran_on=subject.ran_on,
        balanced_percent=result.balanced,
        sha256=subject.sha256,
        batch=batch,
        latency_low_ms=between[0],
        latency_high_ms=between[1],
        top1_low_percent=result.top1_interval[0],
        top1_high_percent=result.top1_interval[1],
    )
