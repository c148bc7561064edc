"""Watch chosen tensors of an fp32 graph over real images, once, in constant memory; every method reads the
same statistics.

In:  fp32 ONNX model; names of tensors; batches (n, C, H, W) float32, already preprocessed.
Out: {tensor name: Histogram}, or {tensor name: Range(low, high)}, in the tensor's own units.
Elsewhere: which images (export.checks.samples), from a histogram to a range (export.int8.ranges), keeping
histograms (export.int8.cache), from a range to a scale and the Q/DQ nodes (export.int8.quantize).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from onnx import ModelProto

from runtime.errors import GateError, UsageError

from ..graph import edit, run
from .histogram import Histogram
from .ranges import Range, check_method, find

VALUES_AT_ONCE = 2**24
"""Values fetched from the network at a time, about: 64 MiB, at least one image."""
Item = TypeVar("Item")


def collect(model: ModelProto, tensors: Sequence[str], batches: Iterable[np.ndarray]) -> dict[str, Histogram]:
    """Run the fp32 model once over all batches; statistics of each of `tensors`.

    Memory: one histogram per tensor (128 KiB) and the values of few images, however many come and however
    large a batch is. Raises GateError naming a tensor with a NaN or an infinity, UsageError when there is no
    image.
    """
    histograms = {name: Histogram() for name in tensors}
    seen = False
    for values in _one_ahead(_values(model, list(histograms), batches)):
        seen = True
        for name, histogram in histograms.items():
            _observe(name, histogram, values.pop(name))
    if not seen:
        raise UsageError("no calibration images: nothing was observed. Give training images: --calib DIR")
    return histograms


def calibrate(
    model: ModelProto,
    tensors: Sequence[str],
    batches: Iterable[np.ndarray],
    method: str = "percentile",
    percentile: float = 99.99,
    unsigned: bool = False,
) -> dict[str, Range]:
    """`collect`, then the range of every tensor by one method (export.int8.ranges.find, also for percentile
    and unsigned).

    Raises UsageError for an unknown method, and what `collect` raises.
    """
    check_method(method, percentile)
    return {
        name: find(histogram, method, percentile, unsigned)
        for name, histogram in collect(model, tensors, batches).items()
    }


def _values(
    model: ModelProto, tensors: Sequence[str], batches: Iterable[np.ndarray]
) -> Iterator[dict[str, np.ndarray]]:
    """{tensor: its values} for a few images at a time, about VALUES_AT_ONCE of all tensors together."""
    name_of_input = model.graph.input[0].name
    inner = [name for name in tensors if name != name_of_input]
    session = run.session(edit.with_outputs(model, inner), fetches_much=True)
    at_once = 1  # the first image tells how many values the tensors hold
    for batch in batches:
        start = 0
        while start < len(batch):
            part = batch[start : start + at_once]
            start += len(part)
            values = dict(zip(inner, session.run(inner, {name_of_input: part}), strict=True)) if inner else {}
            values[name_of_input] = part
            at_once = max(1, VALUES_AT_ONCE * len(part) // sum(value.size for value in values.values()))
            yield values


def _one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, none of them None; while one is used the next is made in a thread (counting keeps one
    core busy, the engine and the reading of images the others).
    """
    with ThreadPoolExecutor(1) as worker:
        coming = worker.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = worker.submit(next, items, None)
            yield item


def _observe(name: str, histogram: Histogram, values: np.ndarray) -> None:
    try:
        histogram.update(values)
    except FloatingPointError as error:
        raise GateError(
            f"tensor {name} is not finite on a calibration image, so it has no range. "
            "Check the checkpoint: its float network overflows"
        ) from error
