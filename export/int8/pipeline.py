"""The int8 part of an export: from a quantizer to a graph that holds the accuracy budget.

In:  a `Quantizer` (export.int8.quantizer, export.qat.quantizer), calibration images, an `Evaluation` on
labeled images, the options.
Out: `Int8Graph`: the quantized graph, its layout, and the record of how it came about; GateError when the
budget cannot be held.
Elsewhere: every step: which images (export.int8.images), the choice of a method (export.int8.choose), ranking
and roll-back (export.int8.budget), accuracy (export.checks.verify); files and metadata
(export.commands.onnx).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from onnx import ModelProto

from runtime.errors import UsageError
from runtime.records import Budget, Quantization

from ..checks.evaluation import Evaluation
from ..checks.verify import Accuracy
from ..notes import note
from ..options import Int8Options
from . import budget, choose, quantize
from .choose import Score
from .images import CalibrationImages
from .quantize import Layout
from .quantizer import Calibrated, Quantizer

Finish = Callable[[ModelProto], bytes]
"""From a quantized graph to the bytes of an artifact: fp16 around the Q/DQ if asked for, metadata."""
Draw = Callable[[int], CalibrationImages]
"""Chooses calibration images by a seed."""


@dataclass(frozen=True)
class Int8Graph:
    """An int8 graph that holds its budget."""

    layout: Layout
    graph: ModelProto
    """As calibrated; what is written may have been made fp16 around the Q/DQ."""
    logits: np.ndarray
    """(N, K) of what is written, on the evaluation images."""
    record: Quantization
    """How it came about, for the metadata."""
    outcome: budget.Outcome


def make(
    quantizer: Quantizer,
    options: Int8Options,
    calibration: CalibrationImages,
    evaluation: Evaluation,
    finish: Finish,
    draw: Draw,
) -> Int8Graph:
    """Quantize, and give layers back to float until top-1 on the evaluation images is within the budget.

    draw(seed) chooses other calibration images, for --calib-draws. Raises GateError when the budget cannot be
    held.
    """
    judge = Judge(quantizer, calibration, evaluation, finish)
    scores: list[Score] = []
    if isinstance(quantizer, Calibrated) and quantizer.method == "auto":
        quantizer, scores = _best_method(quantizer, judge)
        judge = Judge(quantizer, calibration, evaluation, finish)
    layout, graph = quantizer.build()
    said = "accuracy of int8"
    for pattern, matched in layout.excluded.items():
        note(f"--exclude {pattern}: matched {matched} node{'s' * (matched != 1)}")
    logits = judge.shipped(graph, said)
    outcome = _hold_budget(judge, layout, evaluation.compare(logits), options)
    if outcome.float_layers:
        layout, graph = quantizer.build(outcome.int8_layers)
        logits = judge.shipped(graph, said)
    record = replace(
        calibration.to_record(),
        **quantizer.about,
        method=quantizer.method,
        percentile=options.percentile if quantizer.method == "percentile" else None,
        chosen_from=[vars(score) for score in scores],
        placement=quantizer.placement,
        scales=quantize.scale_count(layout, quantizer.model),
        tensors=len(layout.tensors),
        int8_layers=len(layout.layers),
        float_layers=(
            layout.left_float | dict.fromkeys(outcome.float_layers, "rolled back to hold the accuracy budget")
        ),
        exclude=list(options.exclude),
        budget=Budget.from_dict(outcome.to_dict(), "budget"),
        draws=_draws(judge, outcome.int8_layers, draw, options.calib_draws),
    )
    return Int8Graph(layout, graph, logits, record, outcome)


class Judge:
    """Runs one quantizer's graphs: on the selection images to rank and choose, on the evaluation images to
    decide.
    """

    def __init__(
        self, quantizer: Quantizer, calibration: CalibrationImages, evaluation: Evaluation, finish: Finish
    ) -> None:
        self.quantizer, self.calibration = quantizer, calibration
        self.evaluation, self.finish = evaluation, finish

    @cached_property
    def labels(self) -> np.ndarray:
        """(N,) of the selection images. Raises UsageError when there are none."""
        found = self.calibration.selection_labels
        if found is None:
            raise UsageError(
                "there are no selection images (labeled training images that are not calibrated on) to rank"
                " layers by. Give more training images: --calib DIR"
            )
        return found

    @cached_property
    def reference(self) -> np.ndarray:
        """(N, K) of the fp32 file on the selection images."""
        return self.evaluation.logits(
            self.evaluation.fp32, "fp32 on selection images", self.calibration.selection_batches
        )

    def on_selection(self, graph: ModelProto) -> np.ndarray:
        """(N, K) of a graph on the selection images."""
        return self.evaluation.logits(self.finish(graph), "", self.calibration.selection_batches)

    def ranking(self, int8_layers: frozenset[str]) -> np.ndarray:
        """The same with only these layers in int8."""
        return self.on_selection(self.quantizer.build(int8_layers)[1])

    def shipped(self, graph: ModelProto, about: str = "") -> np.ndarray:
        """(N, K) of a graph on the evaluation images."""
        return self.evaluation.logits(self.finish(graph), about)

    def gate(self, int8_layers: frozenset[str]) -> Accuracy:
        """Accuracy there with only these layers in int8."""
        return self.evaluation.compare(
            self.shipped(self.quantizer.build(int8_layers)[1])
        )  # no bar: the live table is open


def _best_method(quantizer: Calibrated, judge: Judge) -> tuple[Calibrated, list[Score]]:
    """The quantizer with the best calibration method, and the scores of all."""
    method, scores = choose.pick_method(
        lambda tried: judge.on_selection(quantizer.by(tried).build()[1]), judge.reference, judge.labels
    )
    tried = ", ".join(f"{score.method} {score.top1:.2f} % (KL {score.kl:.3g})" for score in scores)
    note(f"--calib-method auto: {method}, of {tried} on {len(judge.labels)} selection images")
    return quantizer.by(method), scores


def _hold_budget(judge: Judge, layout: Layout, first: Accuracy, options: Int8Options) -> budget.Outcome:
    """What stays int8. Ranges of noise are not held to any budget: they have no accuracy to keep."""
    found = budget.groups(judge.quantizer.model, layout)
    bar = budget.Bar(first, float("inf"), judge.gate)
    if not judge.calibration.is_random:
        bar = replace(bar, max_drop=options.max_drop, min_agreement=options.min_agreement or 0.0)
    if bar.allows(first) and not options.sensitivity:
        nothing = np.zeros(0)
        return budget.fit(found, bar, budget.Ranking(judge.ranking, nothing, nothing))
    with budget.live() as show:
        ranking = budget.Ranking(judge.ranking, judge.reference, judge.labels)
        return budget.fit(found, bar, ranking, show, always_rank=options.sensitivity)


def _draws(judge: Judge, int8_layers: frozenset[str], draw: Draw, count: int) -> dict[str, Any] | None:
    """Top-1 of the same settings calibrated on different draws of images: what is luck in their choice."""
    quantizer = judge.quantizer
    if count < 2 or not isinstance(quantizer, Calibrated):
        return None
    top1 = [judge.gate(int8_layers).candidate_top1]
    for number in range(1, count):
        calibration = draw(judge.calibration.seed + number)
        other = Judge(quantizer.redrawn(calibration), calibration, judge.evaluation, judge.finish)
        top1.append(other.gate(int8_layers).candidate_top1)
    spread = float(np.std(top1, ddof=1))
    note(
        f"--calib-draws {len(top1)}: int8 top-1 {min(top1):.2f} to {max(top1):.2f} %, standard deviation"
        f" {spread:.3f} points"
    )
    return {"candidate_top1": top1, "standard_deviation_points": spread}
