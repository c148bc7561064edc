"""A model folder for Triton Inference Server: what its config says, and writing it whole or not at all.

In:  `Model`, what is known about an artifact; `Serving`, how it is to be served.
Out: the text of config.pbtxt; REPOSITORY/NAME with config.pbtxt, labels.txt and VERSION/model.plan or
model.onnx.
Elsewhere: reading the artifact (export.commands.triton).

The text is a message ModelConfig in protobuf's text format (model_config.proto of
triton-inference-server/common). It is written here and not through `tritonclient`, which brings grpc and
about 50 MB for these forty lines; the tests read it by the schema.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from runtime import files
from runtime.errors import GateError, MissingError, UsageError

CONFIG, LABELS = "config.pbtxt", "labels.txt"

PLATFORMS = {".plan": ("tensorrt_plan", "tensorrt"), ".onnx": ("onnxruntime_onnx", "onnxruntime")}
"""Kind of file -> Triton's platform and backend."""

TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16"}


class Tensor(NamedTuple):
    """An input or output; shape with the batch first, -1 where any size goes."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Word(str):
    """A value that text format writes without quotes: an enum's."""


@dataclass(frozen=True)
class Model:
    """What is known about an artifact."""

    path: Path
    inputs: list[Tensor]
    outputs: list[Tensor]
    labels: list[str] | None
    parameters: dict[str, str] = field(default_factory=dict)
    """Strings the server keeps with the model: preprocessing, lineage."""
    profiles: list[dict[str, int]] = field(default_factory=list)
    """A plan's batch sizes: min, opt and max of every optimization profile."""

    @property
    def dynamic(self) -> bool:
        """Whether the number of images is free in every tensor; only then does Triton put requests
        together.
        """
        return all(tensor.shape[0] == -1 for tensor in (*self.inputs, *self.outputs))

    @property
    def one_list(self) -> bool:
        """Whether the scores are one list per answer; the labels of several lists laid end to end would be
        wrong.
        """
        return self.dynamic or self.outputs[0].shape[0] == 1


@dataclass(frozen=True)
class Serving:
    """How it is to be served."""

    name: str
    max_batch: int
    """0: every request is a whole batch of the model's fixed size."""
    device: str
    """gpu or cpu."""
    instances: int = 1
    """Copies that run at once, on each GPU."""
    preferred: Sequence[int] = ()
    """Batch sizes to wait for."""
    max_delay_us: int = 500
    """Microseconds a request waits for others."""


def config(model: Model, serving: Serving) -> str:
    """The text of config.pbtxt."""
    platform, backend = PLATFORMS[model.path.suffix]
    group: dict[str, Any] = {"count": serving.instances, "kind": Word(f"KIND_{serving.device.upper()}")}
    if len(model.profiles) > 1:
        group["profile"] = [str(index) for index in range(len(model.profiles))]
    message: dict[str, Any] = {
        "name": serving.name,
        "platform": platform,
        "backend": backend,
        "max_batch_size": serving.max_batch,
        "default_model_filename": f"model{model.path.suffix}",
        "input": [_tensor(each, serving) for each in model.inputs],
        "output": [
            _tensor(each, serving, labeled=i == 0 and bool(model.labels) and model.one_list)
            for i, each in enumerate(model.outputs)
        ],
        "instance_group": [group],
    }
    if serving.max_batch:
        message["dynamic_batching"] = {
            **({"preferred_batch_size": list(serving.preferred)} if serving.preferred else {}),
            "max_queue_delay_microseconds": serving.max_delay_us,
        }
    message["parameters"] = [
        {"key": key, "value": {"string_value": value}} for key, value in sorted(model.parameters.items())
    ]
    return text_format(message)


def _tensor(tensor: Tensor, serving: Serving, labeled: bool = False) -> dict[str, Any]:
    dims = tensor.shape[1:] if serving.max_batch else tensor.shape
    return {
        "name": tensor.name,
        "data_type": Word(TYPES[tensor.dtype]),
        "dims": list(dims),
        **({"label_filename": LABELS} if labeled else {}),
    }


