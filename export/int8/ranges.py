"""From the histogram of a tensor to the range that int8 should span: four methods, each a small function with
its source.

In:  export.int8.histogram.Histogram; a method; whether the grid is int8 around zero or uint8 from low to
high.
Out: Range(low, high), inside what was seen, in the tensor's own units.
Elsewhere: counting (export.int8.calibrate), which method is best by accuracy (export.int8.pipeline), scale
and zero point (export.int8.quantize).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from runtime.errors import UsageError

if TYPE_CHECKING:
    from .histogram import Histogram

METHODS = ("minmax", "percentile", "entropy", "mse")
MSE_SHARES = np.geomspace(1, 1 / 4096, 193)
"""Shares of the largest magnitude tried first, 4.4 % apart; so deep for the sake of a single huge outlier."""
MERGED = 4
"""Bins that entropy takes as one: then 1,024 to 2,048 reach up to the largest magnitude, as in TensorRT."""
SMOOTHED = 17
"""Of these, entropy evens out so many: about the cell of one code when nothing is cut."""


class Range(NamedTuple):
    """Values a tensor is expected to take; what is outside saturates."""

    low: float
    high: float


class Ranges(NamedTuple):
    """Candidates for the range of one tensor, one per place of the arrays (candidates,)."""

    low: np.ndarray
    high: np.ndarray


Candidates = Callable[[np.ndarray], Ranges]
"""From thresholds (candidates,) to the ranges that they make."""


def find(histogram: Histogram, method: str, percentile: float = 99.99, unsigned: bool = False) -> Range:
    """The range of a tensor by one of METHODS; never wider than what was seen.

    unsigned: low to high will be 255 steps (uint8 with a zero point); otherwise the larger magnitude will be
    127 steps. Raises UsageError for an unknown method or percentile.
    """
    check_method(method, percentile)
    seen = Range(histogram.low, histogram.high)
    if histogram.limit == 0.0 or method == "minmax":  # only zeros have no limit
        return seen
    if method == "percentile":
        found: Range | Ranges = clip(seen, magnitude(histogram, percentile))
    else:
        found = entropy(histogram, unsigned) if method == "entropy" else mse(histogram, unsigned)
    return Range(float(found.low), float(found.high))


def check_method(method: str, percentile: float) -> None:
    """Raise UsageError for a calibration method or percentile that does not exist."""
    if method not in METHODS:
        raise UsageError(f"--calib-method {method}: expected one of {', '.join(METHODS)}")
    if not 50 < percentile <= 100:
        raise UsageError(
            f"--percentile {percentile}: expected above 50 and at most 100 (99.99 keeps all but 1 value in"
            " 10,000)"
        )


def clip(seen: Range, threshold: np.ndarray | float) -> Ranges:
    """The part of what was seen with magnitudes up to `threshold`; never empty, so a constant
    stays itself.
    """
    threshold = np.maximum(threshold, max(seen.low, -seen.high))
    return Ranges(np.maximum(seen.low, -threshold), np.minimum(seen.high, threshold))


def cells(candidates: Ranges, unsigned: bool) -> tuple[np.ndarray, np.ndarray]:
    """(codes x step (candidates, codes), the borders between them (candidates, codes - 1)) of the grid that
    export.int8.quantize.activation_scale makes of each range (without its floor)."""
    low, high = np.minimum(candidates.low, 0.0), np.maximum(candidates.high, 0.0)
    if unsigned:
        step = (high - low) / 255
        codes = np.arange(256) - np.rint(-low / step)[:, None]
    else:
        step = np.maximum(-low, high) / 127
        codes = np.arange(-127, 128)[None]
    return codes * step[:, None], (codes[:, 1:] - 0.5) * step[:, None]


def magnitude(histogram: Histogram, percentile: float) -> float:
    """The magnitude that `percentile` % of the values do not exceed; inside a bin values are taken as evenly
    spread.

    After McKinstry et al. 2018 (arXiv:1809.04191), who calibrate activations with percentiles from 99.9 on.
    """
    below, above = np.split(histogram.counts, 2)
    counts = above + below[::-1]
    upto = np.cumsum(counts)
    wanted = percentile / 100 * upto[-1]
    index = int(np.searchsorted(upto, wanted))
    inside = 1 - (upto[index] - wanted) / max(counts[index], 1)
    return float((index + inside) * histogram.limit / len(counts))


def mse(histogram: Histogram, unsigned: bool) -> Range:
    """The range with the smallest expected squared error, of rounding and of saturation together.

    Banner et al. 2019 (arXiv:1810.05723) balance the two for a Laplace density; here the density is the
    histogram's, even within a bin, and the expectation is exact: the mass of a cell and its first two moments
    give the squared distance from its code. Unsigned ranges have both ends searched, in turn.
    """
    counts, edges = used(histogram.counts, histogram.edges)
    density = counts / counts.sum() / np.diff(edges)
    powers = [edges ** (order + 1) / (order + 1) for order in range(3)]
    upto = [np.append(0.0, np.cumsum(density * np.diff(power))) for power in powers]

    def moments(points: np.ndarray) -> list[np.ndarray]:
        """Integrals of density x value**(0, 1, 2) from below everything up to each of `points`."""
        bins = np.clip(np.searchsorted(edges, points, "right") - 1, 0, len(density) - 1)
        points = np.clip(points, edges[0], edges[-1])
        return [
            upto[order][bins] + density[bins] * (points ** (order + 1) / (order + 1) - powers[order][bins])
            for order in range(3)
        ]

    def error(candidates: Ranges) -> np.ndarray:
        codes, borders = cells(candidates, unsigned)
        outside = np.full((len(borders), 1), np.inf)
        mass, first, second = (np.diff(each) for each in moments(np.hstack([-outside, borders, outside])))
        return (second - 2 * codes * first + codes**2 * mass).sum(1)

    seen = Range(histogram.low, histogram.high)
    best = search(lambda t: clip(seen, t), max(-seen.low, seen.high), MSE_SHARES, error)
    if unsigned and seen.low < 0.0 < seen.high:
        for _ in range(2):
            best = search(_from(best.low), seen.high, MSE_SHARES, error)
            best = search(_up_to(best.high), -seen.low, MSE_SHARES, error)
    return best


def _from(low: float) -> Candidates:
    return lambda thresholds: Ranges(np.full_like(thresholds, low), thresholds)


def _up_to(high: float) -> Candidates:
    return lambda thresholds: Ranges(-thresholds, np.full_like(thresholds, high))


def entropy(histogram: Histogram, unsigned: bool) -> Range:
    """The range whose codes lose least information: the smallest KL divergence of what int8 keeps from what
    was seen.

    Migacz, "8-bit Inference with TensorRT" (GTC 2017). Seen: the histogram, with the mass that saturates
    moved into the last bin that does not. Kept: the mass of each code, spread evenly over the bins of its
    cell that are not empty. Unlike there, cells are those of rounding to nearest and may cut a bin, so that
    candidates need not end where bins do; and peaks are evened out first (see `smoothed`). What saturates
    into an empty cell finds there one value per bin, not none, so that a lone outlier can be cut. Both ends
    are cut at one magnitude, and no cell is narrower than a bin: a tensor that lies within a few bins, but
    for outliers, keeps them (`mse` does not).
    """
    counts, edges = used(smoothed(histogram.counts.reshape(-1, MERGED).sum(1)), histogram.edges[::MERGED])
    width = edges[1] - edges[0]
    mass = counts / counts.sum()
    mass_to, room_to, log_to = (
        np.append(0.0, np.cumsum(each)) for each in (mass, (mass > 0) * width, x_log_x(mass, width))
    )

    def divergence(candidates: Ranges) -> np.ndarray:
        codes, borders = cells(candidates, unsigned)
        step = codes[:, 1:2] - codes[:, :1]
        ends = np.clip(
            np.hstack([codes[:, :1] - step / 2, borders, codes[:, -1:] + step / 2]), edges[0], edges[-1]
        )
        kept, room = np.diff(np.interp(ends, edges, mass_to)), np.diff(np.interp(ends, edges, room_to))
        filled = kept > 0
        total = np.where(filled.any(1), kept.sum(1), 1)[:, None]
        log_kept = np.log(
            np.where(filled, kept / total / np.where(filled, room, 1), 1 / counts.sum() / width)
        )
        lowest, highest = ends[:, 0], ends[:, -1]
        lost = np.interp(highest, edges, log_to) - np.interp(lowest, edges, log_to) - (kept * log_kept).sum(1)
        for moved, place, code in (
            (np.interp(lowest, edges, mass_to), np.searchsorted(edges, lowest, "right") - 1, 0),
            (1 - np.interp(highest, edges, mass_to), np.searchsorted(edges, highest, "left") - 1, -1),
        ):
            lost += (
                x_log_x(mass[place] + moved, width) - x_log_x(mass[place], width) - moved * log_kept[:, code]
            )
        return np.where(filled.any(1), lost, np.inf)

    seen = Range(histogram.low, histogram.high)
    largest = max(-seen.low, seen.high)
    steps = 255 if unsigned and seen.low >= 0 else 127
    shares = np.linspace(1, min(1.0, max(1 / 16, width * steps / largest)), 129)
    return search(lambda t: clip(seen, t), largest, shares, divergence)


def smoothed(counts: np.ndarray) -> np.ndarray:
    """Counts without peaks that say nothing of how far the codes should reach, but that spreading over a cell
    would count as a great loss, which only a narrower range can mend: zeros behind a ReLU (held exactly by
    any grid) are cut to their neighbor's count; channels that hardly move, and borders where padding is
    seen, are evened out over SMOOTHED bins. Each side of zero by itself.
    """
    below, above = np.split(counts, 2)
    return np.concatenate([_smooth(below[::-1])[::-1], _smooth(above)])


def _smooth(outwards: np.ndarray) -> np.ndarray:
    cut = outwards.copy()
    cut[0] = min(outwards[0], outwards[1] or outwards[0])
    mirrored = np.pad(np.pad(cut, (0, SMOOTHED // 2)), (SMOOTHED // 2, 0), "symmetric")
    upto = np.append(0, np.cumsum(mirrored))  # whole numbers: where nothing was seen the sum stays 0
    return (upto[SMOOTHED:] - upto[:-SMOOTHED]) / SMOOTHED


def x_log_x(mass: np.ndarray, width: float) -> np.ndarray:
    """mass x log(mass / width), 0 for no mass."""
    return mass * np.log(np.where(mass > 0, mass, width) / width)


def used(counts: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same from the first to the last bin that is not empty."""
    filled = np.flatnonzero(counts)
    first, last = filled[0], filled[-1] + 1
    return counts[first:last].astype(np.float64), edges[first : last + 1]


def search(
    candidate: Candidates,
    largest: float,
    shares: np.ndarray,
    cost: Callable[[Ranges], np.ndarray],
) -> Range:
    """The candidate of least cost: over thresholds that are `shares` (falling from 1) of `largest`, then
    finer around the best; the widest of equals.
    """
    place = int(cost(candidate(shares * largest)).argmin())
    finer = np.linspace(shares[max(place - 1, 0)], shares[min(place + 1, len(shares) - 1)], 17)
    found = candidate(finer * largest)
    best = int(cost(found).argmin())
    return Range(float(found.low[best]), float(found.high[best]))
