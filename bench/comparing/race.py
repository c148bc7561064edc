"""Artifacts against one another: their calls alternate in blocks until the ratios are known well enough.

In:  contestants, each of which can take a turn of calls: in this process, or in one of its own.
Out: a `Comparison`: durations by block, summaries, ratios with intervals, verdicts; `to_dict` is the JSON
result.
Elsewhere: intervals (bench.comparing.ratios), processes (bench.comparing.isolated), the machine's state
(runtime.env.conditions), the flags (bench.commands.compare), the table for a person (bench.tables).

A block is two passes over the contestants, the second in reverse order, so that what drifts evenly hits all
alike; the pass begins with the next contestant each time. The reference is in it twice: what it differs from
itself is the noise floor of this machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from runtime.env.conditions import Warned

from .. import stats
from ..clock.latency import collector_off, measure
from ..subject import Description
from . import ratios
from .ratios import Ratio

TURN_SECONDS = 0.05
"""What a turn should take: long enough for caches to be warm again, short beside what a machine drifts in."""
MOST_PER_TURN = 20
SETTLE = 2
"""Untimed calls at the start of a turn; one where a call takes longer than a turn should."""
CHECK_EVERY = 10
"""Blocks between two looks at the intervals."""


class Contestant(Protocol):
    """An open artifact that can be timed."""

    @property
    def description(self) -> Description:
        """What runs, on what."""

    @property
    def fed(self) -> str:
        """What its calls are fed, in words."""

    def turn(self, calls: int, settle: int) -> np.ndarray:
        """Durations (calls,) int64 ns, after `settle` untimed calls."""


@dataclass(frozen=True)
class Here:
    """A contestant in this process."""

    description: Description
    fed: str
    call: Callable[[], Any]

    def turn(self, calls: int, settle: int) -> np.ndarray:
        """Durations (calls,) int64 ns, after `settle` untimed calls."""
        return measure(self.call, warmup=settle, iterations=calls)


@dataclass(frozen=True)
class Effort:
    """When to stop: at this precision of every ratio of medians, or after these seconds."""

    precision: float
    """Half the interval as a share of the ratio: 0.02."""
    seconds: float
    warmup: int
    """Untimed calls of each contestant before the first block."""


@dataclass(frozen=True, eq=False)
class Against:
    """One artifact beside the reference."""

    median: Ratio | None
    """Of durations; below 1 this one is faster. None where there were too few blocks."""
    p99: Ratio | None
    throughput: Ratio | None
    """Above 1 this one is faster."""
    verdict: ratios.Verdict

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "median_ratio": _plain(self.median),
            "p99_ratio": _plain(self.p99),
            "throughput_ratio": _plain(self.throughput),
            "verdict": self.verdict,
        }


@dataclass(frozen=True, eq=False)
class Comparison:
    """What was measured, the reference first."""

    contestants: list[Description]
    fed: list[str]
    samples: list[np.ndarray]
    """For each contestant (blocks, calls) int64 ns."""
    floor_samples: np.ndarray
    """The same of the reference's second copy."""
    batch: int
    boundary: str
    effort: Effort
    seconds: float
    """Wall-clock time of the blocks."""
    warned: list[Warned]
    fingerprint: dict[str, Any]

    @property
    def blocks(self) -> int:
        """How many were timed."""
        return len(self.floor_samples)

    @property
    def floor(self) -> Ratio | None:
        """Of the reference against itself, by medians."""
        return ratios.of_medians(self.floor_samples, self.samples[0])

    @property
    def is_precise(self) -> bool:
        """Did every ratio of medians reach the precision that was asked for?"""
        found = [ratios.of_medians(samples, self.samples[0]) for samples in self.samples[1:]]
        return all(ratio is not None and ratio.precision <= self.effort.precision for ratio in found)

    def against_reference(self) -> list[Against]:
        """For each contestant but the reference."""
        return [against(samples, self.samples[0], self.floor) for samples in self.samples[1:]]

    def summaries(self) -> list[stats.Summary]:
        """Percentiles and throughput of each contestant."""
        return [stats.summarize(samples.ravel(), self.batch, (50, 90, 99)) for samples in self.samples]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; the first artifact is the reference and has no ratios."""
        compared: list[Against | None] = [None, *self.against_reference()]
        return {
            "artifacts": [
                {
                    **description.to_dict(),
                    "input": fed,
                    **summary.to_dict(),
                    "against_reference": one and one.to_dict(),
                }
                for description, fed, summary, one in zip(
                    self.contestants, self.fed, self.summaries(), compared, strict=True
                )
            ],
            "noise_floor": _plain(self.floor),
            "level": ratios.LEVEL,
            "boundary": self.boundary,
            "batch": self.batch,
            "blocks": self.blocks,
            "calls_per_block": self.samples[0].shape[1],
            "seconds": self.seconds,
            "precision_asked": self.effort.precision,
            "precision_reached": self.is_precise,
            "warnings": [each.to_dict() for each in self.warned],
            "fingerprint": self.fingerprint,
        }

    def samples_ms(self) -> list[list[list[float]]]:
        """For each contestant, by block, every duration in ms; last the reference's second copy."""
        return [(each / stats.NS_PER_MS).tolist() for each in [*self.samples, self.floor_samples]]


