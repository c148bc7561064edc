"""Write and read the checkpoint, side by side.

In:  a network's weights with architecture, preprocessing, class names, metrics and lineage; or any .pth a
user has.
Out: `best.pth` (weights and what they mean) and `last.pth` (that, and all a resumed run needs); both load
     with `torch.load(weights_only=True)`, so no code in a file is ever executed.
Elsewhere: reading a file (distill.checkpoint.file), other projects' files (distill.checkpoint.foreign),
building the network (`distill.models.build`), older names of published weights (distill.models.convert), what
the trainer's state holds (distill.training.trainer).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from runtime import files
from runtime.errors import ArtifactError, UsageError
from runtime.preprocess import Preprocess
from runtime.recorded import found_again, local_data

from .file import BROKEN, checksums, read_file
from .foreign import unwrap
from .typed import require_typed

if TYPE_CHECKING:
    from ..models.names import Network

SCHEMA = 1
MARK = "large2small_checkpoint"


@dataclass
class Checkpoint:
    """Weights and everything needed to use them."""

    model: str
    """Architecture name, as timm spells it."""
    model_args: dict[str, Any]
    """Keyword arguments of the architecture besides num_classes."""
    state_dict: dict[str, torch.Tensor]
    preprocess: Preprocess
    class_names: list[str] | None
    """None in a foreign file: its class order is not known."""
    role: str = "student"
    """teacher, student, control or plain."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """At the epoch these weights are from; top1 and top5 in percent, loss in nats."""
    lineage: dict[str, Any] = field(default_factory=dict)
    """Data specs and fingerprints, teacher's file and SHA-256, recipe, versions."""
    quantized: dict[str, Any] | None = None
    """What quantization-aware training learned, as plain tensors and values (export.qat.trainer);
    `state_dict` stays the fp32 student."""
    state: dict[str, Any] | None = None
    """What a resumed run needs; only in last.pth."""
    path: str | None = None
    """Where it was read from."""

    @property
    def notes(self) -> list[str]:
        """What a person should know of the weights before using them: what was changed on the way, and what
        they are not.
        """
        notes = list(self.lineage.get("converted") or [])
        if self.quantized is not None:
            notes.append(
                "trained with --qat; used here is the fp32 student that training began with, not the int8"
                f" graph. Its accuracy: distill export onnx --int8 {self.path}"
            )
        return notes

    @property
    def num_classes(self) -> int | None:
        return len(self.class_names) if self.class_names else None

    def recorded_data(self, split: str, flag: str) -> str:
        """The data of `split` (train or val) that the file says it was trained with; empty when it says none.
        Where the run's folder was moved, what is in it and what moved along is found again.

        flag: where a user may type other data. Raises UsageError for data that a file may not name
        (runtime.recorded).
        """
        data = self.lineage.get("data")
        spec = data.get(f"{split}_spec") if isinstance(data, Mapping) else None
        if not isinstance(spec, str):
            return ""
        return local_data(found_again(spec, Path(str(self.path)).parent), str(self.path), flag)


def save(checkpoint: Checkpoint, path: str | Path) -> None:
    """Write atomically: a crash leaves the old file or the new one. Raises MissingError when the disk is
    full.
    """
    values = {f.name: getattr(checkpoint, f.name) for f in fields(Checkpoint) if f.name != "path"}
    values |= {MARK: SCHEMA, "preprocess": checkpoint.preprocess.to_dict()}
    buffer = io.BytesIO()  # torch's own file writer hides why a disk write failed
    torch.save(values, buffer)
    files.write_bytes(path, buffer.getvalue())


def load(path: str | Path, checked: bool = True) -> Checkpoint:
    """Read a checkpoint of this project. Raises ArtifactError for anything else; see `load_any` for foreign
    files.
    """
    return from_values(read_file(path, checked), path)


def from_values(values: Mapping[str, Any], path: str | Path) -> Checkpoint:
    """The checkpoint in the raw values of the file `path`. Raises ArtifactError when it is another's."""
    if MARK not in values:
        raise ArtifactError(f"{path}: not a large2small checkpoint. Name its architecture: --model NAME")
    schema = values[MARK]
    if type(schema) is not int or schema != SCHEMA:
        found = str(schema)[:20] if type(schema) is int else f"of type {type(schema).__name__}"
        raise ArtifactError(
            f"{path}: checkpoint schema {found}; this version reads {SCHEMA}. "
            "Install the large2small that wrote it"
        )
    known = {f.name for f in fields(Checkpoint)} - {"preprocess", "path"}
    try:
        require_typed(values, path)
        return Checkpoint(
            **{k: v for k, v in values.items() if k in known},
            preprocess=Preprocess.from_dict(values["preprocess"]),
            path=str(path),
        )
    except (TypeError, ValueError, KeyError, UsageError) as error:
        raise ArtifactError(f"{path}: damaged checkpoint ({' '.join(str(error).split())[:300]})") from error


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights, read once: ours, or that of another project."""

    path: Path
    values: Mapping[str, Any] = field(repr=False)

    @property
    def is_ours(self) -> bool:
        return MARK in self.values

    def require_name(self, model: str | None, flag: str) -> str:
        """The architecture of a foreign file. Raises UsageError where the user does not say it."""
        if model is None:
            raise UsageError(
                f"{self.path}: weights without a description. Say which architecture: {flag} NAME"
            )
        return model

    def as_model(
        self,
        model: str | None = None,
        model_args: Mapping[str, Any] | None = None,
        flag: str = "--model",
        entry: str = "",
    ) -> Checkpoint:
        """The weights as those of `model`; see `load_any`."""
        if self.is_ours:
            return self._as_ours(model, entry)
        from ..models import (  # here: models import timm, reading a file does not need it
            convert,
            names,
            preprocess_of,
        )

        model = names.canonical(self.require_name(model, flag))
        preprocess = preprocess_of(model, (model_args or {}).get("img_size", 0))
        state_dict, notes = unwrap(self.values, str(self.path), entry)
        state_dict, arguments, more = convert.convert(model, model_args or {}, state_dict)
        return Checkpoint(
            model=model,
            model_args=arguments,
            state_dict=state_dict,
            preprocess=preprocess,
            class_names=None,
            role="plain",
            lineage={"converted": notes + more},
            path=str(self.path),
        )

    def _as_ours(self, model: str | None, entry: str) -> Checkpoint:
        checkpoint = from_values(self.values, self.path)
        if entry:
            raise UsageError(
                f"{self.path}: a checkpoint of this project, whose weights have one place. Leave the name of"
                f" an entry ({entry}) out"
            )
        if model is not None and _architecture(model) != _architecture(checkpoint.model):
            raise ArtifactError(
                f"{self.path}: holds {checkpoint.model}, not {model}. Leave the name out, or give the right"
                " file"
            )
        return checkpoint


def _architecture(name: str) -> str:
    """The name without timm's owner and the tag of weights, which are those of the file."""
    return name.removeprefix("timm/").partition(".")[0]


