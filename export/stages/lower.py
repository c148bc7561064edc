"""From the fp32 file to the one that ships in int8, fp16 or both, judged on the evaluation images against the
torch student.

In:  `Fp32` and `Inputs`.
Out: `Shipped`: the file's content and metadata, every check recorded; GateError when a check does not hold.
Elsewhere: int8 (export.int8.pipeline), fp16 (export.fp16.overflow), the checks (export.checks.verify).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import ModelProto

from runtime.artifact import Metadata
from runtime.images import ImageSet
from runtime.records import Judged, Quantization

from ..checks import samples, speed, verify
from ..checks.evaluation import Evaluation
from ..fp16 import engine, overflow
from ..graph import from_torch
from ..graph.view import attribute
from ..int8 import pipeline
from ..int8.budget import Outcome
from ..int8.images import CalibrationImages
from ..int8.quantizer import Calibrated, Quantizer
from ..notes import note
from ..options.onnx import OnnxOptions
from ..qat import trained
from ..qat.quantizer import TrainedQuantizer
from .fp32 import Fp32
from .inputs import Inputs

GATE_OFF = 100.0
"""--max-drop from which no accuracy is asked for: no network can lose more points."""


@dataclass(frozen=True)
class Shipped:
    """An ONNX file that passed its checks, not yet written."""

    content: bytes
    meta: Metadata
    outcome: Outcome | None
    """Which layers stayed int8; None where none were chosen."""
    evaluation: ImageSet
    """The images it was judged on."""


@dataclass(frozen=True)
class _Lowered:
    """A graph in lower precision, with what it says on the evaluation images."""

    graph: ModelProto
    logits: np.ndarray
    how: Quantization
    """How it came about, for the metadata."""
    outcome: Outcome | None


def lower_precision(fp32: Fp32, inputs: Inputs) -> Shipped:
    """Quantize, convert, judge, record; the fp32 file itself where no other precision is asked for.

    Raises GateError when the accuracy budget or another check does not hold.
    """
    if inputs.draw is None:
        return Shipped(fp32.content, fp32.meta, None, inputs.evaluation)
    options = inputs.options
    evaluation = Evaluation(
        inputs.evaluation,
        options.accuracy_size,
        inputs.checkpoint.preprocess,
        fp32.student,
        fp32.content,
        inputs.scratch,
        options.seed,
    )
    if options.max_drop < GATE_OFF:
        verify.require_better_than_chance(evaluation.student_logits, evaluation.labels)
    calibration = inputs.draw(options.seed)
    meta = replace(fp32.meta, precision=options.precision, lineage=_lineage(fp32, inputs))
    halving = Halving(fp32.model, calibration, options) if options.fp16 else None
    lowered = _lowered(fp32, inputs, evaluation, calibration, halving, meta)
    content = from_torch.write_metadata(lowered.graph, meta)
    checks = _checks(fp32, inputs, evaluation, lowered, content, meta)
    meta = replace(
        meta,
        quantization=lowered.how,
        verification=replace(meta.verification, lowered=checks),
    )
    return Shipped(from_torch.write_metadata(lowered.graph, meta), meta, lowered.outcome, inputs.evaluation)


def _lowered(
    fp32: Fp32,
    inputs: Inputs,
    evaluation: Evaluation,
    calibration: CalibrationImages,
    halving: Halving | None,
    meta: Metadata,
) -> _Lowered:
    """The graph that ships: int8 within the budget, then fp16 around it, within the budget too."""

    def finish(candidate: ModelProto) -> bytes:
        graph = engine.judged(halving.quickly(candidate)) if halving else candidate
        return from_torch.write_metadata(graph, meta)

    if inputs.options.int8:
        assert inputs.draw is not None
        quantizer = quantizer_of(fp32.model, inputs, calibration)
        made = pipeline.make(quantizer, inputs.options, calibration, evaluation, finish, inputs.draw)
        lowered = _Lowered(made.graph, made.logits, made.record, made.outcome)
    else:
        lowered = _Lowered(fp32.model, np.zeros(0), Quantization(), None)
    if halving is None:
        return lowered
    graph, report = halving.checked(lowered.graph)
    judged = engine.judged(graph)
    report["judged_as"] = None if judged is graph else engine.sentence()
    logits = evaluation.logits(from_torch.write_metadata(judged, meta), f"accuracy of {meta.precision}")
    if not lowered.how.not_for_accuracy:
        compared = evaluation.compare(logits)
        verify.require_small_drop(compared, inputs.options.max_drop, meta.precision)
        verify.require_agreement(compared, inputs.options.min_agreement, meta.precision)
    return _Lowered(graph, logits, replace(lowered.how, fp16=report), lowered.outcome)


def _checks(
    fp32: Fp32, inputs: Inputs, evaluation: Evaluation, lowered: _Lowered, content: bytes, meta: Metadata
) -> Judged:
    """What is recorded about the file that ships.

    Raises GateError where the file is not consistent or not repeatable.
    """
    some, path = evaluation.some(), inputs.scratch / "lowered.onnx"
    with verify.opened(content, path) as predictor:
        consistency = verify.consistency(predictor, some, verify.tolerance(meta.precision))
    return replace(
        evaluation.judged(lowered.logits),
        max_drop=inputs.options.max_drop,
        min_agreement=inputs.options.min_agreement,
        consistency=consistency,
        batch_spread=consistency["batch_spread"],
        repeatability=verify.require_repeatable(content, path, some),
        speed=speed.measure(fp32.content, content),
    )


def _lineage(fp32: Fp32, inputs: Inputs) -> dict[str, Any]:
    """The fp32 file's, which was compared on fewer images, and that file itself."""
    lineage, options = fp32.meta.lineage, inputs.options
    size = max(options.verify_size, options.accuracy_size)  # a larger choice holds every smaller one
    judged_on = samples.judged_on(inputs.evaluation, size, options.seed)
    evaluation = lineage["data"]["evaluation"] | {"judged_on": judged_on}
    return lineage | {
        "data": lineage["data"] | {"evaluation": evaluation},
        "fp32_onnx": {"sha256": hashlib.sha256(fp32.content).hexdigest()},
    }


