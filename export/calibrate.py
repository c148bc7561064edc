"""Choose a range for every tensor to quantize, from real images, in constant memory.

In:  fp32 ONNX model; names of tensors; batches (n, C, H, W) float32, already preprocessed.
Out: {tensor name: Range(low, high)}, in the tensor's own units.
Elsewhere: which images (export.samples), from a range to a scale and the Q/DQ nodes (export.quantize).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, TensorProto

from runtime.errors import GateError, UsageError

METHODS = ("minmax", "percentile")
BINS = 4096
"""Histogram bins per tensor; between half and all of them are in use, so a percentile is off by at most 1/2048 of the maximum."""


class Range(NamedTuple):
    """Values a tensor is expected to take; what lies outside saturates."""

    low: float
    high: float


class Observer(Protocol):
    """Sees a tensor batch by batch."""

    def update(self, values: np.ndarray) -> None: ...

    def range(self) -> Range: ...


class MinMax:
    """The smallest and the largest value seen."""

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf

    def update(self, values: np.ndarray) -> None:
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))

    def range(self) -> Range:
        return Range(self.low, self.high)


class Percentile(MinMax):
    """The smallest and largest value after cutting the largest magnitudes, so that `percentile` % of all values are kept.

    A histogram of |x| over [0, limit]; a value beyond the limit doubles it, and neighbouring bins merge in pairs.
    """

    def __init__(self, percentile: float) -> None:
        super().__init__()
        self.percentile = percentile
        self.limit = 0.0
        self.counts = np.zeros(BINS, dtype=np.int64)

    def update(self, values: np.ndarray) -> None:
        super().update(values)
        magnitudes = np.abs(values, dtype=np.float32).ravel()
        largest = float(magnitudes.max())
        if self.limit == 0.0:  # all zero until now: these zeros stay in the first bin whatever the limit
            self.limit = largest
        while largest > self.limit > 0.0:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(1), np.zeros(BINS // 2, dtype=np.int64)])
            self.limit *= 2
        bins = (magnitudes * (BINS / self.limit)).astype(np.int64) if self.limit else np.zeros(len(magnitudes), np.int64)
        self.counts += np.bincount(np.minimum(bins, BINS - 1), minlength=BINS)

    def range(self) -> Range:
        kept = self._kept()
        return Range(max(self.low, -kept), min(self.high, kept))

    def _kept(self) -> float:
        """The magnitude that `percentile` % of the values do not exceed; inside a bin values are taken as evenly spread."""
        upto = np.cumsum(self.counts)
        wanted = self.percentile / 100 * upto[-1]
        index = int(np.searchsorted(upto, wanted))
        inside = 1 - (upto[index] - wanted) / max(self.counts[index], 1)
        return (index + inside) * self.limit / BINS


def calibrate(model: ModelProto, tensors: Sequence[str], batches: Iterable[np.ndarray], method: str = "percentile",
              percentile: float = 99.99) -> dict[str, Range]:
    """Run the fp32 model over all batches and observe `tensors`; memory does not grow with the number of images.

    percentile: share of |activation| kept, percent, above 50 to 100. Raises UsageError for an unknown method,
    GateError naming a tensor with a NaN or an infinity.
    """
    check_method(method, percentile)
    observers: dict[str, Observer] = {
        name: MinMax() if method == "minmax" else Percentile(percentile) for name in tensors}
    name_of_input = model.graph.input[0].name
    inner = [name for name in observers if name != name_of_input]
    session = _session(model, inner)
    for batch in batches:
        values = dict(zip(inner, session.run(inner, {name_of_input: batch}), strict=True)) if inner else {}
        for name, observer in observers.items():
            seen = values.get(name, batch)
            if not np.isfinite(seen).all():
                raise GateError(f"tensor {name} is not finite on a calibration image, so it has no range. "
                                "Check the checkpoint: its float network overflows")
            observer.update(seen)
    return {name: observer.range() for name, observer in observers.items()}


def check_method(method: str, percentile: float) -> None:
    """Raise UsageError for a calibration method or percentile that does not exist."""
    if method not in METHODS:
        raise UsageError(f"--calib-method {method}: expected one of {', '.join(METHODS)}")
    if not 50 < percentile <= 100:
        raise UsageError(f"--percentile {percentile}: expected above 50 and at most 100 (99.99 keeps all but 1 value in 10,000)")


def _session(model: ModelProto, tensors: Sequence[str]) -> ort.InferenceSession:
    """The model with `tensors` among its outputs."""
    probed = ModelProto()
    probed.CopyFrom(model)
    present = {value.name for value in probed.graph.output}
    probed.graph.output.extend(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
                               for name in tensors if name not in present)
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    return ort.InferenceSession(probed.SerializeToString(), settings, providers=["CPUExecutionProvider"])
