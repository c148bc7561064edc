"""What an .onnx file says about itself, and whether it is whole: without the onnx package or an engine.

In:  a file.
Out: its `metadata_props`, the operator of its last layer; ArtifactError when weights of it are elsewhere.
Elsewhere: what the entries mean, and their seal (runtime.artifact); the layers (the engines).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from ..errors import ArtifactError
from ..files import open_regular

METADATA_PROPS = 14
"""Field of ModelProto, whose entries have the key in field 1 and the value in field 2 (onnx.proto of the ONNX
project)."""

MODEL = "model"
MESSAGES: dict[str, dict[int, str]] = {
    MODEL: {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        22: "sparse tensor",
        23: "sparse tensor",
    },
    "sparse tensor": {1: "tensor", 2: "tensor"},
}
"""Message -> its fields that hold messages in which a tensor may be (onnx.proto of the ONNX project)."""
GRAPH, GRAPH_NODE, GRAPH_OUTPUT, VALUE_NAME = 7, 1, 12, 1
NODE_INPUT, NODE_OUTPUT, NODE_OPERATOR = 1, 2, 4
"""Fields on the way from ModelProto to the operator that makes an output (onnx.proto of the ONNX project)."""
PASSING = (
    "Identity",
    "Cast",
    "Flatten",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "QuantizeLinear",
    "DequantizeLinear",
)
"""Operators that leave the meaning of the values as it is."""
TENSOR_NAME, EXTERNAL_DATA, DATA_LOCATION = 8, 13, 14
"""Fields of TensorProto; its data are elsewhere when it has the second, or 1 in the third."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types that a field's tag ends with (protobuf.dev, encoding); 3 and 4 are groups, which ONNX has none
of."""


def metadata_props(path: str | Path) -> dict[str, str]:
    """The file's entries. The rest of the file, such as its weights, is skipped and not read.

    Raises ArtifactError when the file is not a protobuf message to its end.
    """
    path = Path(path)
    if not path.stat().st_size:  # nothing cannot be mapped
        raise ArtifactError(
            f"{path}: empty. Copy it again from its source, or export again: distill export onnx CKPT"
        )
    try:
        with open_regular(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            entries = [content[start:end] for field, start, end in parts(content) if field == METADATA_PROPS]
        pairs = [
            {field: entry[start:end].decode() for field, start, end in parts(entry)} for entry in entries
        ]
    except (ValueError, IndexError) as error:
        raise not_onnx(str(path), error) from error
    return {pair.get(1, ""): pair.get(2, "") for pair in pairs}


def last_operator(path: str | Path) -> str:
    """The operator that makes the first output, such as Gemm or Softmax; those in PASSING are looked through.
    Empty where the file does not show it. Raises ArtifactError as `metadata_props`.
    """
    path = Path(path)
    try:
        with open_regular(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _last_operator(content)
    except (ValueError, IndexError) as error:
        raise not_onnx(str(path), error) from error


def _last_operator(content: mmap.mmap) -> str:
    graph = next((part for part in parts(content) if part[0] == GRAPH), (GRAPH, 0, 0))
    inside = list(parts(content, *graph[1:]))
    outputs = [
        texts(content, *place).get(VALUE_NAME, [""]) for field, *place in inside if field == GRAPH_OUTPUT
    ]
    wanted = outputs[0][0] if outputs else ""
    for place in [place for field, *place in inside if field == GRAPH_NODE][
        ::-1
    ]:  # in the order of computing
        node = texts(content, *place)
        if wanted in node.get(NODE_OUTPUT, []):
            operator = node.get(NODE_OPERATOR, [""])[0]
            if operator not in PASSING:
                return operator
            wanted = node.get(NODE_INPUT, [""])[0]
    return ""


def texts(content: mmap.mmap, start: int, end: int) -> dict[int, list[str]]:
    """The fields 1 to 4 of a message as text, which is what names are."""
    found: dict[int, list[str]] = {}
    for field, first, last in parts(content, start, end):
        if field <= NODE_OPERATOR:
            found.setdefault(field, []).append(content[first:last].decode(errors="replace"))
    return found


def require_whole(path: str | Path) -> None:
    """Raise ArtifactError when a tensor of the file, at any depth, has its data in another place.

    To be called before an engine opens the file: an engine reads whatever file such a tensor names, and one
    of them takes an address in this process's memory for a name (OpenVINO, `*/_ORT_MEM_ADDR_/*`).
    """
    path = Path(path)
    if not path.stat().st_size:
        return  # nothing cannot be mapped, and is not a network to any engine
    with open_regular(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        require_inside(content, str(path))


def require_inside(content: bytes | mmap.mmap, name: str) -> None:
    """The same for a file's content. name is used in messages."""
    try:
        outside = next((tensor for tensor, is_outside in _tensors(content) if is_outside), None)
    except (ValueError, IndexError) as error:
        raise not_onnx(name, error) from error
    if outside is not None:
        raise ArtifactError(
            f"{name}: weights such as {outside} are in another file, which no seal covers and which is easily"
            " left behind. Put them inside: onnx.save(onnx.load(FILE), NEW), or export again: distill export"
            " onnx CKPT"
        )


def not_onnx(name: str, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"{name}: not an ONNX file, or cut short ({error}). Copy it again from its source, or export again:"
        " distill export onnx CKPT"
    )


def _tensors(content: bytes | mmap.mmap) -> Iterator[tuple[str, bool]]:
    """(name, whether its data are elsewhere) of every tensor."""
    waiting = [(MODEL, 0, len(content))]
    while waiting:
        message, start, end = waiting.pop()
        if message != "tensor":
            inner = MESSAGES[message]
            waiting += [
                (inner[field], first, last)
                for field, first, last in parts(content, start, end)
                if field in inner
            ]
            continue
        name, is_outside = b"", False
        for field, kind, first, last in fields(content, start, end):
            if kind == BYTES and field == TENSOR_NAME:
                name = content[first:last]
            is_outside |= kind == BYTES and field == EXTERNAL_DATA
            is_outside |= kind == VARINT and field == DATA_LOCATION and varint(content, first)[0] != 0
        yield name.decode(errors="replace"), is_outside


def parts(
    content: bytes | mmap.mmap, start: int = 0, end: int | None = None
) -> Iterator[tuple[int, int, int]]:
    """(field, start, end) of every field that holds bytes. Raises ValueError or IndexError where there is no
    message.
    """
    for field, kind, first, last in fields(content, start, len(content) if end is None else end):
        if kind == BYTES:
            yield field, first, last


def fields(content: bytes | mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(field, wire type, start, end) of every field of the message between `start` and `end`."""
    place = start
    while place < end:
        tag, place = varint(content, place)
        field, kind, first = tag >> 3, tag & 7, place
        if kind == VARINT:
            _, place = varint(content, place)
        elif kind in (FIXED64, FIXED32):
            place += 8 if kind == FIXED64 else 4
        elif kind == BYTES:
            size, first = varint(content, place)
            place = first + size
        else:
            raise ValueError(f"byte {place} begins no field")
        if place > end:
            raise ValueError(f"{end - start} bytes where {place - start} are announced")
        yield field, kind, first, place


def varint(content: bytes | mmap.mmap, place: int) -> tuple[int, int]:
    """The number that begins at `place`, seven bits to a byte and the lowest first, and the place
    behind it.
    """
    value = 0
    for shift in range(0, 70, 7):  # ten bytes hold the 64 bits that there are at most
        byte = content[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError(f"byte {place} is in a number without end")
