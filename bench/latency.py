"""`distill bench latency`: how long one call takes, with percentiles, at a named timing boundary.

In:  an artifact and `LatencyOptions`; or any argument-free functions, for `measure` and `interleaved`.
Out: durations in nanoseconds, every one kept; a report as text or as one JSON object.
Elsewhere: what is called (bench.subject), what percentiles mean (bench.stats).
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from runtime import UsageError, env
from runtime.cli.settings import Flag
from runtime.images import open_images

from . import report, stats, subject

SETTLE = 2
"""Untimed calls at the start of each turn of `interleaved`: the previous artifact's threads and cache lines
go first."""


@dataclass(frozen=True)
class LatencyOptions(subject.RunOptions):
    """Measurement."""

    engine: Path
    """Artifact to measure: an .onnx file, or a .plan file with its .plan.json beside it."""
    batch: Annotated[int, Flag("N", aliases=("-b", "--batch-size"), common=True)] = 1
    """Images per call, 1 or more."""
    warmup: Annotated[int, Flag("N", common=True)] = 50
    """Untimed calls before the first timed one, 0 or more."""
    iterations: Annotated[int, Flag("N", common=True)] = 500
    """Timed calls, 1 or more."""
    duration: Annotated[float | None, Flag("SECONDS", common=True)] = None
    """Time to measure for, instead of --iterations; at least one call."""
    percentiles: Annotated[str, Flag("P,P,..")] = "50,90,95,99"
    """Percentiles to report, 0 to 100, with commas between."""
    boundary: Annotated[Literal["compute", "end-to-end", "both"], Flag(common=True)] = "both"
    """Part that is timed: compute, a preprocessed batch in memory to logits; end-to-end, encoded images to
    the top-5 classes."""
    data: Annotated[str | None, Flag("DATA", common=True)] = None
    """Real images to feed (DIR, npz:FILE, digits); without it synthetic ones are made."""
    split: Literal["train", "val"] = "val"
    """Part of --data to read."""
    img_size: Annotated[str | None, Flag("PIXELS", common=True)] = None
    """Side of the input, or HEIGHTxWIDTH, for a file that takes any image size."""
    seed: int = 0
    """Seed for synthetic input and for choosing images."""
    results_file: Annotated[Path | None, Flag("FILE", common=True)] = None
    """File to write the report to, as JSON with every single duration."""
    json: Annotated[bool, Flag(common=True)] = False
    """Print the result as one JSON object and nothing else."""
    overwrite: bool = False
    """Replace an existing --results-file."""

    def __post_init__(self) -> None:
        if self.batch < 1 or self.iterations < 1 or self.warmup < 0:
            raise UsageError(
                f"batch {self.batch}, iterations {self.iterations}, warmup {self.warmup}: "
                "expected batch and iterations of 1 or more, warmup of 0 or more"
            )
        if self.duration is not None and not 0 < self.duration < float("inf"):
            raise UsageError(f"duration {self.duration}: expected seconds above 0")
        stats.parse_percentiles(self.percentiles)
        self.require_read([self.engine])
        if self.img_size is not None:
            subject.parse_size(self.img_size)

    @property
    def boundaries(self) -> tuple[str, ...]:
        """The boundaries asked for, by their names in the report."""
        return subject.BOUNDARIES if self.boundary == "both" else (self.boundary.replace("-", "_"),)


def measure(
    call: Callable[[], Any], *, warmup: int = 50, iterations: int = 500, duration: float | None = None
) -> np.ndarray:
    """Durations (n,) int64 in nanoseconds of single calls, one after the other, in the order they happened.

    n is `iterations`, or what fits into `duration` seconds (at least 1). The garbage collector is off.
    """
    clock = time.perf_counter_ns
    samples: list[int] = []
    with collector_off():
        for _ in range(warmup):
            call()
        end = None if duration is None else clock() + round(duration * stats.NS_PER_S)
        while (len(samples) < iterations) if end is None else (not samples or clock() < end):
            start = clock()
            call()
            samples.append(clock() - start)
    return np.array(samples, dtype=np.int64)


def interleaved(
    calls: Mapping[str, Callable[[], Any]], *, iterations: int = 200, per_turn: int = 10, warmup: int = 20
) -> dict[str, np.ndarray]:
    """`iterations` durations of every call, {name: (iterations,) int64 ns}, taken by turns in this one
    process.

    Each round gives every call a turn of `per_turn` timed iterations, and begins with the next one in the
    list. A clock that drifts or a busy neighbour then hits all of them alike, so that a ratio of medians
    compares artifacts, not moments.
    """
    names = list(calls)
    turns: dict[str, list[np.ndarray]] = {name: [] for name in names}
    with collector_off():
        for call in calls.values():
            measure(call, warmup=warmup, iterations=1)
        for number, first in enumerate(range(0, iterations, per_turn)):
            here = number % len(names)
            for name in names[here:] + names[:here]:
                turns[name].append(
                    measure(calls[name], warmup=SETTLE, iterations=min(per_turn, iterations - first))
                )
    return {name: np.concatenate(parts) for name, parts in turns.items()}


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    """Collect once, then keep the garbage collector off; nothing happens inside another `collector_off`."""
    was_on = gc.isenabled()
    if was_on:
        gc.collect()
        gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def run(options: LatencyOptions) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The report (JSON values; None for a boundary that was not measured) and the durations per
    boundary, ns.
    """
    images = open_images(options.data, options.split) if options.data else None
    size = subject.parse_size(options.img_size) if options.img_size else None
    percents = stats.parse_percentiles(options.percentiles)
    with subject.open_artifact(options.engine, options) as predictor:
        calls = subject.make_calls(predictor, options.batch, size=size, images=images, seed=options.seed)
        samples = {
            name: measure(
                calls.functions[name],
                warmup=options.warmup,
                iterations=options.iterations,
                duration=options.duration,
            )
            for name in options.boundaries
            if name in calls.functions
        }
        result: dict[str, Any] = {
            "name": subject.label(predictor),
            **subject.describe(predictor, options),
            "batch": options.batch,
            "warmup": options.warmup,
            "seed": options.seed,
        }
    for name in subject.BOUNDARIES:
        result[name] = None
        if name in samples:
            result[name] = {
                "input": calls.inputs[name],
                **stats.summary(samples[name], options.batch, percents),
            }
    result["not_measured"] = {
        name: calls.not_measured.get(name, "not asked for, see --boundary")
        for name in subject.BOUNDARIES
        if name not in samples
    }
    return result | {"fingerprint": env.fingerprint()}, samples


