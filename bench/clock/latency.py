"""The clock: how long one call takes, at a named timing boundary.

In:  argument-free functions, such as those of bench.clock.calls.
Out: durations in nanoseconds, every one kept; a `LatencyResult`, whose `to_dict` is the JSON result.
Elsewhere: what is called (bench.clock.calls), what percentiles mean (bench.stats), the flags
(bench.commands.latency), the table for a person (bench.tables).
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from runtime.env.conditions import Warned

from .. import stats
from ..subject import Description
from .calls import BOUNDARIES

SETTLE = 2
"""Untimed calls at the start of each turn of `interleaved`: the previous artifact's threads and cache lines
go first."""


@dataclass(frozen=True, eq=False)
class Timing:
    """What was measured at one boundary."""

    input: str
    """What the calls were fed, in words."""
    samples: np.ndarray
    """(n,) int64 ns, in the order they were taken."""
    summary: stats.Summary


@dataclass(frozen=True, eq=False)
class LatencyResult:
    """The timings of one artifact, and the conditions they were taken under."""

    subject: Description
    batch: int
    warmup: int
    seed: int
    timings: dict[str, Timing]
    """Boundary -> timing, for those that were measured."""
    not_measured: dict[str, str]
    """Boundary -> why it was not."""
    warned: list[Warned]
    """Reasons not to quote these times."""
    fingerprint: dict[str, Any]
    """Of the machine, as runtime.env gives it."""
    more: dict[str, Any] = field(default_factory=dict)
    """What else was measured, plain JSON values: memory, energy, cold_start, concurrent, layers."""
    notes: list[str] = field(default_factory=list)
    """The same in words, a line each."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; None for a boundary that was not measured."""
        boundaries = {
            name: {"input": timing.input, **timing.summary.to_dict()} for name, timing in self.timings.items()
        }
        return {
            **self.subject.to_dict(),
            "batch": self.batch,
            "warmup": self.warmup,
            "seed": self.seed,
            **{name: boundaries.get(name) for name in BOUNDARIES},
            "not_measured": self.not_measured,
            **self.more,
            "warnings": [each.to_dict() for each in self.warned],
            "fingerprint": self.fingerprint,
        }

    def samples_ms(self) -> dict[str, list[float]]:
        """Boundary -> every single duration, ms."""
        return {name: (timing.samples / stats.NS_PER_MS).tolist() for name, timing in self.timings.items()}


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
    """`iterations` durations of every call, {name: (iterations,) int64 ns}, the calls alternating in this one
    process.

    Each round gives every call a turn of `per_turn` timed iterations, and begins with the next one in the
    list. A clock that drifts or a busy neighbor then hits all of them alike, so that a ratio of medians
    compares artifacts, not moments.
    """
    names = list(calls)
    rounds: dict[str, list[np.ndarray]] = {name: [] for name in names}
    with collector_off():
        for call in calls.values():
            measure(call, warmup=warmup, iterations=1)
        for number, first in enumerate(range(0, iterations, per_turn)):
            here = number % len(names)
            for name in names[here:] + names[:here]:
                rounds[name].append(
                    measure(calls[name], warmup=SETTLE, iterations=min(per_turn, iterations - first))
                )
    return {name: np.concatenate(parts) for name, parts in rounds.items()}


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
