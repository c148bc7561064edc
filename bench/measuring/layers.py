"""Where the time of a call goes: by kind of layer and size of kernel, from the engine's own profile.

In:  an .onnx file, what it runs on, a batch.
Out: `Group`s, the slowest first: time of a call, layers, multiply-accumulates.
Elsewhere: the engines (runtime.backends), shapes of weights (runtime.backends.onnx_layers).

A profile takes time itself, so its calls are slower than those that are timed. Engines rename and fuse
layers: a layer is that of the file whose name its own begins with.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime import Predictor, UsageError
from runtime.backends.onnx_layers import Weighted, weighted_layers
from runtime.backends.openvino import OpenVinoBackend
from runtime.backends.ort import OrtBackend

from ..subject import RunOptions

CALLS, WARMUP = 20, 3
ENDING = "_kernel_time"
BEHIND = "_/.:"
"""What may stand behind the name of a layer in that of an engine."""


@dataclass(frozen=True)
class Ran:
    """One layer as an engine ran it, in one call or all together."""

    name: str
    operator: str
    """As the engine calls it."""
    seconds: float
    outputs: int | None = None
    """Values that it gave; None where the engine does not say."""
    weights: tuple[int, ...] | None = None
    """Shape of its weights, where the engine says."""


@dataclass(frozen=True)
class Group:
    """Layers of one kind. The names are keys of the JSON result."""

    kind: str
    """Such as Conv 3x3, depthwise Conv 13x13, Gemm, Transpose."""
    layers: int
    ms: float
    """Of one call."""
    share_percent: float
    macs: int | None
    """Multiply-accumulates of one call as the engine does them, with channels that it fills up; None where
    the profile does not tell shapes, or there are none."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @property
    def line(self) -> str:
        """For a person."""
        macs = f", {self.macs / 1e6:.3g} M multiply-accumulates" if self.macs else ""
        return f"{self.share_percent:.0f} % {self.kind}: {self.ms:.3g} ms in {self.layers} layers{macs}"


def profile(predictor: Predictor, on: RunOptions, x: np.ndarray) -> list[Group]:
    """Groups of the layers of an open artifact, for a batch x (N, C, H, W).

    Raises UsageError for an engine that has no profile here.
    """
    path, engine = predictor.path, on.backend(predictor.path).name
    if engine == "onnxruntime":
        ran = _onnxruntime(predictor, on, x)
    elif engine == "openvino":
        ran = _openvino(predictor, on, x)
    else:
        raise UsageError(
            f"--layers reads the profiles of ONNX Runtime and OpenVINO, and {path} runs on {engine}"
        )
    return grouped(ran, weighted_layers(path), CALLS)


def _onnxruntime(predictor: Predictor, on: RunOptions, x: np.ndarray) -> list[Ran]:
    with tempfile.TemporaryDirectory(prefix="large2small-") as folder:
        backend = OrtBackend(
            predictor.path,
            predictor.device,
            on.threads,
            provider=on.provider,
            integer_kernels=predictor.metadata.precision != "int8+fp16",
            profile=Path(folder) / "profile",
        )
        for _ in range(WARMUP + CALLS):
            backend.run(x)
        events = json.loads(Path(backend.session.end_profiling()).read_bytes())
    return onnxruntime_layers(events, WARMUP)


def onnxruntime_layers(events: Iterable[Mapping[str, Any]], skipped: int) -> list[Ran]:
    """The layers in ONNX Runtime's profile, without the first `skipped` runs of each."""
    found, seen = [], dict[str, int]()
    for event in events:
        name = str(event.get("name"))
        if event.get("cat") != "Node" or not name.endswith(ENDING):
            continue
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > skipped:
            about = event.get("args") or {}
            inputs, given = (_shapes(about.get(key)) for key in ("input_type_shape", "output_type_shape"))
            outputs = math.prod(given[0]) if given else None
            operator = str(about.get("op_name"))
            weights = inputs[1] if len(inputs) > 1 and len(inputs[1]) > 1 and is_layer(operator) else None
            name = name.removesuffix(ENDING)
            found.append(Ran(name, operator, event["dur"] / 1e6, outputs, weights))
    return found


def _shapes(values: Any) -> list[tuple[int, ...]]:
    return [tuple(shape) for each in values or [] for shape in each.values()]


def _openvino(predictor: Predictor, on: RunOptions, x: np.ndarray) -> list[Ran]:
    backend = OpenVinoBackend(
        predictor.path, on.device or "cpu", on.threads, hint=on.hint or "latency", profile=True
    )
    found: list[Ran] = []
    for number in range(WARMUP + CALLS):
        backend.run(x)
        if number >= WARMUP:
            found += [Ran(*each) for each in backend.last_profile()]
    return found


def grouped(ran: Sequence[Ran], layers: Mapping[str, Weighted], calls: int) -> list[Group]:
    """The layers of so many calls by kind, the slowest first."""
    kinds: dict[str, list[Ran]] = {}
    macs: dict[str, int] = {}
    for each in ran:
        layer = layers.get(matching(each.name, layers) or "")
        if each.weights and not layer:  # renamed, such as by ONNX Runtime's own layout
            layer = Weighted(each.operator.removeprefix("Fused"), each.weights)
        kind = kind_of(each.operator, layer)
        kinds.setdefault(kind, []).append(each)
        if layer and each.outputs and is_layer(each.operator):
            macs[kind] = macs.get(kind, 0) + each.outputs * inputs_of(layer)
    total = math.fsum(each.seconds for each in ran) or 1.0
    made = [
        Group(
            kind,
            len({each.name for each in some}),
            1e3 * math.fsum(each.seconds for each in some) / calls,
            100 * math.fsum(each.seconds for each in some) / total,
            macs[kind] // calls if kind in macs else None,
        )
        for kind, some in kinds.items()
    ]
    return sorted(made, key=lambda group: -group.ms)


def matching(name: str, layers: Mapping[str, Weighted]) -> str | None:
    """The layer of the file that an engine's name begins with; the longest of several."""
    found = [each for each in layers if name == each or (name.startswith(each) and name[len(each)] in BEHIND)]
    return max(found, key=len, default=None)


def kind_of(operator: str, layer: Weighted | None) -> str:
    """Operator with its kernel size; the engine's word where it has no weights, or moves data around a layer
    (Reorder, Transpose, QuantizeLinear).
    """
    if layer is None or not is_layer(operator):
        return operator
    if len(layer.shape) < 3:
        return layer.operator
    size = "x".join(map(str, layer.shape[2:]))
    is_depthwise = layer.shape[1] == 1 and layer.shape[0] > 1
    return f"{'depthwise ' if is_depthwise else ''}{layer.operator} {size}"


def is_layer(operator: str) -> bool:
    """Is it a layer with weights, as engines call them?"""
    return any(word in operator for word in ("Conv", "Gemm", "MatMul", "FullyConnected"))


def inputs_of(layer: Weighted) -> int:
    """Multiply-accumulates for each output value."""
    if len(layer.shape) == 2:  # (K, N) of MatMul; of Gemm either way, and the smaller side is the classes
        return layer.shape[0] if layer.operator == "MatMul" else max(layer.shape)
    return math.prod(layer.shape[1:])
