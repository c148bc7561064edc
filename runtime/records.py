"""What an artifact's metadata records: how it was quantized, what was checked, how its plan was built.

In:  JSON objects, as they are stored in a file.
Out: frozen dataclasses, every value of the type its field declares; and the objects again.
Elsewhere: the metadata they are part of, its schema and its seal (runtime.artifact).

None means not known or not measured. An entry that this version does not know is kept in `more`, and written
again.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, TypeVar, Union

from .errors import ArtifactError

R = TypeVar("R", bound="Record")


@dataclass(frozen=True, kw_only=True)
class Record:
    """A JSON object with known entries; a subclass declares them."""

    more: dict[str, Any] = field(default_factory=dict)
    """Entries that this version does not know."""

    @classmethod
    def from_dict(cls: type[R], values: Any, where: str) -> R:
        """The record in a JSON object. where: the words for it in messages.

        Raises ArtifactError when it is not an object, or when an entry is of another type than declared.
        """
        if not isinstance(values, Mapping):
            raise ArtifactError(f"{where}: expected a JSON object, found {_shown(values)}. Export it again")
        kinds = _kinds(cls)
        known = {
            name: typed(value, kinds[name], f"{where}.{name}")
            for name, value in values.items()
            if name in kinds
        }
        return cls(**known, more={name: value for name, value in values.items() if name not in kinds})

    def to_dict(self) -> dict[str, Any]:
        """The JSON object; null where something is not known."""
        known = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "more"}
        return {name: _plain(value) for name, value in known.items()} | self.more


@dataclass(frozen=True, kw_only=True)
class FileHash(Record):
    """A file that something was made from."""

    file: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Agreement(Record):
    """How two sets of logits for the same images compare."""

    images: int | None = None
    max_abs: float | None = None
    """Largest difference between two logits."""
    logit_scale: float | None = None
    """Largest |logit| of the reference, at least 1."""
    top1_agreement: float | None = None
    """Share of images with the same best class, percent."""
    atol: float | None = None
    """Largest difference allowed, as a share of the scale."""
    float64_max_abs: float | None = None
    """Largest difference to torch's network in float64, where fp32 was further apart than allowed and only
    rounding explains it."""
    torch_float64_max_abs: float | None = None
    """That of torch's own fp32 logits."""
    batch_sizes: list[int] | None = None
    batch_spread: float | None = None
    """Largest difference between an image alone and the same image in a batch."""


@dataclass(frozen=True, kw_only=True)
class WorstClass(Record):
    """The class that loses most top-1."""

    class_name: str | None = None
    index: int | None = None
    images: int | None = None
    classes: int | None = None
    """Classes among the evaluation images, for which the interval holds at once."""
    reference_top1: float | None = None
    candidate_top1: float | None = None
    drop_points: float | None = None
    drop_low_points: float | None = None
    drop_high_points: float | None = None
    right_to_wrong: int | None = None
    wrong_to_right: int | None = None


@dataclass(frozen=True, kw_only=True)
class Speed(Record):
    """Time of the file against the fp32 file's, where it was made."""

    ratio: float | None = None
    """Its time / fp32's time; below 1 it is faster."""
    low: float | None = None
    """The ratio's 95 % interval; None in files of earlier versions, as `high`."""
    high: float | None = None
    warnings: list[str] | None = None
    """Reasons not to quote the ratio."""
    pairs: int | None = None
    """Calls of each, one after the other."""
    batch: int | None = None
    threads: int | None = None
    engine: str | None = None

    @property
    def pays(self) -> bool | None:
        """Is the file faster than fp32? None where nobody can tell: not measured, an interval that holds 1,
        or a machine that was disturbed.
        """
        if not self.ratio or self.warnings:
            return None
        low, high = self.low or self.ratio, self.high or self.ratio
        return None if low < 1 < high else self.ratio < 1


