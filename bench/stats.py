"""From samples to the numbers that are printed: percentiles, a summary, throughput.

In:  durations of single calls, nanoseconds (int64), in the order they were taken. Nothing is clipped or
thrown away.
Out: milliseconds, images per second.
Elsewhere: taking the samples (bench.clock.latency).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from runtime.errors import UsageError
from runtime.intervals import median_interval

NS_PER_MS = 1e6
NS_PER_S = 1e9
BLOCKS = 20


def parse_percentiles(text: str) -> tuple[float, ...]:
    """'50,90,99.9' -> (50.0, 90.0, 99.9). Raises UsageError for anything outside 0 to 100 or not a number."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = (math.nan,)
    if not all(0 <= value <= 100 for value in values):  # also catches nan
        raise UsageError(
            f"percentiles {text!r}: expected numbers from 0 to 100 with commas between, such as 50,90,99"
        )
    return values


def percentile(samples: Sequence[float] | np.ndarray, percent: float) -> float:
    """The value that `percent` % of the samples do not exceed, by trtexec's rule, in the samples' unit.

    Sorted ascending, the sample at index max(n - 1 - int((1 - percent/100) * n), 0): always a duration that
    happened, never one interpolated. The median (50) is the mean of the two middle ones when n is even. The
    fraction is exact: in floating point (1 - 0.9) * 100 is below 10, and the 90th percentile of 100 would be
    the 91st. Raises ValueError without samples.
    """
    ordered = np.sort(np.asarray(samples))
    n = len(ordered)
    if n == 0:
        raise ValueError("a percentile of no samples")
    if percent == 50:
        return float((ordered[(n - 1) // 2] + ordered[n // 2]) / 2)
    above = int((1 - Fraction(str(percent)) / 100) * n)
    return float(ordered[max(n - 1 - above, 0)])


def interval_of_median(samples_ns: np.ndarray) -> tuple[float, float] | tuple[None, None]:
    """95 % interval in ms of the median of durations (n,) ns, from the medians of 20 blocks of them in their
    order: neighboring calls are alike, medians of blocks are less so. None of fewer than six.
    """
    blocks = [block for block in np.array_split(samples_ns, BLOCKS) if len(block)]
    return median_interval([float(np.median(block)) / NS_PER_MS for block in blocks])


def throughput(images: int, total_ns: float) -> float:
    """All images over all seconds spent in the calls, images/s: not a mean of rates, which would favor the
    fast calls.
    """
    return images / (total_ns / NS_PER_S)


def percentile_key(percent: float) -> str:
    """The JSON key of a percentile: 99 -> latency_p99_ms, 99.9 -> latency_p99.9_ms."""
    return f"latency_p{percent:g}_ms"


@dataclass(frozen=True)
class Summary:
    """What is reported of one boundary: n calls, their percentiles, mean, spread and extremes, and the
    throughput.
    """

    n: int
    percentiles_ms: dict[float, float]
    """Percent -> ms."""
    mean_ms: float
    std_ms: float
    min_ms: float
    max_ms: float
    throughput_images_per_s: float

    def to_dict(self) -> dict[str, int | float]:
        """Plain JSON values, their unit in the key."""
        return {
            "n": self.n,
            **{percentile_key(percent): value for percent, value in self.percentiles_ms.items()},
            "latency_mean_ms": self.mean_ms,
            "latency_std_ms": self.std_ms,
            "latency_min_ms": self.min_ms,
            "latency_max_ms": self.max_ms,
            "throughput_images_per_s": self.throughput_images_per_s,
        }


def summarize(samples_ns: np.ndarray, batch: int, percents: Sequence[float]) -> Summary:
    """The summary of the durations (n,) in ns of calls on `batch` images each."""
    in_ms = np.asarray(samples_ns) / NS_PER_MS
    return Summary(
        n=len(in_ms),
        percentiles_ms={percent: percentile(in_ms, percent) for percent in percents},
        mean_ms=float(in_ms.mean()),
        std_ms=float(in_ms.std()),
        min_ms=float(in_ms.min()),
        max_ms=float(in_ms.max()),
        throughput_images_per_s=throughput(batch * len(in_ms), float(np.sum(samples_ns))),
    )