def text_format(message: Mapping[str, Any], indent: str = "") -> str:
    """A message in protobuf's text format (protobuf.dev, text format): mappings are messages, lists repeated
    fields.
    """
    lines = []
    for name, value in message.items():
        repeated = value if isinstance(value, list) else [value]
        if all(isinstance(each, Mapping) for each in repeated):
            lines += [
                f"{indent}{name} {{\n{text_format(each, indent + '  ')}{indent}}}\n" for each in repeated
            ]
        else:
            words = ", ".join(map(_scalar, repeated))
            lines.append(f"{indent}{name}: {f'[{words}]' if isinstance(value, list) else words}\n")
    return "".join(lines)


def _scalar(value: int | str) -> str:
    if isinstance(value, Word | int):
        return str(value)
    # a byte that is not plain ASCII as three octal digits, which any reader of the format takes
    return (
        '"'
        + "".join(
            f"\\{chr(byte)}" if byte in b'"\\' else chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}"
            for byte in value.encode()
        )
        + '"'
    )


def labels_text(labels: Sequence[str]) -> str:
    """labels.txt: one class a line. Raises UsageError for a name that would become two lines, or none."""
    wrong = next((name for name in labels if not name or name.splitlines() != [name]), None)
    if wrong is not None:
        raise UsageError(
            f"class name {wrong!r}: Triton's labels are lines of text, so a name must be one line. Rename the"
            " class"
        )
    return "".join(f"{name}\n" for name in labels)


def write(
    repository: Path, version: int, model: Model, serving: Serving, sha256: str, overwrite: bool
) -> list[Path]:
    """Make REPOSITORY/NAME, or replace its config, its labels and this version; all else in it stays. Returns
    the files of this version.

    sha256: of the artifact, which the copy must have. Everything is written in a folder beside it, which then
    takes its name, so that a server that polls the repository never sees half a model. Raises UsageError when
    it is there already.
    """
    target = repository / serving.name
    refuse(target, version, overwrite)
    with _staged(target) as folder:
        replaced = {CONFIG, LABELS, str(version)}
        for other in (
            each for each in (target.iterdir() if target.exists() else ()) if each.name not in replaced
        ):
            if other.is_dir():  # older versions, and what a server's owner put there, such as warmup/
                shutil.copytree(other, folder / other.name, copy_function=_link)
            else:
                _link(str(other), str(folder / other.name))
        model_file = folder / str(version) / f"model{model.path.suffix}"
        model_file.parent.mkdir()
        shutil.copyfile(model.path, model_file)
        if files.sha256(model_file) != sha256:
            raise GateError(
                f"{model.path}: changed while it was copied to {target}. Try again when nothing writes it"
            )
        if model.labels:
            files.write_text(folder / LABELS, labels_text(model.labels))
        files.write_text(folder / CONFIG, config(model, serving))
    return [
        target / CONFIG,
        *([target / LABELS] if model.labels else []),
        target / str(version) / model_file.name,
    ]


def refuse(target: Path, version: int, overwrite: bool) -> None:
    """Raise UsageError when the folder is there and not to be replaced, is not a model of Triton's, or has a
    later version.
    """
    if not target.exists():
        return
    if not overwrite:
        raise UsageError(
            f"{target} exists already. Add --overwrite to replace its config and this version, or choose"
            " another --name"
        )
    if not (target / CONFIG).is_file():
        raise UsageError(
            f"{target} has no {CONFIG}, so it is not a model of Triton's. Choose another --name or"
            " --repository"
        )
    newest = max(versions(target), default=0)
    if version < newest:
        raise UsageError(
            f"--version {version}: {target} has version {newest}, which Triton would go on serving. "
            f"Give --version {newest + 1}"
        )


def versions(target: Path) -> list[int]:
    """The versions in a model's folder, oldest first."""
    return sorted(int(each.name) for each in target.glob("*") if each.is_dir() and each.name.isdecimal())


@contextlib.contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """An empty folder that takes the target's name on success, and is gone after any failure."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(target.parent, target.name)
        with files.temporary_folder(target) as folder:
            yield folder
            files.put_in_place(folder, target)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise MissingError(
                f"{target}: no space left to write it. Free space or choose another --repository"
            ) from error
        raise UsageError(
            f"{target}: cannot be written ({error.strerror or error}). Choose another --repository"
        ) from error


def _link(source: str, destination: str) -> None:
    """The same file once more where the disk can do that, else a copy."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)