def against(samples: np.ndarray, reference: np.ndarray, floor: Ratio | None) -> Against:
    """Ratios of one contestant's durations to the reference's, (blocks, calls) each, and the verdict."""
    median = ratios.of_medians(samples, reference)
    return Against(
        median,
        ratios.of_p99(samples, reference),
        ratios.of_throughputs(samples, reference),
        ratios.verdict(median, floor or ratios.SAME) if median else "cannot tell",
    )


def play(
    contestants: Sequence[Contestant],
    effort: Effort,
    clock: Callable[[], float] = time.perf_counter,
) -> list[np.ndarray]:
    """Durations (blocks, calls) int64 ns of each contestant; the last is the reference's second copy.

    Stops when every ratio to the first one is as precise as asked for, or when the time is up, but never
    before `ratios.LEAST_BLOCKS`, except where ten times the time has passed by then.
    """
    taken: list[list[np.ndarray]] = [[] for _ in contestants]
    with collector_off():
        turns = _turns(contestants, effort.warmup)
        began = clock()
        while True:
            _block(contestants, turns, taken)
            passed, blocks = clock() - began, len(taken[0])
            precision = _precision(taken) if _is_check(blocks) else None
            if precision is not None and precision <= effort.precision:
                break
            enough = blocks >= ratios.LEAST_BLOCKS or passed >= 10 * effort.seconds
            if passed >= effort.seconds and enough:
                break
    return [np.stack(each) for each in taken]


def _turns(contestants: Sequence[Contestant], warmup: int) -> list[tuple[int, int]]:
    """(timed calls, untimed calls before them) of a turn of each, from how long its calls took at first."""
    turns = []
    for contestant in contestants:
        seconds = float(np.median(contestant.turn(3, warmup))) / stats.NS_PER_S
        calls = min(max(round(TURN_SECONDS / max(seconds, 1e-9)), 1), MOST_PER_TURN)
        turns.append((calls, SETTLE if seconds < TURN_SECONDS else 1))
    turns[-1] = turns[0]  # the reference's copy is treated as the reference is
    return turns


def _block(
    contestants: Sequence[Contestant], turns: list[tuple[int, int]], taken: list[list[np.ndarray]]
) -> None:
    """One pass over the contestants and one back; its durations are appended to `taken`."""
    first = len(taken[0]) % len(contestants)
    order = [*range(first, len(contestants)), *range(first)]
    there = {index: contestants[index].turn(*turns[index]) for index in order}
    back = {index: contestants[index].turn(*turns[index]) for index in reversed(order)}
    for index, each in enumerate(taken):
        each.append(np.concatenate([there[index], back[index]]))


def _is_check(blocks: int) -> bool:
    return blocks >= ratios.LEAST_BLOCKS and blocks % CHECK_EVERY == 0


def _precision(taken: list[list[np.ndarray]]) -> float:
    """The widest of the ratios of medians to the reference, its own copy included."""
    reference = np.stack(taken[0])
    found = [ratios.of_medians(np.stack(each), reference) for each in taken[1:]]
    return max(ratio.precision for ratio in found if ratio)


def _plain(ratio: Ratio | None) -> dict[str, float] | None:
    return asdict(ratio) if ratio else None