class Halving:
    """fp16 for candidates of one network: what overflows is looked for once, the one that ships is run to
    prove it.
    """

    def __init__(self, model: ModelProto, calibration: CalibrationImages, options: OnnxOptions) -> None:
        self.batches = calibration.batches
        self.keep = overflow.overflowing(model, calibration.batches("looking for what overflows in fp16"))
        if options.depthwise == "fp32":
            self.keep |= {
                node.name: "--depthwise fp32" for node in model.graph.node if attribute(node, "group", 1) > 1
            }

    def quickly(self, candidate: ModelProto) -> ModelProto:
        """In fp16, without another look at the images."""
        return overflow.to_half(candidate, self._there(candidate))

    def checked(self, candidate: ModelProto) -> tuple[ModelProto, dict[str, Any]]:
        """The same, with what overflows all the same kept as well, and a report."""
        return overflow.convert(candidate, self.batches, self._there(candidate))

    def _there(self, candidate: ModelProto) -> dict[str, str]:
        names = {node.name for node in candidate.graph.node}
        return {name: why for name, why in self.keep.items() if name in names}


def quantizer_of(model: ModelProto, inputs: Inputs, calibration: CalibrationImages) -> Quantizer:
    """By calibration, or for a checkpoint of `distill train --qat` with what was trained there."""
    options, checkpoint = inputs.options, inputs.checkpoint
    if checkpoint.quantized is None:
        return Calibrated(model, options.placement, options, calibration)
    note(
        f"{options.checkpoint}: holds weights and scales trained as int8; they are used, and the images only"
        " rank layers"
    )
    return TrainedQuantizer(trained.trained_graph(checkpoint, model, options.placement))
