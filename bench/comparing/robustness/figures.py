"""Figures of robustness from answers: errors, CE and mCE, areas under curves, consistency, with intervals.

In:  `Answers` of an artifact and of the one that it is measured against, on the same images.
Out: a `Robustness`, whose `to_dict` is part of the JSON result.
Elsewhere: the answers (bench.comparing.robustness.asking), intervals of counts (runtime.intervals), the table
(bench.comparing.robustness.shown).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from runtime.intervals import newcombe, wilson

from .asking import Answers
from .views import Asked

DRAWS = 1000
"""Of the bootstrap over images."""
LEVEL = 95.0


@dataclass(frozen=True)
class Percent:
    """A share in percent or a difference in points, with its 95 % interval."""

    percent: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """Plain JSON values."""
        return {"percent": self.percent, "low_percent": self.low, "high_percent": self.high}


@dataclass(frozen=True)
class Corrupted:
    """One corruption. The names are keys of the JSON result."""

    error_percent: list[float]
    """At each severity."""
    mean_error_percent: float
    ce_percent: float | None
    """Sum of the errors over the severities / the reference's; None where the reference makes none."""
    relative_ce_percent: float | None
    """The same of the errors beyond those on clean images; None where the reference loses nothing."""


@dataclass(frozen=True)
class Curve:
    """Accuracy against what was done to the image, from nothing at all on."""

    levels: list[float]
    accuracy_percent: list[float]
    area: Percent
    """Mean height of the curve, by trapezoids."""


@dataclass(frozen=True)
class Steady:
    """Images whose best class stays when the image moves."""

    levels: list[float]
    consistency: list[Percent]
    accuracy_percent: list[float]

    @property
    def mean(self) -> float:
        """Over the levels, percent."""
        return float(np.mean([each.percent for each in self.consistency]))


