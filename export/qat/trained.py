"""What quantization-aware training learned, as its checkpoint keeps it, and the int8 graph that follows
from it.

In:  a checkpoint of `distill train --qat` (its entry `quantized`); the fp32 graph of the student in it.
Out: `Learned`, that entry with its fields checked; `TrainedGraph`, the parts that export.int8.quantize takes.
Elsewhere: the training that writes it (export.qat.trainer), layers that go back to float
(export.qat.quantizer).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
from onnx import ModelProto
from torch import Tensor

from distill.checkpoint import Checkpoint
from distill.checkpoint.foreign import require_plain
from distill.checkpoint.typed import require_simple
from runtime.errors import ArtifactError, UsageError

from ..graph import edit
from ..graph.view import View, along, channel_axis
from ..int8.quantize import LARGEST, PLACEMENTS, Int8Weight, Layout, Rules, lay_out, quantize
from ..int8.ranges import Range

SCHEMA = 1


@dataclass(frozen=True)
class QatSettings:
    """How the graph is quantized before it is trained; none of it may change when a run is resumed."""

    placement: str
    rules: Rules
    opset: int
    calib_size: int
    calib_method: str
    percentile: float

    def to_dict(self) -> dict[str, Any]:
        """As dicts and lists, which a checkpoint may hold."""
        rules = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self.rules).items()
        }
        return asdict(self) | {"rules": rules}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QatSettings:
        """The inverse. Raises KeyError or TypeError for what `to_dict` did not write."""
        rules: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values["rules"].items()
        }
        return cls(**{**values, "rules": Rules(**rules)})


@dataclass(frozen=True)
class Learned:
    """The entry `quantized` of a checkpoint."""

    settings: QatSettings
    layers: list[str]
    """Names of the int8 layers, in the graph's order."""
    ranges: dict[str, list[float]]
    """[low, high] that training started from, by tensor."""
    zero_points: dict[str, int]
    state: dict[str, Tensor]
    """The trained graph's state_dict: float weights and biases, starts and changes of the scales."""
    scales: dict[str, Tensor]
    """float32, () for an activation, (channels,) for a weight."""
    fp32_sha256: str
    """`weights_sha256` of the fp32 student in the same file."""
    before: dict[str, float]
    """Accuracy of the fp32 student and of the untrained int8 graph: fp32_top1, int8_top1, ..., percent."""

    def to_dict(self) -> dict[str, Any]:
        """For Checkpoint.quantized."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"schema": SCHEMA, **own, "settings": self.settings.to_dict()}

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Learned:
        """The entry of a checkpoint. Raises ArtifactError when there is none, when it is of another
        version, or when it is damaged.
        """
        entry = checkpoint.quantized
        if entry is None:
            raise ArtifactError(
                f"{checkpoint.path}: was not trained as an int8 graph. Train it: distill train --qat --resume"
                " FILE"
            )
        schema = entry.get("schema")
        if type(schema) is not int or schema != SCHEMA:
            found = str(schema)[:20] if type(schema) is int else f"of type {type(schema).__name__}"
            raise ArtifactError(
                f"{checkpoint.path}: quantized weights of schema {found}; this version reads"
                f" {SCHEMA}. Install the large2small that wrote it"
            )
        try:
            _require_typed(entry, str(checkpoint.path))
            known = {field.name: entry[field.name] for field in fields(cls)}
            return cls(**known | {"settings": QatSettings.from_dict(entry["settings"])})
        except (KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"{checkpoint.path}: its entry 'quantized' is damaged ({type(error).__name__}: {error})."
                " Train again: distill train --qat"
            ) from error


BY_NAME: dict[str, type] = {"ranges": list, "zero_points": int, "state": Tensor, "scales": Tensor}
"""Entries that are dictionaries -> what is in them."""


def _require_typed(entry: Mapping[str, Any], path: str) -> None:
    """Raise KeyError or TypeError for an entry that training does not write, ArtifactError for tensors that
    are not plain numbers.
    """
    if not isinstance(entry["layers"], list) or not all(isinstance(each, str) for each in entry["layers"]):
        raise TypeError("layers is not a list of names")
    for name, kind in BY_NAME.items():
        if not isinstance(entry[name], dict):
            raise TypeError(f"{name} is a {type(entry[name]).__name__}")
        for each in entry[name].values():
            if not isinstance(each, kind):
                raise TypeError(f"{name} holds a {type(each).__name__}")
            if isinstance(each, Tensor):
                require_plain(each, f"{path}: a tensor of {name}")
    for limits in entry["ranges"].values():
        if len(limits) != 2 or not all(isinstance(limit, (int, float)) for limit in limits):
            raise TypeError("ranges holds something else than [low, high]")
    settings = entry["settings"]
    require_simple(settings, "settings")
    if settings["placement"] not in PLACEMENTS:
        raise TypeError("settings name a placement that is not known")


def placement_of(checkpoint: Checkpoint) -> Literal["cpu", "tensorrt"]:
    """What the checkpoint was trained for. Raises ArtifactError when it does not say."""
    known: dict[str, Literal["cpu", "tensorrt"]] = {"cpu": "cpu", "tensorrt": "tensorrt"}
    try:
        return known[(checkpoint.quantized or {})["settings"]["placement"]]
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"{checkpoint.path}: its entry 'quantized' is damaged (no {error}). Train again: distill train"
            " --qat"
        ) from error


@dataclass(frozen=True)
class TrainedGraph:
    """What export.int8.quantize needs to write the trained graph; also with some layers left float, which
    keep trained weights.
    """

    model: ModelProto
    """The fp32 graph with the trained float weights and biases."""
    layout: Layout
    ranges: dict[str, Range]
    """Such that export.int8.quantize gets the trained scales and zero points."""
    rules: Rules
    weights: dict[str, Int8Weight]

    def quantized(self) -> ModelProto:
        """The graph that was evaluated in training."""
        return quantize(self.model, self.layout, self.ranges, self.rules, self.weights)


def trained_graph(checkpoint: Checkpoint, fp32: ModelProto, placement: str | None = None) -> TrainedGraph:
    """The parts of the graph that `distill train --qat` trained. fp32: export.graph.from_torch.to_onnx of the
    checkpoint's student.

    Raises UsageError when `placement` is not the one it was trained for, ArtifactError when the checkpoint is
    damaged or this graph is not the one it was trained as (another opset or exporter).
    """
    learned = Learned.of(checkpoint)
    settings = learned.settings
    if placement not in (None, settings.placement):
        raise UsageError(
            f"{checkpoint.path}: was trained for --placement {settings.placement}, not {placement}, which"
            f" quantizes other tensors. Give --placement {settings.placement}, or train again with"
            f" --placement {placement}"
        )
    if learned.fp32_sha256 != weights_sha256(checkpoint.state_dict):
        raise ArtifactError(
            f"{checkpoint.path}: its int8 weights belong to another fp32 student than the one in the file. "
            "Take best.pth as training wrote it"
        )
    layout = lay_out(fp32, settings.placement, settings.rules)
    if layout.layers != learned.layers or set(layout.tensors) != set(learned.ranges):
        raise ArtifactError(_another_graph(checkpoint, settings.opset, fp32))
    _require_fits(learned, layout, fp32, str(checkpoint.path))
    model = edit.with_values(fp32, {name: value.numpy() for name, value in learned.state.items()})
    scales = {tensor: values.numpy() for tensor, values in learned.scales.items()}
    view, unsigned = View(model), PLACEMENTS[settings.placement].unsigned
    ranges = {
        tensor: range_of(float(scales[tensor]), learned.zero_points[tensor], unsigned)
        for tensor in layout.tensors
    }
    weights = {layer: on_grid(layer, scales, view) for layer in layout.layers}
    return TrainedGraph(model, layout, ranges, settings.rules, weights)


def _require_fits(learned: Learned, layout: Layout, fp32: ModelProto, path: str) -> None:
    """Raise ArtifactError where a trained tensor has another shape than in the graph, or a scale is not
    there.
    """
    shapes = {tensor.name: tuple(tensor.dims) for tensor in fp32.graph.initializer}
    wrong = [
        name for name, value in learned.state.items() if name in shapes and tuple(value.shape) != shapes[name]
    ]
    view = View(fp32)
    for layer in layout.layers:
        weight = view.nodes[layer].input[1]
        channels = shapes[weight][channel_axis(view.nodes[layer])]
        if weight not in learned.scales or learned.scales[weight].numel() not in (1, channels):
            wrong.append(weight)
    for tensor in layout.tensors:
        scale = learned.scales.get(tensor)
        if scale is None or scale.numel() != 1 or tensor not in learned.zero_points:
            wrong.append(tensor)
    if wrong:
        raise ArtifactError(
            f"{path}: its entry 'quantized' is damaged (what it has of {wrong[0]} does not fit the graph)."
            " Train again: distill train --qat"
        )


def _another_graph(checkpoint: Checkpoint, trained_at: int, fp32: ModelProto) -> str:
    """The line for a graph that is not the trained one: the usual reason is the opset."""
    opset = next(each.version for each in fp32.opset_import if not each.domain)
    advice = (
        f"It was trained at opset {trained_at}: give --opset {trained_at}"
        if opset != trained_at
        else "Export with the versions in its lineage, or train again with these"
    )
    found = f"the graph of this export (opset {opset}) is not the one that was trained"
    return f"{checkpoint.path}: {found}. {advice}"


def on_grid(layer: str, scales: Mapping[str, np.ndarray], view: View) -> Int8Weight:
    """A layer's float weight in steps of its trained scales, rounded as in training."""
    node = view.nodes[layer]
    weight, mine = view.constant(node.input[1]), scales[node.input[1]]
    axis = channel_axis(node)
    steps = np.rint(weight / along(mine, axis, weight.ndim))
    return Int8Weight(np.clip(steps, -LARGEST, LARGEST).astype(np.int8), mine)


def range_of(scale: float, zero: int, unsigned: bool) -> Range:
    """The range to which export.int8.quantize gives this scale and zero point; exact, products of a float32
    and a byte fit float64.
    """
    return (
        Range(-zero * scale, (255 - zero) * scale) if unsigned else Range(-LARGEST * scale, LARGEST * scale)
    )


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and bytes of a state dict."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