def require_finite(weights: Mapping[str, torch.Tensor], whose: str) -> None:
    """Raise ArtifactError for weights that are NaN or infinite. whose: for the message."""
    if name := not_finite(weights):
        raise ArtifactError(f"{whose}: its weight {name} holds NaN or inf. Give another file")


def not_finite(weights: Mapping[str, torch.Tensor]) -> str:
    """The name of the first weight that holds NaN or infinity; empty where there is none."""
    real = {name: value for name, value in weights.items() if value.is_floating_point()}
    return next((name for name, value in real.items() if not value.isfinite().all()), "")


def open_file(path: str | Path) -> WeightsFile:
    """Read a file of weights. Raises as `read_file` does."""
    return WeightsFile(Path(path), read_file(path))


def load_any(
    path: str | Path,
    model: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    flag: str = "--model",
    entry: str = "",
) -> Checkpoint:
    """Read our checkpoint, or foreign weights (timm, torchvision, plain state dict, published .th) of
    architecture `model`.

    flag: what the user calls `model`, for the message; entry: which entry of a foreign file holds the weights
    (`unwrap`). What was changed on the way stands in
    lineage["converted"], and arguments that a foreign file shows (kernels, merged or not) are in model_args.
    Raises UsageError when a foreign file comes without `model`, ArtifactError when the architectures differ.
    """
    return open_file(path).as_model(model, model_args, flag, entry)


def load_published(network: Network, model_args: Mapping[str, Any], way_out: str) -> Checkpoint:
    """Weights that are published under a name, with the classifier they were published with.

    model_args: of the architecture; way_out: the flag that names a file instead. Raises MissingError where
    they cannot be fetched, ArtifactError where the file is damaged or does not fit.
    """
    from .. import models  # here, as above

    models.arguments.require_own(network.architecture, model_args)  # before anything is fetched
    file = models.names.weights_of(network, way_out)
    found = checksums(file)
    if found and found.startswith(BROKEN):
        raise ArtifactError(f"{file}: {found.removeprefix(BROKEN)}, or remove it to fetch it again")
    built = models.published(network, model_args, file)
    return Checkpoint(
        model=network.architecture,
        model_args=dict(model_args),
        state_dict=built.state_dict(),
        preprocess=models.preprocess_from(network.config),
        class_names=network.class_names,
        role="plain",
        lineage={"converted": [f"published weights of {network.name}"]},
    )


def load_weights(model: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Fill `model` from the checkpoint; every name and shape must match, or ArtifactError names the first
    that does not.
    """
    expected, given = model.state_dict(), dict(checkpoint.state_dict)
    for key in expected:
        if key.endswith(
            ".num_batches_tracked"
        ):  # absent in files older than torch 0.4.1; only momentum=None uses it
            given.setdefault(key, expected[key])
    where = f"{checkpoint.path or 'checkpoint'}: does not fit {checkpoint.model}"
    missing = [key for key in expected if key not in given]
    extra = [key for key in given if key not in expected]
    if missing or extra:
        advice = (
            "It is merged for inference: build the network with deploy=true, or train from the unmerged file"
            if checkpoint.model_args.get("deploy")
            else "Give the architecture it was trained with"
        )
        raise ArtifactError(
            f"{where}: {len(missing)} weights missing{_first(missing)}, {len(extra)} unknown{_first(extra)}. "
            f"{advice}"
        )
    for key, value in expected.items():
        if value.shape != given[key].shape:
            raise ArtifactError(
                f"{where}: {key} is {tuple(given[key].shape)} in the file, {tuple(value.shape)} in the"
                " network. Give the architecture and number of classes it was trained with"
            )
        if value.is_floating_point() and not given[key].is_floating_point():
            kind = str(given[key].dtype).removeprefix("torch.")
            raise ArtifactError(
                f"{where}: {key} is {kind} in the file, and the network computes with real numbers. Save it"
                " in float32"
            )
    model.load_state_dict(given)


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """The checkpoint without its weights, as plain values."""
    weights = ("state_dict", "quantized", "state")
    values = {f.name: getattr(checkpoint, f.name) for f in fields(Checkpoint) if f.name not in weights}
    return values | {"preprocess": checkpoint.preprocess.to_dict()}


def _first(keys: list[str]) -> str:
    return f" (first: {keys[0]})" if keys else ""