@dataclass(frozen=True)
class Robustness:
    """Everything about one artifact; None for what was not asked for."""

    images: int
    clean_error: Percent
    clean_error_difference: Percent
    """Minus the reference's, points."""
    corruptions: dict[str, Corrupted]
    mean_error: Percent | None
    """Over corruptions and severities."""
    mean_error_difference: Percent | None
    """Minus the reference's, points."""
    mce: Percent | None
    relative_mce_percent: float | None
    curves: dict[str, Curve]
    """occlusion: against the share of cells without content; shuffle: against log2 of the cells on a side."""
    steady: dict[str, Steady]
    """shifts: against pixels; crops: against the share of the sides that is kept."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        single = ("clean_error", "clean_error_difference", "mean_error", "mean_error_difference", "mce")
        values = {name: getattr(self, name) for name in single}
        return {
            "n": self.images,
            **{name: value.to_dict() if value else None for name, value in values.items()},
            "relative_mce_percent": self.relative_mce_percent,
            "corruptions": {name: asdict(each) for name, each in self.corruptions.items()},
            **{
                name: {
                    "levels": each.levels,
                    "accuracy_percent": each.accuracy_percent,
                    "area": each.area.to_dict(),
                }
                for name, each in self.curves.items()
            },
            **{
                name: {
                    "levels": each.levels,
                    "consistency": [one.to_dict() for one in each.consistency],
                    "mean_consistency_percent": each.mean,
                    "accuracy_percent": each.accuracy_percent,
                }
                for name, each in self.steady.items()
            },
        }


def robustness(this: Answers, reference: Answers, asked: Asked) -> Robustness:
    """The figures of an artifact beside those of the reference, on the same images."""
    errors, others = (_errors(each, asked) for each in (this, reference))
    found = {
        name: Corrupted(
            (100 * rows.mean(axis=1)).tolist(),
            100 * float(rows.mean()),
            _ratio(rows.mean(1).sum(), others[name].mean(1).sum()),
            _ratio(_beyond(rows, this), _beyond(others[name], reference)),
        )
        for name, rows in errors.items()
    }
    mean, difference, mce = _summary(errors, others, asked.seed) if errors else (None, None, None)
    return Robustness(
        images=len(this.labels),
        clean_error=_share(int((~this.right[0]).sum()), len(this.labels)),
        clean_error_difference=_paired(~this.right[0], ~reference.right[0]),
        corruptions=found,
        mean_error=mean,
        mean_error_difference=difference,
        mce=mce,
        relative_mce_percent=_mean([each.relative_ce_percent for each in found.values()]),
        curves={part: _curve(this, part, asked.seed) for part in ("occlusion", "shuffle") if this.rows(part)},
        steady={part: _steady(this, part) for part in ("shifts", "crops") if this.rows(part)},
    )


def _errors(answers: Answers, asked: Asked) -> dict[str, np.ndarray]:
    """Corruption -> (severities, N) bool, True where the answer is wrong."""
    rows = answers.rows("corruptions")
    names = asked.corruptions if rows else ()
    right = answers.right
    return {name: ~right[[row for row in rows if answers.views[row].name == name]] for name in names}


def _beyond(rows: np.ndarray, answers: Answers) -> float:
    """Sum over the severities of the error minus the one on clean images."""
    return float((rows.mean(axis=1) - (~answers.right[0]).mean()).sum())


def _ratio(this: float, reference: float) -> float | None:
    return 100 * float(this) / float(reference) if reference > 1e-12 else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _summary(
    errors: dict[str, np.ndarray], others: dict[str, np.ndarray], seed: int
) -> tuple[Percent, Percent, Percent | None]:
    """(mean error, its difference to the reference, mCE), by drawing the same images for both again."""
    mine, theirs = (np.stack([rows.mean(axis=0) for rows in each.values()]) for each in (errors, others))
    both = np.concatenate([mine, theirs])
    drawn, exact = resampled(both, seed), both.mean(axis=1)[None]
    half = len(mine)

    def over(figure: Any) -> Percent:
        return interval(float(figure(exact)[0]), figure(drawn))

    averages = 100 * drawn[:, :half].mean(axis=1)
    mean = bounded(100 * float(exact[0, :half].mean()), averages, both.shape[1])
    difference = over(lambda e: 100 * (e[:, :half] - e[:, half:]).mean(axis=1))
    if not (theirs.mean(axis=1) > 0).all():
        return mean, difference, None
    drawn = drawn[(drawn[:, half:] > 0).all(axis=1)]
    return mean, difference, over(lambda e: 100 * (e[:, :half] / e[:, half:]).mean(axis=1))


def resampled(values: np.ndarray, seed: int) -> np.ndarray:
    """(DRAWS, K) means of the rows of values (K, N) over images drawn N times with replacement; the same
    draws for the same seed and N.
    """
    random, n = np.random.default_rng(seed), values.shape[1]
    counts = (np.bincount(random.integers(n, size=n), minlength=n) for _ in range(DRAWS))
    return np.stack([values @ each / n for each in counts])


def interval(value: float, drawn: np.ndarray) -> Percent:
    """A figure with the middle 95 % of what the draws gave."""
    low, high = np.percentile(drawn, [50 - LEVEL / 2, 50 + LEVEL / 2])
    return Percent(value, min(float(low), value), max(float(high), value))


def bounded(percent: float, drawn: np.ndarray, n: int) -> Percent:
    """The same of a mean over n images, each from 0 to 100 %. Where all of them are all right or all wrong,
    every draw is alike and tells nothing; the interval is then Wilson's for as many images.
    """
    for count in (0, n):
        if abs(percent - 100 * count / n) < 1e-9:
            return _share(count, n)
    return interval(percent, drawn)


def _share(count: int, n: int) -> Percent:
    low, high = wilson(count, n)
    return Percent(100 * count / n, 100 * low, 100 * high)


def _paired(this: np.ndarray, other: np.ndarray) -> Percent:
    """Share of this minus that of the other, (N,) bool each, points."""
    first, second = int((this & ~other).sum()), int((other & ~this).sum())
    low, high = newcombe(int((this & other).sum()), first, second, len(this))
    return Percent(100 * (first - second) / len(this), 100 * low, 100 * high)


def _curve(answers: Answers, part: str, seed: int) -> Curve:
    rows = [0, *answers.rows(part)]
    levels = [0.0 if part == "occlusion" else 1.0, *(answers.views[row].level for row in rows[1:])]
    right = answers.right[rows].astype(float)
    along = np.log2(levels) if part == "shuffle" else np.array(levels)
    widths = np.diff(along)[:, None]
    heights = ((right[1:] + right[:-1]) / 2 * widths).sum(axis=0) / (along[-1] - along[0])
    drawn = 100 * resampled(heights[None], seed)[:, 0]
    area = bounded(100 * float(heights.mean()), drawn, heights.size)
    return Curve(levels, (100 * right.mean(axis=1)).tolist(), area)


def _steady(answers: Answers, part: str) -> Steady:
    rows = answers.rows(part)
    same = answers.classes[rows] == answers.classes[0]
    return Steady(
        [answers.views[row].level for row in rows],
        [_share(int(row.sum()), len(row)) for row in same],
        (100 * answers.right[rows].mean(axis=1)).tolist(),
    )
