"""The drawings of a report as SVG, which takes text and axes in the color of the page around it.

In:  epochs, confusion counts, class names.
Out: SVG elements as text, to be put into HTML as they are: names in them are escaped.
Elsewhere: how a drawing becomes SVG (runtime.cli.page.drawing), where the values come from
(distill.run.report.collect, distill.run.report.predictions), the page (distill.run.report.page).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.cli.page.drawing import COLORS, PAGE_COLOR, cut, drawing

from .collect import Epoch

DOTS_UP_TO = 20
"""Epochs of which each gets a dot."""
COUNTS_UP_TO, NAMES_UP_TO = 12, 40
"""Classes with a number in every cell of the confusion matrix, and with their names at its sides."""
STRONGEST = 0.7
"""Opacity of a full cell: numbers in the page's text color stay readable on it, on white and on black."""


@dataclass(frozen=True)
class Curve:
    """One training in a drawing."""

    label: str
    epochs: Sequence[Epoch]
    color: str
    line: str = "-"
    """As matplotlib writes it: - or -- for a control."""


def loss(curves: Sequence[Curve]) -> str:
    """Cross-entropy by epoch: on validation images as lines, on training images as fainter dotted ones."""

    def draw(axes: Any) -> None:
        for curve in curves:
            _line(axes, curve, [each.loss_nats for each in curve.epochs])
            train = [each.train_loss_nats for each in curve.epochs]
            axes.plot(_numbers(curve), _gaps(train), ":", color=curve.color, alpha=0.6, linewidth=1.2)
        axes.set_ylim(bottom=0)
        _finish(axes, "cross-entropy, nats", len(curves))

    return drawing(draw, (4.6, 3.1), "cross-entropy by epoch")


def top1(curves: Sequence[Curve], teachers: Sequence[tuple[str, float]] = ()) -> str:
    """Top-1 on the validation images by epoch; teachers: (label, percent), each a level line."""

    def draw(axes: Any) -> None:
        for curve in curves:
            _line(axes, curve, [each.top1_percent for each in curve.epochs])
        for label, percent in teachers:
            axes.axhline(percent, color=PAGE_COLOR, linestyle=":", linewidth=1, label=cut(label))
        _finish(axes, "top-1, percent", len(curves) + len(teachers))

    return drawing(draw, (4.6, 3.1), "top-1 on the validation images by epoch")


def confusion(counts: np.ndarray, names: Sequence[str]) -> str:
    """counts (K, K): images by label and by predicted class. A cell is the darker, the larger its share of
    the row; with many classes its square root, so that single images show.
    """
    classes = len(names)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    strength = shares if classes <= NAMES_UP_TO else np.sqrt(shares)
    side = 1.6 + min(max(0.34 * classes, 1.9), 6.0) if classes <= NAMES_UP_TO else 5.6

    def draw(axes: Any) -> None:
        axes.imshow(_shaded(strength), interpolation="none")
        axes.set_xlabel("predicted")
        axes.set_ylabel("label")
        for spine in axes.spines.values():
            spine.set_visible(True)
        if classes <= NAMES_UP_TO:
            short = [cut(name, 14) for name in names]
            axes.set_xticks(range(classes), short, rotation=90)
            axes.set_yticks(range(classes), short)
        if classes <= COUNTS_UP_TO:
            for row, column in zip(*np.nonzero(counts), strict=True):
                axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=8)

    return drawing(draw, (side, side), f"confusion matrix of {classes} classes")


def class_accuracy(percents: Sequence[float | None], names: Sequence[str]) -> str:
    """Percent right of every class: a bar each, or with many classes all of them in order of accuracy."""
    known = [(percent, name) for percent, name in zip(percents, names, strict=True) if percent is not None]

    def bars(axes: Any) -> None:
        places = range(len(known))
        axes.barh(places, [percent for percent, _ in known], color=COLORS[0], height=0.7)
        axes.set_yticks(places, [cut(name) for _, name in known])
        axes.set_ylim(len(known) - 0.5, -0.5)  # the first one on top
        axes.set_xlim(0, 100)
        axes.set_xlabel("right, percent")

    def ordered(axes: Any) -> None:
        values = sorted(percent for percent, _ in known)
        axes.fill_between(range(1, len(values) + 1), values, color=COLORS[0], alpha=0.35, linewidth=0)
        axes.plot(range(1, len(values) + 1), values, color=COLORS[0])
        axes.set_ylim(0, 100)
        axes.set_xlabel("classes, the least accurate first")
        axes.set_ylabel("right, percent")

    if len(known) <= NAMES_UP_TO:
        return drawing(bars, (4.6, 0.7 + max(0.24 * len(known), 0.8)), "percent right of each class")
    return drawing(ordered, (4.6, 3.1), "percent right of all classes, the least accurate first")


def _line(axes: Any, curve: Curve, values: Sequence[float | None]) -> None:
    dot = "o" if len(curve.epochs) <= DOTS_UP_TO else ""
    numbers = _numbers(curve)
    axes.plot(
        numbers,
        _gaps(values),
        curve.line,
        marker=dot,
        markersize=3.5,
        color=curve.color,
        label=cut(curve.label),
    )


def _numbers(curve: Curve) -> list[int]:
    return [each.epoch for each in curve.epochs]


def _gaps(values: Sequence[float | None]) -> list[float]:
    """None as NaN, where matplotlib leaves a gap."""
    return [float("nan") if value is None else value for value in values]


def _finish(axes: Any, what: str, entries: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    axes.set_ylabel(what)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(color=PAGE_COLOR, alpha=0.12)
    if entries > 1:
        axes.legend(fontsize=8)


def _shaded(strength: np.ndarray) -> np.ndarray:
    """(K, K) of 0 to 1 as (K, K, 4) uint8: one color, the more opaque the larger."""
    color = [int(COLORS[0][place : place + 2], 16) for place in (1, 3, 5)]
    shaded = np.empty((*strength.shape, 4), np.uint8)
    shaded[..., :3] = color
    shaded[..., 3] = np.round(255 * STRONGEST * strength)
    return shaded
