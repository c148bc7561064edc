"""The functions of `import large2small`: each is a command of `distill`, and returns what the command prints.

In:  the flags of the command as keywords.
Out: the command's result as a value; an exception of runtime.errors where the command would print an error.
Elsewhere: from keywords to a command (large2small.calls), the keywords with their types (large2small.flags).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import calls

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from bench.accuracy import AccuracyReport
    from bench.clock.latency import LatencyResult
    from distill.evaluate import EvaluationReport
    from distill.run.result import RunResult
    from export.stages.exported import Exported
    from runtime.commands.predict import Found

    from .flags import (
        AccuracyFlags,
        EvalFlags,
        LatencyFlags,
        OnnxFlags,
        Pathlike,
        PredictFlags,
        TrainFlags,
        TrtFlags,
    )


def train(*, quiet: bool = False, **flags: Unpack[TrainFlags]) -> RunResult:
    """Train a student from a teacher, or plainly with teacher="none"; with qat=True as int8.

    flags: those of `distill train` (`distill train --help-all` explains them): data, student, teacher,
    teacher_ckpt, epochs, output, ... quiet: nothing on stderr either.
    Returns the run: `path` of its folder, `checkpoint` of its best epoch, `top1`, `teacher_top1` and
    `control_top1` in percent (None where there is none), `to_dict()` for all of it.
    Raises UsageError, MissingError, ArtifactError, GateError or Interrupted (runtime.errors).
    """
    found: RunResult = calls.call("train", flags, quiet=quiet)
    return found


def evaluate(checkpoint: Pathlike, *, quiet: bool = False, **flags: Unpack[EvalFlags]) -> EvaluationReport:
    """Measure top-1, top-5 and loss of a checkpoint on labeled images, by default those of its training.

    flags: those of `distill eval`: data, split, model, ... quiet: nothing on stderr. Returns `top1` in
    percent and `result` with the rest. `bench_accuracy` does the same with an artifact. Raises as `train`
    does.
    """
    found: EvaluationReport = calls.call("eval", flags, (checkpoint,), quiet)
    return found


def export_onnx(checkpoint: Pathlike, *, quiet: bool = False, **flags: Unpack[OnnxFlags]) -> Exported:
    """Write a checkpoint as a verified ONNX file, with int8=True quantized.

    flags: those of `distill export onnx`: output, int8, fp16, data, max_drop, ... quiet: nothing on stderr.
    Returns the file, which is a path wherever one is expected, with `precision`, `top1`, `drop_points`,
    `metadata`. Raises GateError, and leaves no file, when a check does not hold; otherwise as `train` does.
    """
    found: Exported = calls.call("export onnx", flags, (checkpoint,), quiet)
    return found


def export_trt(checkpoint: Pathlike, *, quiet: bool = False, **flags: Unpack[TrtFlags]) -> Exported:
    """Build a TensorRT plan from a checkpoint or an ONNX file.

    flags: those of `distill export trt`: output, int8, fp16, batch, dynamic, flavor, ... Returns the plan and
    raises as `export_onnx` does, and MissingError where TensorRT is not installed.
    """
    found: Exported = calls.call("export trt", flags, (checkpoint,), quiet)
    return found


def predict(
    file: Pathlike,
    images: Pathlike | Sequence[Pathlike],
    *,
    quiet: bool = False,
    **flags: Unpack[PredictFlags],
) -> list[Found]:
    """Classify image files, folders or patterns with an artifact, without torch.

    flags: those of `distill predict`: top, batch, device, ... Returns for each image its `image`, the
    `guesses` with label, index and probability, and an `error` where it could not be read. Raises as
    `runtime.load` does. `load` and `classify` do the same for images that are in memory.
    """
    several = [images] if isinstance(images, (str, os.PathLike)) else images
    found: list[Found] = calls.call("predict", flags, (file, *several), quiet)
    return found


def bench_latency(engine: Pathlike, *, quiet: bool = False, **flags: Unpack[LatencyFlags]) -> LatencyResult:
    """Measure percentiles and throughput of an artifact.

    flags: those of `distill bench latency`: batch, iterations, threads, data, ... Returns the timings of each
    boundary ("compute", "end_to_end"): `timings[...].summary`, all durations with `samples_ms()`.
    Raises as `runtime.load` does.
    """
    found: LatencyResult = calls.call("bench latency", {"engine": engine, **flags}, quiet=quiet)
    return found


def bench_accuracy(
    engine: Pathlike, data: Pathlike, *, quiet: bool = False, **flags: Unpack[AccuracyFlags]
) -> AccuracyReport:
    """Measure top-1, top-5 and loss of an artifact on labeled images.

    flags: those of `distill bench accuracy`: reference, batch, limit, ... Returns the report: `result.top1`
    in percent, `comparison` with the reference. Raises as `runtime.load` does, and DataError.
    """
    given = {"engine": engine, "data": data, **flags}
    found: AccuracyReport = calls.call("bench accuracy", given, quiet=quiet)
    return found
