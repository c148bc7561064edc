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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime import Predictor, UsageError, files
from runtime.backends.onnx_layers import Weighted, weighted_layers
from runtime.backends.openvino import OpenVinoBackend
from runtime.backends.ort import OrtBackend

from ..subject import RunOptions

PROFILED = ("onnxruntime", "openvino")
CALLS, WARMUP = 20, 3
ENDING = "_kernel_time"
CONVOLUTIONS = ("Conv", "ConvInteger")
LAYERS = frozenset(
    (
        *("Conv", "FusedConv", "NhwcConv", "NhwcFusedConv", "QLinearConv", "ConvInteger", "Convolution"),
        *("ConvTranspose", "QLinearConvTranspose", "Deconvolution", "GroupConvolution"),
        *("ConvolutionBackpropData", "GroupConvolutionBackpropData"),
        *("Gemm", "FusedGemm", "QGemm", "MatMul", "FusedMatMul", "QLinearMatMul", "MatMulInteger"),
        *("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "FullyConnected"),
    )
)
"""What ONNX Runtime and OpenVINO call layers with weights."""
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
    image: tuple[int, ...] = ()
    """Shape of its input, likewise."""


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


def require_profile(path: Path, on: RunOptions) -> None:
    """Raise UsageError where a file runs on an engine that has no profile here."""
    engine = on.backend(path).name
    if engine not in PROFILED:
        raise UsageError(
            f"--layers reads the profiles of ONNX Runtime and OpenVINO, and {path} runs on {engine}. Leave it"
            " out"
        )


def profile(predictor: Predictor, on: RunOptions, x: np.ndarray) -> list[Group]:
    """Groups of the layers of an open artifact, for a batch x (N, C, H, W).

    Raises UsageError for an engine that has no profile here.
    """
    require_profile(predictor.path, on)
    is_openvino = on.backend(predictor.path).name == "openvino"
    ran = _openvino(predictor, on, x) if is_openvino else _onnxruntime(predictor, on, x)
    return grouped(ran, weighted_layers(predictor.path), CALLS)


def _onnxruntime(predictor: Predictor, on: RunOptions, x: np.ndarray) -> list[Ran]:
    with files.scratch_folder() as folder:
        backend = OrtBackend(
            predictor.path,
            predictor.device,
            on.threads,
            provider=on.provider,
            integer_kernels=predictor.metadata.precision != "int8+fp16",
            profile=folder / "profile",
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
            found.append(Ran(name, operator, event["dur"] / 1e6, outputs, weights, (*inputs, ())[0]))
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
            layer = seen(each.operator, each.image, each.weights)
        kind = kind_of(each.operator, layer)
        kinds.setdefault(kind, []).append(each)
        per_output = inputs_of(layer) if layer and is_layer(each.operator) else None
        if per_output and each.outputs:
            macs[kind] = macs.get(kind, 0) + each.outputs * per_output
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
    (Reorder, Transpose, Convert, QuantizeLinear).
    """
    if layer is None or not is_layer(operator):
        return operator
    if len(layer.shape) < 3:
        return layer.operator
    size = "x".join(map(str, layer.shape[2:]))
    is_depthwise = layer.group > 1 and layer.group == inputs_in_all(layer)
    return f"{'depthwise ' if is_depthwise else ''}{layer.operator} {size}"


def is_layer(operator: str) -> bool:
    """Is it a layer with weights, as engines call them?"""
    return operator in LAYERS


def inputs_in_all(layer: Weighted) -> int:
    """Channels of a convolution's input."""
    return layer.shape[0] if "Transpose" in layer.operator else layer.shape[1] * layer.group


def inputs_of(layer: Weighted) -> int | None:
    """Multiply-accumulates for each output value; None for a transposed convolution, where that depends on
    its strides and on the place.
    """
    if "Transpose" in layer.operator:
        return None
    if len(layer.shape) == 2:
        return layer.shape[1 if layer.is_transposed else 0]
    if len(layer.shape) == 1 or layer.operator not in CONVOLUTIONS:  # a MatMul of stacked matrices
        return layer.shape[max(len(layer.shape) - 2, 0)]
    return math.prod(layer.shape[1:])


def seen(operator: str, image: tuple[int, ...], weights: tuple[int, ...]) -> Weighted:
    """A layer that an engine has renamed, from the shapes of its input (N, C, H, W) or (N, C) and weights."""
    operator = operator.removeprefix("Nhwc").removeprefix("Fused").removeprefix("QLinear")
    if len(weights) > 2 and len(image) > 1 and image[1] % weights[1] == 0:
        return Weighted(operator, weights, image[1] // weights[1])
    return Weighted(operator, weights, 1, len(weights) == 2 and bool(image) and weights[0] != image[-1])
