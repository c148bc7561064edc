"""large2small's runtime: predict with an exported student. Needs numpy and the engine asked for; never torch,
timm or onnx.

import runtime

with runtime.load("student.onnx") as student:
    for guesses in student.classify(["cat.jpg", "dog.jpg"], top=3):
        print(guesses[0].label, guesses[0].probability)
"""

from .artifact import Metadata
from .errors import ArtifactError, DataError, GateError, Large2SmallError, MissingError, UsageError
from .predictor import Prediction, Predictor, load
from .preprocess import Preprocess

__all__ = [
    "ArtifactError",
    "DataError",
    "GateError",
    "Large2SmallError",
    "Metadata",
    "MissingError",
    "Prediction",
    "Predictor",
    "Preprocess",
    "UsageError",
    "load",
]
