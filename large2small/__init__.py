"""large2small from Python: what the commands do, as functions that return what they found.

import large2small

run = large2small.train(teacher="none", student="resnet18", data="photos", epochs=10)
student = large2small.export_onnx(run.checkpoint, int8=True)
with large2small.load(student) as predictor:
    print(predictor.classify("cat.jpg")[0][0].label)

A keyword is a flag of the command, with underscores; a failure is one of the exceptions below. docs/python.md
explains it. Importing this needs numpy alone; a function imports what it needs when it is called.
"""

import importlib
from typing import TYPE_CHECKING, Any

from runtime import Metadata, Prediction, Predictor, Preprocess, load
from runtime.errors import (
    ArtifactError,
    DataError,
    GateError,
    Interrupted,
    Large2SmallError,
    MissingError,
    UsageError,
)

from .functions import bench_accuracy, bench_latency, evaluate, export_onnx, export_trt, predict, train

if TYPE_CHECKING:
    from bench.accuracy import AccuracyReport as AccuracyReport
    from bench.clock.latency import LatencyResult as LatencyResult
    from distill.evaluate import EvaluationReport as EvaluationReport
    from distill.run.result import RunResult as RunResult
    from export.stages.exported import Exported as Exported

__all__ = [
    "ArtifactError",
    "DataError",
    "GateError",
    "Interrupted",
    "Large2SmallError",
    "Metadata",
    "MissingError",
    "Prediction",
    "Predictor",
    "Preprocess",
    "UsageError",
    "bench_accuracy",
    "bench_latency",
    "evaluate",
    "export_onnx",
    "export_trt",
    "load",
    "predict",
    "train",
]

RESULTS = {
    "AccuracyReport": "bench.accuracy",
    "EvaluationReport": "distill.evaluate",
    "Exported": "export.stages.exported",
    "LatencyResult": "bench.clock.latency",
    "RunResult": "distill.run.result",
}
"""What the functions return, for annotations -> the module of each, imported when it is asked for."""


def __getattr__(name: str) -> Any:
    if name not in RESULTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(RESULTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, *RESULTS])