def to_rich(result: dict[str, Any], percentiles: str) -> Any:
    """The report for a person: one row per boundary, conditions below."""
    keys = [
        (f"p{percent:g}", stats.percentile_key(percent)) for percent in stats.parse_percentiles(percentiles)
    ]
    keys += [("mean", "latency_mean_ms"), ("max", "latency_max_ms")]
    table = report.table(
        f"{result['name']}  batch {result['batch']}  latency in ms",
        left=["boundary"],
        right=[*(heading for heading, _ in keys), "images/s", "n"],
    )
    for name in subject.BOUNDARIES:
        if result[name]:
            table.add_row(
                name.replace("_", "-"),
                *(report.significant(result[name][key]) for _, key in keys),
                report.rate(result[name]["throughput_images_per_s"]),
                str(result[name]["n"]),
            )
    return report.with_notes([table], _conditions(result))


def _conditions(result: dict[str, Any]) -> list[str]:
    lines = [f"{result['file']}: {subject.where(result)}; warm-up {result['warmup']}"]
    for name in subject.BOUNDARIES:
        if result[name]:
            lines.append(f"{name.replace('_', '-')}: {result[name]['input']}")
        elif "see --boundary" not in result["not_measured"][name]:
            lines.append(f"{name.replace('_', '-')}: not measured: {result['not_measured'][name]}")
    if result["unknown"]:
        lines.append(f"the file carries no {' and no '.join(result['unknown'])}")
    return [*lines, report.machine(result["fingerprint"])]