@dataclass(frozen=True, kw_only=True)
class Judged(Record):
    """The candidate, a file in int8 or fp16, against the reference, the fp32 student in torch, on the
    evaluation images.
    """

    images: int | None = None
    reference_top1: float | None = None
    """Top-1 of the fp32 student, percent."""
    candidate_top1: float | None = None
    """Top-1 of the file, percent."""
    drop: float | None = None
    """reference_top1 - candidate_top1, points."""
    drop_points: float | None = None
    drop_low_points: float | None = None
    drop_high_points: float | None = None
    right_to_wrong: int | None = None
    wrong_to_right: int | None = None
    mcnemar_p: float | None = None
    agreement: float | None = None
    """Share of images for which both choose the same class, percent."""
    kl_nats: float | None = None
    max_abs: float | None = None
    fp32_onnx_top1: float | None = None
    """Top-1 of the fp32 ONNX file between the two, percent."""
    fp32_onnx_right_to_wrong: int | None = None
    fp32_onnx_wrong_to_right: int | None = None
    worst_class: WorstClass | None = None
    max_drop: float | None = None
    """Points that were allowed."""
    min_agreement: float | None = None
    """Percent of agreement that was asked for; None where none was."""
    consistency: dict[str, Any] | None = None
    batch_spread: float | None = None
    repeatability: dict[str, Any] | None = None
    speed: Speed | None = None


@dataclass(frozen=True, kw_only=True)
class EngineCheck(Record):
    """A plan against its ONNX file, on the GPU it was built on."""

    provider: str | None = None
    noise: bool | None = None
    """Compared on noise, because there were no labeled images."""
    images: int | None = None
    agreement: float | None = None
    """Share of images for which both choose the same class, percent."""
    max_abs: float | None = None
    rms: float | None = None
    """Root mean square of the difference, as a share of the logits' scale."""
    consistency: dict[str, Any] | None = None
    top1: float | None = None
    """Top-1 of the plan, percent; None without labeled images."""
    onnx_top1: float | None = None
    drop: float | None = None
    """Points of top-1 that the plan loses against the fp32 student."""
    right_to_wrong: int | None = None
    wrong_to_right: int | None = None
    mcnemar_p: float | None = None
    kl_nats: float | None = None


@dataclass(frozen=True, kw_only=True)
class Verification(Record):
    """What was checked before a file was written."""

    merged: Agreement | None = None
    """The network with merged branches against the one that was trained."""
    parity: Agreement | None = None
    """The fp32 ONNX file against torch."""
    lowered: Judged | None = None
    """The file in int8 or fp16 against the fp32 student."""
    engine: EngineCheck | None = None
    """The plan against its ONNX file."""


@dataclass(frozen=True, kw_only=True)
class Quantization(Record):
    """How a file in int8 or fp16 came about."""

    method: str | None = None
    """How ranges were chosen: minmax, percentile, entropy, mse, or trained."""
    percentile: float | None = None
    chosen_from: list[dict[str, Any]] | None = None
    """The scores of all methods, where one was chosen by them."""
    placement: str | None = None
    """cpu or tensorrt."""
    images: list[list[str]] | None = None
    """[name, SHA-256] of every calibration image."""
    data: str | None = None
    """random, where calibration was by noise."""
    data_sha256: str | None = None
    seed: int | None = None
    selection: int | None = None
    """Number of selection images, which chose a method and ranked layers."""
    not_for_accuracy: bool = False
    """The ranges are those of noise."""
    weight_scales: str | None = None
    bias_correction: bool | None = None
    equalized_pairs: int | None = None
    scales: int | None = None
    tensors: int | None = None
    int8_layers: int | None = None
    float_layers: dict[str, str] | None = None
    """Layer -> why it is not in int8."""
    exclude: list[str] | None = None
    budget: Budget | None = None
    draws: dict[str, Any] | None = None
    """Accuracy over several draws of calibration images."""
    fp16: dict[str, Any] | None = None
    """What became fp16, and what stayed fp32 for which reason."""


@dataclass(frozen=True, kw_only=True)
class Budget(Record):
    """Which layers the accuracy budget left in int8."""

    int8_macs_percent: float | None = None
    """Share of the multiply-accumulates in int8, percent."""
    float_layers: list[str] | None = None
    """Layers that went back to float to hold the budget."""


@dataclass(frozen=True, kw_only=True)
class EngineFlags(Record):
    """The settings a plan was built with."""

    opt_level: int | None = None
    hardware_compat: str | None = None
    version_compat: bool | None = None
    strip_weights: bool | None = None
    sparsity: bool | None = None
    tf32: bool | None = None
    workspace_bytes: int | None = None
    """None: the whole device."""


