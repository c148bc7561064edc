"""The statistics of one tensor over all calibration images: exact extremes and counts, in constant memory.

In:  float32 values of any shape, as they come.
Out: a `Histogram`, from which every method finds its range (export.int8.ranges).
Elsewhere: running the network (export.int8.calibrate), keeping histograms (export.int8.cache).
"""

from __future__ import annotations

import math

import numpy as np

BINS = 8192
"""Bins on each side of zero; at least half of those that a tensor's sign allows lie below its largest
magnitude."""
CHUNK = 2**16
"""Values binned at a time: they, their float and their integer copy fit a core's second cache together."""
FLOOR = 2.0**-100
"""Smallest limit of a histogram; below it BINS / limit would leave float32."""


class Histogram:
    """What one tensor holds: exact extremes, and counts in equal bins. Constant in memory whatever is seen.

    The limit is the power of two above every magnitude seen; when a larger one comes it doubles and bins
    merge in pairs. So scaling to bins is exact, and the counts are the same in whatever order and batches the
    images come.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.limit = 0.0
        """Bins cover [-limit, limit]; 0 as long as only zeros were seen."""
        self.counts = np.zeros(2 * BINS, dtype=np.int64)
        """Bin i holds values from (i - BINS) * width on, up to one width (limit / BINS) more; zero opens bin
        BINS."""

    @property
    def edges(self) -> np.ndarray:
        """Ends of the bins, (2 * BINS + 1,) float64 from -limit to limit."""
        return np.arange(-BINS, BINS + 1) * (self.limit / BINS)

    def update(self, values: np.ndarray) -> None:
        """Count float32 values of any shape. Raises FloatingPointError when one is NaN or infinite; nothing
        is counted then.
        """
        low, high = float(values.min()), float(values.max())
        if not math.isfinite(high - low):  # NaN and infinity both reach an extreme
            raise FloatingPointError("a value is not finite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._cover(max(-low, high))
        flat = values.reshape(-1)
        if self.limit == 0.0:
            self.counts[BINS] += len(flat)
            return
        scale = np.float32(BINS / self.limit)
        target, offset = (self.counts[BINS:], None) if low >= 0 else (self.counts, np.float32(BINS))
        for start in range(0, len(flat), CHUNK):
            places = flat[start : start + CHUNK] * scale
            if offset is not None:  # below zero, truncation would go up
                np.floor(places, out=places)
                places += offset
            target += np.bincount(places.astype(np.intp), minlength=len(target))

    def _cover(self, magnitude: float) -> None:
        """Raise the limit until `magnitude` lies below it."""
        if self.limit == 0.0 and magnitude > 0.0:  # only zeros until now, and zero stays where it is
            self.limit = max(2.0 ** math.frexp(magnitude)[1], FLOOR)
        while magnitude >= self.limit > 0.0:
            pairs = self.counts.reshape(-1, 2).sum(1)
            self.counts[:] = 0
            self.counts[BINS // 2 : BINS + BINS // 2] = pairs
            self.limit *= 2
