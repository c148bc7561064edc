"""What an .onnx file says about itself, read without the onnx package and without an engine.

In:  a file.
Out: its `metadata_props`.
Elsewhere: what the entries mean, and their seal (runtime.artifact); the layers (the engines).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from ..errors import ArtifactError

METADATA_PROPS = 14
"""Field of ModelProto, whose entries have the key in field 1 and the value in field 2 (onnx.proto of the ONNX
project)."""

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
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            entries = [content[start:end] for field, start, end in _parts(content) if field == METADATA_PROPS]
        pairs = [
            {field: entry[start:end].decode() for field, start, end in _parts(entry)} for entry in entries
        ]
    except (ValueError, IndexError) as error:
        raise ArtifactError(
            f"{path}: not an ONNX file, or cut short ({error}). Copy it again from its source, or export"
            " again: distill export onnx CKPT"
        ) from error
    return {pair.get(1, ""): pair.get(2, "") for pair in pairs}


def _parts(content: bytes | mmap.mmap) -> Iterator[tuple[int, int, int]]:
    """(field, start, end) of every field that holds bytes. Raises ValueError or IndexError where there is no
    message.
    """
    place = 0
    while place < len(content):
        tag, place = _varint(content, place)
        kind = tag & 7
        if kind == VARINT:
            _, place = _varint(content, place)
        elif kind in (FIXED64, FIXED32):
            place += 8 if kind == FIXED64 else 4
        elif kind == BYTES:
            size, place = _varint(content, place)
            yield tag >> 3, place, place + size
            place += size
        else:
            raise ValueError(f"byte {place} begins no field")
    if place > len(content):
        raise ValueError(f"{len(content)} bytes where {place} are announced")


def _varint(content: bytes | mmap.mmap, place: int) -> tuple[int, int]:
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
