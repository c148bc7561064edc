"""Write and read the checkpoint, side by side.

In:  a network's weights with architecture, preprocessing, class names, metrics and lineage; or any .pth a
user has.
Out: `best.pth` (weights and what they mean) and `last.pth` (that, and all a resumed run needs); both load
     with `torch.load(weights_only=True)`, so no code in a file is ever executed.
Elsewhere: building the network (`distill.models.build`), older names of published weights
(distill.models.convert), what the trainer's state holds (distill.training.trainer).
"""

from __future__ import annotations

import argparse
import importlib
import io
import pathlib
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from runtime import files
from runtime.errors import ArtifactError, UsageError
from runtime.preprocess import Preprocess
from runtime.recorded import found_again, local_data

if TYPE_CHECKING:
    from .models.names import Network

SCHEMA = 1
MARK = "large2small_checkpoint"
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "params_ema", "ema", "averaged_model")
"""Keys under which other projects keep averaged weights, which are the better ones."""
WRAPPERS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "module"),
    *("params", "student"),
)
"""Keys under which they keep the others."""
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "student.", "ema_model.")
"""What names begin with when a network was wrapped: in parallel, compiled, as a part of another."""
CODE = ("GLOBAL", "call reduce", "create new object", "Can only build")
"""Words of torch's weights-only reader when it meets a function or class it will not call."""
FIT, BROKEN = "checksums fit", "broken: "
"""What `checksums` says, or begins with."""
MOST_UNPACKED = 2**26
"""Bytes that the parts of a file may have together in any case."""
MOST_PACKED = 20
"""Above that, how often its own size: weights hardly shrink when they are packed."""
KINDS: dict[str, type | tuple[type, ...]] = {
    "model": str,
    "model_args": dict,
    "state_dict": dict,
    "class_names": (list, type(None)),
    "metrics": dict,
    "lineage": dict,
    "quantized": (dict, type(None)),
    "state": (dict, type(None)),
    "role": str,
}
"""What the entries of our file are."""
LINEAGE: dict[str, type] = {
    **dict.fromkeys(("data", "teacher", "student", "recipe", "versions", "fitted_from"), dict),
    **dict.fromkeys(("data.train_spec", "data.val_spec", "data.train_sha256", "data.val_sha256"), str),
    **dict.fromkeys(("teacher.file", "teacher.sha256", "student.file", "student.sha256"), str),
    "converted": list,
}
"""What the entries of a lineage are that are read again; None is any of them."""
DEEPEST = 16
"""Lists and dictionaries inside one another, in what a file says beside its weights."""


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
    if values[MARK] != SCHEMA:
        raise ArtifactError(
            f"{path}: checkpoint schema {values[MARK]}; this version reads {SCHEMA}. "
            "Install the large2small that wrote it"
        )
    known = {f.name for f in fields(Checkpoint)} - {"preprocess", "path"}
    try:
        for name, kind in KINDS.items():
            if name in values and not isinstance(values[name], kind):
                raise TypeError(f"{name} is a {type(values[name]).__name__}")
        _require_typed(values, path)
        return Checkpoint(
            **{k: v for k, v in values.items() if k in known},
            preprocess=Preprocess.from_dict(values["preprocess"]),
            path=str(path),
        )
    except (TypeError, KeyError, UsageError) as error:
        raise ArtifactError(f"{path}: damaged checkpoint ({error})") from error


def _require_typed(values: Mapping[str, Any], path: str | Path) -> None:
    """Raise TypeError for entries of our file that hold other values than they should, ArtifactError for
    weights that are not plain numbers.
    """
    for key, tensor in values["state_dict"].items():
        if not isinstance(key, str) or not _is_tensor(tensor):
            raise TypeError(f"state_dict: {key!r} is a {type(tensor).__name__}, not a tensor")
        _require_plain(tensor, f"{path}: {key}")
    if not all(isinstance(name, str) for name in values.get("class_names") or ()):
        raise TypeError("class_names holds more than names")
    for name in ("model_args", "metrics", "lineage"):
        _require_simple(values.get(name) or {}, name)
    for entry, kind in LINEAGE.items():
        found = _at(values.get("lineage"), tuple(entry.split(".")))
        if found is not None and not isinstance(found, kind):
            raise TypeError(f"lineage.{entry} is a {type(found).__name__}")
    for line in _at(values.get("lineage"), ("converted",)) or ():
        if not isinstance(line, str):
            raise TypeError(f"lineage.converted holds a {type(line).__name__}")


