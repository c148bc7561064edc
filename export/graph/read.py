"""The one reader of an ONNX file with the `onnx` package: whole, unchanged, with its weights inside.

In:  a file, or its bytes.
Out: the model; ArtifactError with one line on what is wrong with the file.
Elsewhere: its metadata alone, without `onnx` (runtime.backends.onnx_file), the seal (runtime.artifact),
running it (runtime.predictor).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from runtime.artifact import check_seal
from runtime.errors import ArtifactError

AGAIN = "Copy it again from its source, or export again: distill export onnx CKPT"


def read_onnx(path: Path, *, check: bool = True) -> ModelProto:
    """The model in a file. check: hold its seal against its content, where it has one.

    Raises ArtifactError when the file cannot be read, was changed since it was written, is not ONNX, holds no
    graph, or names another file for weights of its own.
    """
    try:
        content = path.read_bytes()
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
    outside = next((each.name for each in _tensors_of(model) if _is_outside(each)), None)
    if outside is not None:
        raise ArtifactError(
            f"{name}: weights such as {outside} are in another file, which no seal covers and which is easily"
            " left behind. Put them inside: onnx.save(onnx.load(FILE), NEW), or export again: distill export"
            " onnx CKPT"
        )
    return model


def _tensors_of(model: ModelProto) -> Iterator[TensorProto]:
    yield from tensors(model.graph)
    for function in model.functions:
        yield from _in_nodes(function.node)
    for training in model.training_info:
        yield from (*tensors(training.initialization), *tensors(training.algorithm))


def tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Every tensor with numbers in a graph: initializers, attributes of nodes, and those of graphs inside."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _in_nodes(graph.node)


def _in_nodes(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            for each in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (each.values, each.indices)
            for inner in (attribute.g, *attribute.graphs):
                yield from tensors(inner)


def _is_outside(tensor: TensorProto) -> bool:
    return tensor.data_location == TensorProto.EXTERNAL or bool(tensor.external_data)