@dataclass(frozen=True, kw_only=True)
class EngineRecord(Record):
    """Which TensorRT built a plan where, from which ONNX file."""

    flavor: str | None = None
    """tensorrt or rtx."""
    version: str | None = None
    plan_sha256: str | None = None
    plan_bytes: int | None = None
    platform: str | None = None
    gpu: str | None = None
    """None where no GPU was at hand."""
    compute_capability: str | None = None
    driver: str | None = None
    inputs: list[dict[str, Any]] | None = None
    outputs: list[dict[str, Any]] | None = None
    profiles: list[dict[str, int]] | None = None
    """Batch sizes {min, opt, max} of each profile."""
    flags: EngineFlags = field(default_factory=EngineFlags)
    onnx: FileHash | None = None
    layers: dict[str, Any] | None = None
    """What became of the layers (export.trt.layers)."""
    timing_cache: dict[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)
    builder_warnings: list[str] | None = None
    state: str | None = None
    """"built, not run", or "run"."""
    build_seconds: float | None = None
    build_peak_mib: float | None = None


FILE = dict[str, Any]
RECORDED: dict[str, Any] = {
    "training.metrics": dict[str, Any],
    **{f"lineage.{name}": FILE for name in ("onnx", "checkpoint", "student", "teacher", "fp32_onnx")},
    **{
        f"lineage.{name}.{entry}": str
        for name in ("onnx", "checkpoint", "student", "teacher", "fp32_onnx")
        for entry in ("file", "sha256")
    },
    **{"lineage.data": dict[str, Any], "lineage.versions": dict[str, str], "lineage.recipe": dict[str, Any]},
    **{f"lineage.data.{split}_{entry}": str for split in ("train", "val") for entry in ("spec", "sha256")},
    **{f"lineage.data.{split}_images": int for split in ("train", "val")},
    **{"lineage.data.evaluation": dict[str, Any], "lineage.data.evaluation.spec": str},
    **{"lineage.data.evaluation.sha256": str, "lineage.data.evaluation.judged_on": dict[str, Any]},
    "lineage.data.evaluation.judged_on.sha256": str,
    **{f"lineage.data.evaluation.judged_on.{entry}": int for entry in ("images", "seed")},
}
"""What the entries of free form are that are read again; null is any of them."""


def require_recorded(values: Mapping[str, Any], where: str) -> None:
    """Raise ArtifactError for entries named in RECORDED that hold something else. where: the file's name."""
    for entry, kind in RECORDED.items():
        found: Any = values
        for name in entry.split("."):
            found = found.get(name) if isinstance(found, Mapping) else None
        if found is not None:
            typed(found, kind, f"{where}: {entry}")


def _kinds(record: type) -> dict[str, Any]:
    """Entry -> declared type."""
    hints = typing.get_type_hints(record)
    return {each.name: hints[each.name] for each in fields(record) if each.name != "more"}


def typed(value: Any, kind: Any, where: str) -> Any:
    """`value` as `kind` declares it. where: the words for it. Raises ArtifactError naming the entry."""
    options = [each for each in typing.get_args(kind) if each is not types.NoneType]
    if typing.get_origin(kind) in (Union, types.UnionType):
        return None if value is None else typed(value, options[0], where)
    if is_dataclass(kind) and isinstance(kind, type) and issubclass(kind, Record):
        return kind.from_dict(value, where)
    origin = typing.get_origin(kind)
    if origin is list and isinstance(value, list):
        return [typed(each, options[0], f"{where}[{place}]") for place, each in enumerate(value)]
    if origin is dict and isinstance(value, Mapping):
        return {str(name): typed(each, options[1], f"{where}.{name}") for name, each in value.items()}
    if kind is Any:
        return value
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    is_plain = origin is None and isinstance(kind, type)  # on Python 3.10 list[str] is a type, too
    if is_plain and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    words: dict[Any, str] = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    expected = words.get(kind, {list: "a list", dict: "a JSON object"}.get(origin or kind, str(kind)))
    raise ArtifactError(
        f"{where}: expected {expected}, found {_shown(value)}. Its metadata is damaged: export it again"
    )


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, Record) else value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
