"""How long the int8 file takes beside the fp32 one, on this machine, so that export can say where int8 does
not pay.

In:  two artifacts of the same network, as paths or as file contents.
Out: `Speed`: int8 time / fp32 time with its interval, and reasons not to believe it; below 1 int8 is faster.
Elsewhere: latency as users are shown it, with percentiles (bench.clock.latency); two artifacts against each
other for as long as it takes (bench.comparing.race); against other quantizers (measurements/int8_speed.py).
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np

from runtime import Predictor, UsageError, env, files, load
from runtime.env import conditions
from runtime.intervals import median_interval
from runtime.records import Speed

ROUNDS = 30
SECONDS = 2.0
LEAST = 6
"""Rounds that are timed however long they take: fewer make no 95 % interval."""


def measure(
    fp32: bytes | str | Path,
    int8: bytes | str | Path,
    batch: int = 1,
    rounds: int = ROUNDS,
    *,
    threads: int | None = None,
    seconds: float = SECONDS,
) -> Speed:
    """Time of an int8 call over that of the fp32 call beside it, the median of the rounds, through
    `runtime.load` on the CPU: a batch in memory to logits.

    The two are called in turn, so that both see what else the machine does, on one batch of normal noise: how
    long an engine takes does not depend on the values. After `seconds` no further round begins, but at least
    six are timed. Raises UsageError when a file does not fix the size of its images, or for a batch or rounds
    below 1.
    """
    if batch < 1 or rounds < 1:
        raise UsageError(f"batch {batch}, rounds {rounds}: expected 1 or more of each")
    with files.scratch_folder() as folder:
        paths = [
            _as_file(artifact, folder / name) for artifact, name in ((fp32, "fp32.onnx"), (int8, "int8.onnx"))
        ]
        with load(paths[0], threads=threads) as one, load(paths[1], threads=threads) as other:
            before = conditions.now()
            times = _interleaved((one, other), _noise(one, batch), rounds, seconds)
            warned = conditions.warnings(before, [np.array(each) for each in times])
    ratios = [after / first for first, after in zip(*times, strict=True)]
    low, high = median_interval(ratios)
    return Speed(
        ratio=statistics.median(ratios),
        low=low,
        high=high,
        warnings=[each.text for each in warned],
        pairs=len(ratios),
        batch=batch,
        threads=threads or env.usable_cores(),
        engine="onnxruntime",
    )


def _interleaved(
    predictors: tuple[Predictor, Predictor], images: np.ndarray, rounds: int, seconds: float
) -> tuple[list[float], list[float]]:
    """Seconds of each call of each, after one call of warm-up; who begins changes from round to round."""
    for predictor in predictors:
        predictor.logits(images)
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while len(times[0]) < LEAST or (len(times[0]) < rounds and time.perf_counter() < end):
        for which in ((0, 1), (1, 0))[len(times[0]) % 2]:
            began = time.perf_counter()
            predictors[which].logits(images)
            times[which].append(time.perf_counter() - began)
    return times


def _noise(predictor: Predictor, batch: int) -> np.ndarray:
    sizes = [size for size in predictor.input_shape[1:] if size is not None]
    if len(sizes) < 3:
        raise UsageError(
            f"{predictor.path}: input {predictor.input_shape} leaves the image size open. Expected C, H, W"
            " fixed"
        )
    return np.random.default_rng(0).normal(size=(batch, *sizes)).astype(np.float32)


def _as_file(artifact: bytes | str | Path, path: Path) -> Path:
    if not isinstance(artifact, bytes):
        return Path(artifact)
    path.write_bytes(artifact)
    return path
