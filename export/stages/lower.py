"""From the fp32 artifact to the one that ships in int8, fp16 or both, judged on labelled images against the
torch student.

In:  the fp32 graph and file, calibration images, labelled images, the options of the command.
Out: the file's content and metadata, every check recorded; GateError when a check does not hold.
Elsewhere: int8 (export.int8.pipeline), fp16 (export.fp16.overflow), the checks (export.checks.verify), the
order of an export (export.commands.onnx).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnx import ModelProto

from distill.checkpoint import Checkpoint
from runtime import env
from runtime.artifact import Metadata
from runtime.images import ImageSet

from ..checks import samples, speed, verify
from ..checks.evaluation import Evaluation
from ..fp16 import overflow
from ..graph import from_torch
from ..graph.view import attribute
from ..int8 import pipeline
from ..int8.budget import Outcome
from ..int8.images import CalibrationImages
from ..int8.quantizer import Calibrated, Quantizer
from ..options import note
from ..qat import trained
from ..qat.quantizer import TrainedQuantizer

GATE_OFF = 100.0
"""--max-drop from which no accuracy is asked for: no network can lose more points."""


@dataclass(frozen=True)
class Reduced:
    """What is written."""

    content: bytes
    meta: Metadata
    outcome: Outcome | None
    """Which layers stayed int8; None for fp16 alone."""


def make(
    model: ModelProto,
    fp32: bytes,
    meta: Metadata,
    student: Any,
    checkpoint: Checkpoint,
    draw: Callable[[int], CalibrationImages],
    held_out: ImageSet,
    options: Any,
    folder: Path,
) -> Reduced:
    """Quantize, convert, judge, record. options: an `OnnxOptions`; draw(seed) chooses calibration images."""
    evaluation = Evaluation(
        held_out, options.accuracy_size, meta.preprocess, student, fp32, folder, options.seed
    )
    if options.max_drop < GATE_OFF:
        verify.require_better_than_chance(evaluation.student_logits, evaluation.labels)
    calibration = draw(options.seed)
    meta = replace(meta, precision=options.precision, lineage=_lineage(meta, fp32, held_out, options))
    halve = Halving(model, calibration, options) if options.fp16 else None

    def finish(candidate: ModelProto) -> bytes:
        return from_torch.write_metadata(halve.quickly(candidate) if halve else candidate, meta)

    final, outcome, how = (
        model,
        None,
        {"method": None, "budget": None, "draws": None, "not_for_accuracy": False},
    )
    if options.int8:
        made = pipeline.make(
            quantizer_of(model, checkpoint, options, calibration),
            options,
            calibration,
            evaluation,
            finish,
            draw,
        )
        final, logits, outcome, how = made.graph, made.logits, made.outcome, made.record
    if halve:
        final, how["fp16"] = halve.checked(final)
        logits = evaluation.logits(from_torch.write_metadata(final, meta), f"accuracy of {meta.precision}")
        if not how["not_for_accuracy"]:
            verify.require_small_drop(evaluation.compare(logits), options.max_drop, meta.precision)
    content, some = from_torch.write_metadata(final, meta), evaluation.some()
    with verify.opened(content, folder / "reduced.onnx") as predictor:
        consistency = verify.consistency(predictor, some, verify.tolerance(meta.precision))
    checks = evaluation.shipped(logits) | {
        "max_drop": options.max_drop,
        "consistency": consistency,
        "batch_spread": consistency["batch_spread"],
        "repeatability": verify.require_repeatable(content, folder / "reduced.onnx", some),
        "speed": {
            "ratio": speed.ratio(fp32, content),
            "batch": 1,
            "threads": env.usable_cores(),
            "engine": "onnxruntime",
        },
    }
    meta = replace(
        meta, quantization=how, verification=meta.verification | {meta.precision.partition("+")[0]: checks}
    )
    return Reduced(from_torch.write_metadata(final, meta), meta, outcome)


def _lineage(meta: Metadata, fp32: bytes, held_out: ImageSet, options: Any) -> dict[str, Any]:
    """The fp32 file's, which was compared on fewer images, and that file itself."""
    data = meta.lineage["data"]
    size = max(options.verify_size, options.accuracy_size)  # a larger choice holds every smaller one
    held = data["held_out"] | {"judged_on": samples.judged_on(held_out, size, options.seed)}
    return meta.lineage | {
        "data": data | {"held_out": held},
        "fp32_onnx": {"sha256": hashlib.sha256(fp32).hexdigest()},
    }


class Halving:
    """fp16 for candidates of one network: what overflows is looked for once, the one that ships is run to
    prove it.
    """

    def __init__(self, model: ModelProto, calibration: CalibrationImages, options: Any) -> None:
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


def quantizer_of(
    model: ModelProto, checkpoint: Checkpoint, options: Any, calibration: CalibrationImages
) -> Quantizer:
    """By calibration, or for a checkpoint of `distill train --qat` with the weights and scales
    trained there.
    """
    if checkpoint.quantized is None:
        return Calibrated(model, options.placement, options, calibration)
    note(
        f"{options.checkpoint}: holds weights and scales trained as int8; they are used, the images rank"
        " layers only"
    )
    return TrainedQuantizer(trained.trained_graph(checkpoint, model, options.placement))