def _require_simple(value: Any, where: str, depth: int = 0) -> None:
    """Raise TypeError for anything but text, numbers, lists and dictionaries of them, DEEPEST at most."""
    if depth > DEEPEST:
        raise TypeError(f"{where} is nested more than {DEEPEST} deep")
    if isinstance(value, dict):
        for key, each in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where} has a key {key!r}")
            _require_simple(each, f"{where}.{key}" if depth < 3 else where, depth + 1)
    elif isinstance(value, (list, tuple)):
        for each in value:
            _require_simple(each, where, depth + 1)
    elif value is not None and not isinstance(value, (str, bool, int, float)):
        raise TypeError(f"{where} is a {type(value).__name__}")


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
        from .models import (  # here: models import timm, reading a file does not need it
            convert,
            preprocess_of,
        )

        model = self.require_name(model, flag)
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
        if model is not None and model != checkpoint.model:
            raise ArtifactError(
                f"{self.path}: holds {checkpoint.model}, not {model}. Leave the name out, or give the right"
                " file"
            )
        return checkpoint


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
    from . import models  # here, as above

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


def read_file(path: str | Path, checked: bool = True) -> dict[str, Any]:
    """The raw dict in a .pth, .pt, .th or .safetensors file; pickled code is refused, never run.

    checked: refuse a file that was changed since it was written, for which it is read once more.
    """
    path = Path(path)
    if not path.is_file():
        raise files.no_checkpoint(path)
    _require_bounded(path)
    found = checksums(path) if checked else None
    if found and found.startswith(BROKEN):
        raise ArtifactError(f"{path}: {found.removeprefix(BROKEN)}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        with torch.serialization.safe_globals(_plain_types()):
            values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if any(words in str(error) for words in CODE):  # torch's text names weights_only for a cut file too
            raise ArtifactError(
                f"{path}: contains pickled code, which is never run. Save only the weights: "
                "torch.save(model.state_dict(), FILE)"
            ) from error
        raise ArtifactError(f"{path}: truncated or not a checkpoint ({_short(error)})") from error
    except Exception as error:  # zip, unicode, index and runtime errors, according to where the file is cut
        raise ArtifactError(f"{path}: truncated or not a checkpoint ({_short(error)})") from error
    if not isinstance(values, dict):
        raise ArtifactError(f"{path}: holds a {type(values).__name__}; expected a dict of weights")
    return values


def _ordinary_dict(*_default: Any) -> dict[Any, Any]:
    return {}


def _plain_types() -> list[Any]:
    """Types that many keep beside the weights, whose making runs no code of the file: settings, counters,
    NumPy's scalars and arrays of numbers.
    """
    import numpy as np

    kinds = (np.float64, np.float32, np.float16, np.int64, np.int32, np.uint8, np.bool_)
    types: list[Any] = [argparse.Namespace, list, dict, int, float, str]
    types.append((_ordinary_dict, "collections.defaultdict"))  # which torch's reader would not fill
    types += [pathlib.PurePosixPath, (pathlib.PurePosixPath, "pathlib.PosixPath"), np.dtype, np.ndarray]
    types += [type(np.dtype(kind)) for kind in kinds]
    multiarray: Any = importlib.import_module(
        "numpy._core.multiarray" if hasattr(np, "_core") else "numpy.core.multiarray"
    )
    for function in ("scalar", "_reconstruct"):
        made = getattr(multiarray, function)
        types += [(made, f"numpy.core.multiarray.{function}"), (made, f"numpy._core.multiarray.{function}")]
    return types


def checksums(path: Path) -> str | None:
    """FIT, or BROKEN and why: what the CRC-32 of each part of a torch file says; torch does not look at it.

    None where there are none: files of other formats, and those of torch with `compute_crc32` off. Raises
    ArtifactError for a file that would not be read at all (`_require_bounded`).
    """
    _require_bounded(path)
    try:
        if not zipfile.is_zipfile(path):
            return None
        with zipfile.ZipFile(path) as parts:
            if all(part.CRC == 0 for part in parts.infolist()):
                return None
            damaged = parts.testzip()
    except (zipfile.BadZipFile, RuntimeError, OSError, EOFError, ValueError, zlib.error) as error:
        reason = " ".join(str(error).split())
        return f"{BROKEN}changed since it was written ({reason}). Copy it again from its source"
    if damaged:
        return (
            f"{BROKEN}part {damaged} was changed since it was written (its CRC-32 does not fit). Copy it"
            " again from its source"
        )
    return FIT


def _require_bounded(path: Path) -> None:
    """Raise ArtifactError for a zip whose parts would be far larger than the file: torch packs nothing, and
    a packed part of a few kilobytes can fill the memory.
    """
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as parts:
            size = sum(part.file_size for part in parts.infolist())
    except (zipfile.BadZipFile, RuntimeError, OSError, EOFError, ValueError):
        return  # what cannot be listed is refused by `checksums` and by torch
    if size > max(MOST_UNPACKED, MOST_PACKED * path.stat().st_size):
        raise ArtifactError(
            f"{path}: {path.stat().st_size:,} bytes that unpack to {size:,}; torch writes its files unpacked."
            " Save it again: torch.save(torch.load(FILE, weights_only=True), OTHER)"
        )


def unwrap(
    values: Mapping[str, Any], name: str, entry: str = ""
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Weights out of another project's file, and a list of what was chosen and renamed for the user to read.

    entry: which entry to take, nested ones with points (`ema.module`); by default averaged weights before
    others. Raises ArtifactError for a file or an entry without weights, and for tensors that are not plain
    numbers.
    """
    weights, notes = _named_entry(values, name, entry) if entry else _likely_entry(values, name)
    state_dict = {key: value for key, value in weights.items() if isinstance(key, str) and _is_tensor(value)}
    for key, value in state_dict.items():
        _require_plain(value, f"{name}: {key}")
    while prefix := next((each for each in PREFIXES if all(key.startswith(each) for key in state_dict)), ""):
        state_dict = {key[len(prefix) :]: value for key, value in state_dict.items()}
        notes.append(f"prefix {prefix!r} removed from {len(state_dict)} names")
    return _without_backbone(state_dict, notes)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(
        isinstance(key, str) and _is_tensor(each) for key, each in value.items()
    )


def _likely_entry(values: Mapping[str, Any], name: str) -> tuple[Mapping[str, Any], list[str]]:
    """The weights of a file and what to say of the choice. Wrappers may be nested (`{"ema": {"module":
    ...}}`).
    """
    found = _entries(values)
    averaged = [each for each in found if any(part in AVERAGED for part in each)]
    raw = [each for each in found if each not in averaged and any(part in WRAPPERS for part in each)]
    ranked = averaged + raw
    if not ranked and _holds_tensors(values):
        return values, []
    if not ranked and len(found) != 1:
        listed = ", ".join(map(str, list(values)[:5]))
        several = "; name one: --checkpoint-key " + " or ".join(".".join(each) for each in found[:3])
        raise ArtifactError(f"{name}: holds no weights (entries: {listed}){several if found else ''}")
    chosen = (ranked or found)[0]
    note = f"taken from entry {'.'.join(chosen)!r}"
    if averaged and raw:
        other = ".".join(raw[0])
        note += f", the averaged weights; {other!r} holds the others (--checkpoint-key {other})"
    return _at(values, chosen), [note]


def _entries(values: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Where in the file dictionaries with tensors stand, down to the third level."""
    found: list[tuple[str, ...]] = []
    waiting: list[tuple[tuple[str, ...], Mapping[str, Any]]] = [((), values)]
    while waiting:
        path, inside = waiting.pop(0)
        if path and _holds_tensors(inside):
            found.append(path)
        elif len(path) < 3:
            waiting += [
                ((*path, key), each)
                for key, each in inside.items()
                if isinstance(key, str) and isinstance(each, Mapping) and not key.startswith("optim")
            ]
    return found


def _named_entry(values: Mapping[str, Any], name: str, entry: str) -> tuple[Mapping[str, Any], list[str]]:
    inside = values[entry] if entry in values else _at(values, tuple(entry.split(".")))
    if not _holds_tensors(inside):
        known = ", ".join(".".join(each) for each in _entries(values)) or "none"
        raise ArtifactError(f"{name}: has no weights in an entry {entry!r}. Entries with weights: {known}")
    return inside, [f"taken from entry {entry!r}"]


def _at(values: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _require_plain(tensor: torch.Tensor, name: str) -> None:
    """Raise ArtifactError for a tensor that is not strided real numbers: copying it would fail, or lose a
    part of it.
    """
    kinds = {
        "sparse": tensor.layout != torch.strided,
        "quantized": tensor.is_quantized,
        "complex": tensor.is_complex(),
    }
    for kind, holds in kinds.items():
        if holds:
            raise ArtifactError(
                f"{name} is a {kind} tensor; expected dense real numbers. Save the network in float32"
            )


def _without_backbone(
    weights: dict[str, torch.Tensor], notes: list[str]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """`backbone.` and `head.` beside each other, as OpenMMLab writes: the backbone's names as they are in the
    network, and a linear head as `fc`.
    """
    if not any(key.startswith("backbone.") for key in weights) or not all(
        key.startswith(("backbone.", "head.", "neck.", "data_preprocessor.")) for key in weights
    ):
        return weights, notes
    notes.append("prefix 'backbone.' removed, and 'head.' where a linear layer follows")
    renamed = {}
    for key, value in weights.items():
        if not key.startswith("data_preprocessor."):
            renamed[key.removeprefix("backbone.").replace("head.fc.", "fc.")] = value
    return renamed, notes


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
    model.load_state_dict(given)


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """The checkpoint without its weights, as plain values."""
    weights = ("state_dict", "quantized", "state")
    values = {f.name: getattr(checkpoint, f.name) for f in fields(Checkpoint) if f.name not in weights}
    return values | {"preprocess": checkpoint.preprocess.to_dict()}


def _first(keys: list[str]) -> str:
    return f" (first: {keys[0]})" if keys else ""


def _short(error: BaseException) -> str:
    """The reason without the advice that torch wraps around it (to load with weights_only=False)."""
    text = str(error).rpartition("WeightsUnpickler error:")[2].partition("Check the documentation")[0]
    return " ".join(text.split())[:160] or type(error).__name__
