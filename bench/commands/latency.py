"""`distill bench latency`: how long one call takes, with percentiles, at each timing boundary.

In:  `Options`: an artifact, what to feed it and how often.
Out: the result on stdout, with --json as one JSON object; with --results-file also every single duration.
Elsewhere: the clock (bench.clock.latency), what is called (bench.clock.calls), the table for a person
(bench.tables).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from runtime import env
from runtime.cli import settings
from runtime.cli.settings import Flag
from runtime.cli.terminal import loading
from runtime.env import conditions
from runtime.images import open_images

from .. import report, stats, tables
from ..clock import calls, latency
from ..measuring import clients, energy, worker
from ..measuring.cold import ColdStart, cold_start
from ..measuring.layers import profile, require_profile
from ..measuring.setup import Setup
from ..results import saved
from ..subject import RunOptions, describe, open_artifact

SUMMARY = "measure percentiles and throughput of an artifact"
DESCRIPTION = """examples:
  {prog} student.onnx
  {prog} --engine student.onnx --data photos --boundary end-to-end --threads 4
  {prog} --engine student.int8.onnx --engine-backend openvino --hint throughput
  {prog} --engine student.plan --cuda-graph
  {prog} --engine student.onnx --batch 32 --duration 10 --json"""


@dataclass(frozen=True)
class Options(RunOptions):
    """Measurement."""

    engine: Annotated[Path, Flag("FILE", bare=True)]
    """Artifact to measure: an .onnx file, or a .plan file with its .plan.json beside it; the word
    --engine may be left out."""
    batch: Annotated[int, Flag("N", aliases=("-b", "--batch-size"), common=True, least=1)] = 1
    """Images per call, 1 or more."""
    warmup: Annotated[int, Flag("N", common=True, least=0)] = 50
    """Untimed calls before the first timed one, 0 or more."""
    iterations: Annotated[int, Flag("N", common=True, least=1)] = 500
    """Timed calls, 1 or more."""
    duration: Annotated[float | None, Flag("SECONDS", common=True, above=0)] = None
    """Time to measure for, instead of --iterations; at least one call."""
    percentiles: Annotated[str, Flag("P,P,..")] = "50,90,95,99"
    """Percentiles to report, 0 to 100, with commas between."""
    boundary: Annotated[Literal["compute", "end-to-end", "both"], Flag(common=True)] = "both"
    """Part that is timed: compute, a preprocessed batch in memory to logits; end-to-end, encoded images to
    the top-5 classes."""
    cold_start: Annotated[int, Flag("N", least=0, common=True)] = 0
    """Number of new processes to time from their start to the first answer, with their memory; 0: none."""
    concurrency: Annotated[int, Flag("N", least=1, most=1024, common=True)] = 1
    """Clients that call at once, each again as soon as it has its answer, measured after one alone."""
    layers: Annotated[bool, Flag(common=True)] = False
    """Tell where the time goes: by kind of layer and kernel size, from the profile of ONNX Runtime or
    OpenVINO, in calls of their own."""
    data: Annotated[str | None, Flag("DATA", common=True)] = None
    """Real images to feed (DIR, npz:FILE, digits); without it synthetic ones are made."""
    split: Literal["train", "val"] = "val"
    """Part of --data to read."""
    img_size: Annotated[str | None, Flag("PIXELS", common=True)] = None
    """Side of the input, or HEIGHTxWIDTH, for a file that takes any image size."""
    seed: int = 0
    """Seed for synthetic input and for choosing images."""
    results_file: Annotated[Path | None, Flag("FILE", aliases=("--save",), common=True)] = None
    """File to write the result to, as JSON with every single duration; bench table and gate read it."""
    json: Annotated[bool, Flag(common=True)] = False
    """Print the result as one JSON object and nothing else."""
    overwrite: bool = False
    """Replace an existing --results-file."""

    def __post_init__(self) -> None:
        settings.check(self)
        stats.parse_percentiles(self.percentiles)
        self.require_read([self.engine])
        if self.layers:
            require_profile(self.engine, self)
        if self.img_size is not None:
            calls.parse_size(self.img_size)

    @property
    def boundaries(self) -> tuple[str, ...]:
        """The boundaries asked for, by their names in the result."""
        return calls.BOUNDARIES if self.boundary == "both" else (self.boundary.replace("-", "_"),)


def run(options: Options) -> None:
    """Measure percentiles and throughput of an artifact, and print the result."""
    report.require_place(options.results_file, options.overwrite)
    result = measure(options)
    report.deliver(result, options.json, lambda: tables.latency(result), lambda: keep(options, result))


def do(options: Options) -> latency.LatencyResult:
    """Measure percentiles and throughput of an artifact."""
    report.require_place(options.results_file, options.overwrite)
    result = measure(options)
    keep(options, result)
    return result


def keep(options: Options, result: latency.LatencyResult) -> None:
    """Write --results-file, with every single duration."""
    if options.results_file:
        kept = result.to_dict() | {"samples_ms": result.samples_ms()}
        command = saved.command_line("bench latency", options)
        saved.write(options.results_file, "latency", command, kept)


def measure(options: Options) -> latency.LatencyResult:
    """The timings of the boundaries asked for. Raises what opening the artifact and its images raises."""
    with loading(f"looking for the images of {options.data}"):
        images = open_images(options.data, options.split) if options.data else None
    size = calls.parse_size(options.img_size) if options.img_size else None
    percents = stats.parse_percentiles(options.percentiles)
    resident = worker.memory_bytes()
    with open_artifact(options.engine, options) as predictor:
        made = calls.make_calls(
            predictor,
            options.batch,
            size=size,
            images=images,
            seed=options.seed,
            boundaries=options.boundaries,
        )
        before = conditions.now()
        with loading(f"timing {options.engine.name}", still=True):
            samples = _samples(options, made)
        subject = describe(predictor, options)
        warned = conditions.warnings(
            before,
            [taken for name, taken in samples.items() if name in calls.ALIKE],
            [subject.device],
        )
        memory = _memory(resident)
        with loading(f"energy of {options.engine.name}", still=True):
            counted = _energy(options, made, samples, predictor.device)
        crowd = _crowd(options, made, samples)
        groups = profile(predictor, options, made.batch) if options.layers and made.batch is not None else []
    cold = _cold(options)
    return latency.LatencyResult(
        subject,
        options.batch,
        options.warmup,
        options.seed,
        timings={
            name: latency.Timing(made.inputs[name], taken, stats.summarize(taken, options.batch, percents))
            for name, taken in samples.items()
        },
        not_measured={
            name: made.not_measured.get(name, "not asked for, see --boundary")
            for name in calls.BOUNDARIES
            if name not in samples
        },
        warned=warned,
        fingerprint=env.fingerprint(),
        more={
            "memory": memory,
            "energy": {
                name: counted[name].to_dict() if name in counted else None for name in calls.BOUNDARIES
            },
            "concurrent": crowd and crowd.to_dict(),
            "cold_start": cold and cold.to_dict(),
            "layers": [group.to_dict() for group in groups],
        },
        notes=[
            *(each.line for each in groups),
            *(f"{name.replace('_', '-')}: {each.line}" for name, each in counted.items() if each.line),
            *(each.line for each in (crowd, cold) if each),
        ],
    )


def _samples(options: Options, made: calls.Calls) -> dict[str, np.ndarray]:
    """The durations of each boundary asked for, one call after the other."""
    return {
        name: latency.measure(
            made.functions[name],
            warmup=options.warmup,
            iterations=options.iterations,
            duration=options.duration,
        )
        for name in options.boundaries
        if name in made.functions
    }


def _energy(
    options: Options, made: calls.Calls, samples: dict[str, np.ndarray], device: str
) -> dict[str, energy.Energy]:
    """Of each boundary, in calls of their own: whoever looks at the counters wakes up in between."""
    gpus = conditions.gpus_of([device])
    return {
        name: energy.measure(
            made.functions[name],
            energy.counters(gpus),
            options.batch,
            min(float(taken.sum()) / stats.NS_PER_S, energy.MOST_SECONDS),
        )
        for name, taken in samples.items()
    }


def _memory(before: int | None) -> dict[str, int | None]:
    """Of this process with the artifact open, bytes; before: what it took without."""
    now = worker.memory_bytes()
    return {
        "resident_bytes": now,
        "growth_bytes": now - before if now and before else None,
        "peak_bytes": worker.peak_bytes(),
        "gpu_bytes": env.gpu_memory().get(os.getpid()),
    }


def _crowd(options: Options, made: calls.Calls, samples: dict[str, np.ndarray]) -> clients.Concurrent | None:
    """Several clients at the first boundary that was measured, for about as long as one alone."""
    if options.concurrency == 1 or not samples:
        return None
    name, alone = next(iter(samples.items()))
    seconds = options.duration or float(alone.sum()) / stats.NS_PER_S
    with loading(f"{options.concurrency} clients at once", still=True):
        return clients.together(made.functions[name], options.concurrency, seconds, options.batch, alone)


def _cold(options: Options) -> ColdStart | None:
    if not options.cold_start:
        return None
    setup = Setup(
        options.engine, options.of_engine, options.batch, "compute", options.img_size, seed=options.seed
    )
    with loading(f"starting {options.engine.name} anew"):
        return cold_start(setup, options.cold_start)
