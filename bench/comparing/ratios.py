"""How many times as long one artifact takes as another, with an interval, from calls that alternated.

In:  durations by block, (blocks, calls) each: in one block all artifacts had their turns, close together.
Out: a `Ratio` of medians, of 99th percentiles or of throughputs; `verdict`, what it allows to say.
Elsewhere: taking the durations (bench.comparing.race), differences in accuracy (bench.comparing.paired).

Neighboring calls are alike: a busy neighbor or a falling clock lasts for many of them. So whole blocks are
drawn with replacement, the same ones for both artifacts, and what is common to a block is divided out of it
first; a drift of the machine then neither widens the interval nor moves the ratio. The interval is the ratio
times exp(+-t s), s the standard deviation of the log ratio over the resamples (Efron and Tibshirani, An
Introduction to the Bootstrap, 1993, chapters 6 and 12).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

LEVEL = 0.95
LEAST_BLOCKS = 20
"""Blocks below which no interval is given: the spread of fewer says too little."""
RESAMPLES = 1000
RARE_CALLS = 20
"""Calls above its 99th percentile that an artifact needs before that percentile gets an interval."""

Verdict = Literal["faster", "slower", "cannot tell"]


@dataclass(frozen=True)
class Ratio:
    """Of two artifacts, by the same measure: this one over the reference, with its interval."""

    value: float
    low: float
    high: float

    @property
    def precision(self) -> float:
        """Half the interval's width as a share of the ratio: 0.02 is +-2 %."""
        return math.sqrt(self.high / self.low) - 1

    def is_within(self, other: Ratio) -> bool:
        """Does the interval reach into the values from 1 / other's ratio to other's ratio?"""
        margin = max(other.value, 1 / other.value)
        return self.low <= margin and self.high >= 1 / margin


SAME = Ratio(1.0, 1.0, 1.0)
"""The noise floor where none was measured: every interval that leaves out 1 counts."""


def verdict(ratio: Ratio, floor: Ratio = SAME) -> Verdict:
    """Of a ratio of durations: whether it is faster or slower than the reference, or whether nothing can be
    said.

    floor: the ratio of the reference against itself, opened a second time in the same measurement. A
    difference that the interval does not set apart from it says nothing about the artifacts.
    """
    if ratio.is_within(floor):
        return "cannot tell"
    return "faster" if ratio.value < 1 else "slower"


def of_medians(this: np.ndarray, reference: np.ndarray, seed: int = 0) -> Ratio | None:
    """Median duration of this one over the reference's, each (blocks, calls); None of too few blocks."""
    return _bootstrap(*_without_drift(this, reference), _medians, seed)


def of_p99(this: np.ndarray, reference: np.ndarray, seed: int = 0) -> Ratio | None:
    """The same of the 99th percentiles; None as well where too few calls lie above them."""
    if min(this.size, reference.size) < 100 * RARE_CALLS:
        return None
    return _bootstrap(*_without_drift(this, reference), _p99s, seed)


def of_throughputs(this: np.ndarray, reference: np.ndarray, seed: int = 0) -> Ratio | None:
    """Images per second of this one over the reference's, at the same batch; None of too few blocks."""
    calls = reference.shape[1] / this.shape[1]
    slowness = _bootstrap(this * calls, reference, _totals, seed)
    return slowness and Ratio(1 / slowness.value, 1 / slowness.high, 1 / slowness.low)


def _without_drift(this: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each block divided by the geometric mean of the two medians in it."""
    level = np.sqrt(np.median(this, axis=1) * np.median(reference, axis=1))[:, None]
    return this / level, reference / level


def _bootstrap(
    this: np.ndarray,
    reference: np.ndarray,
    measure: Callable[[np.ndarray, np.ndarray], np.ndarray],
    seed: int,
) -> Ratio | None:
    """measure: durations (blocks, calls) and how often each block counts, (resamples, blocks) ->
    (resamples,). The blocks are drawn alike from both.
    """
    blocks = len(this)
    if blocks < LEAST_BLOCKS:
        return None
    drawn = np.random.default_rng(seed).multinomial(blocks, np.full(blocks, 1 / blocks), RESAMPLES)
    once = np.ones((1, blocks), drawn.dtype)
    logs = np.concatenate(
        [np.log(measure(this, some) / measure(reference, some)) for some in np.array_split(drawn, 10)]
    )
    value = float(measure(this, once)[0] / measure(reference, once)[0])
    error = float(np.std(logs)) * math.sqrt(blocks / (blocks - 1))
    reach = math.exp(t_quantile(blocks - 1) * error)
    return Ratio(value, value / reach, value * reach)


def _medians(durations: np.ndarray, counts: np.ndarray) -> np.ndarray:
    lower, upper = _ranked(durations, counts, (durations.size - 1) // 2, durations.size // 2)
    medians: np.ndarray = (lower + upper) / 2
    return medians


def _p99s(durations: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Of the calls, the first that 99 % of the others do not exceed."""
    return _ranked(durations, counts, math.ceil(0.99 * (durations.size - 1)))[0]


def _totals(durations: np.ndarray, counts: np.ndarray) -> np.ndarray:
    totals: np.ndarray = counts @ durations.sum(axis=1)
    return totals


def _ranked(durations: np.ndarray, counts: np.ndarray, *ranks: int) -> list[np.ndarray]:
    """For each rank, 0 is the least, the duration of that rank in each resample, (resamples,): all are
    sorted once, and a resample only counts some of them more often than others.
    """
    order = np.argsort(durations, axis=None)
    below = np.cumsum(counts.astype(np.int32)[:, order // durations.shape[1]], axis=1, dtype=np.int32)
    least = durations.ravel()[order]
    return [least[(below <= rank).sum(axis=1)] for rank in ranks]


def t_quantile(freedom: int, level: float = LEVEL) -> float:
    """Two-sided quantile of Student's t (Abramowitz and Stegun, 26.7.5): within 0.001 from 19 degrees of
    freedom on.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
