"""The one reader of an ONNX file with the `onnx` package: whole, unchanged, with its weights inside.

In:  a file, or its bytes.
Out: the model; ArtifactError with one line on what is wrong with the file.
Elsewhere: its metadata alone, and where its weights are, without `onnx` (runtime.backends.onnx_file), the
seal (runtime.artifact), running it (runtime.predictor).
"""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, ValueInfoProto

from runtime.artifact import check_seal
from runtime.backends.onnx_file import require_inside
from runtime.backends.signature import Port
from runtime.backends.signature import require_classifier as require_ports
from runtime.errors import ArtifactError
from runtime.files import open_regular

AGAIN = "Copy it again from its source, or export again: distill export onnx CKPT"


def read_onnx(path: Path, *, check: bool = True) -> ModelProto:
    """The model in a file. check: hold its seal against its content, where it has one.

    Raises ArtifactError when the file cannot be read, was changed since it was written, is not ONNX, holds no
    graph, or names another file for weights of its own; UsageError for a folder, a pipe or a device.
    """
    try:
        with open_regular(path) as file:
            content = file.read()
    except OSError as error:
        raise ArtifactError(
            f"{path}: cannot be read ({error.strerror or error}). Expected a .onnx file"
        ) from error
    if check:
        check_seal(content, str(path))
    return parse(content, str(path))


def parse(content: bytes, name: str) -> ModelProto:
    """The model in a file's content. name is used in messages. Raises ArtifactError as `read_onnx`."""
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise ArtifactError(f"{name}: not an ONNX file, or cut short ({error}). {AGAIN}") from error
    if not model.graph.node:  # an empty file is a message too
        raise ArtifactError(f"{name}: holds no graph; not an ONNX file, or cut short. {AGAIN}")
    require_inside(content, name)
    return model


def require_classifier(model: ModelProto, name: str) -> None:
    """Raise ArtifactError unless the network takes one batch of images and gives logits first. name is used
    in messages.
    """
    weights = {each.name for each in model.graph.initializer}
    inputs = [_port(each) for each in model.graph.input if each.name not in weights]
    require_ports(name, inputs, [_port(each) for each in model.graph.output])


def _dtype(element_type: int) -> str:
    """numpy's word for an element type; unknown for one that is not said or that `onnx` does not have."""
    try:
        return str(onnx.helper.tensor_dtype_to_np_dtype(element_type).name)
    except KeyError:
        return "unknown"


def _port(value: ValueInfoProto) -> Port:
    kind = value.type.tensor_type
    dtype = _dtype(kind.elem_type)
    if not kind.HasField("shape"):
        return Port(value.name, dtype, None)
    return Port(value.name, dtype, [size.dim_value or None for size in kind.shape.dim])
