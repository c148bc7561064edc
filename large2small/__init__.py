"""large2small from Python: what the commands do, as functions that return what they found.

import large2small

run = large2small.train(teacher="none", student="resnet18", data="photos", epochs=10)
student = large2small.export_onnx(run.checkpoint, int8=True)
with large2small.load(student) as predictor:
    print(predictor.classify("cat.jpg")[0][0].label)

A keyword is a flag of the command, with underscores; a failure is one of the exceptions below. docs/python.md
explains it. Importing this needs numpy alone; a function imports what it needs when it is called.
"""

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

from .functions import bench_accuracy, bench_latency, evaluate, export_onnx, export_trt, train

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
    "train",
]
