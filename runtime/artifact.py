"""The contract between export and everything that runs a model: the metadata inside an artifact, and the seal
over all of it.

In:  a `Metadata` value at export; the string map of an ONNX file (`metadata_props`) or the file beside a plan
     when loading; a whole file's bytes.
Out: the map to store, or the `Metadata` read back; for a file of another origin, one whose fields say
     "unknown" (None). The bytes sealed, or whether their seal holds.
Elsewhere: opening the model (runtime.backends), writing ONNX (export.graph.from_torch).
"""

from __future__ import annotations

import json
import mmap
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from . import files
from .errors import ArtifactError, UsageError
from .preprocess import Preprocess

if TYPE_CHECKING:
    from .records import EngineRecord, Quantization, Verification

SCHEMA = 2
"""Version of the metadata; raised when a reader of the old one would go wrong. 1 is read, too."""

KEY = "large2small"
"""Name of the one metadata entry, a JSON object."""

SEAL_KEY = "large2small.seal"
"""Name of the entry at the very start of a sealed file; SEAL_KEY + "ed" is the one at its end."""

DIGITS = 64
"""Hex digits of a SHA-256."""

MOST_SIDECAR = 2**26
"""Bytes of what is beside a plan; of a large network's layers it says something each."""

SEALED_SINCE = 2
"""Schema from which on every file has a seal."""

BLOCK = 1 << 20
"""Bytes hashed at a time."""


def _nothing_checked() -> Verification:
    from .records import Verification  # when a file is read: its classes take a third of `import runtime`

    return Verification()


@dataclass(frozen=True)
class Metadata:
    """What an artifact says about itself. None means not known, never zero."""

    schema: int = SCHEMA
    model: str | None = None
    """Architecture name, as timm spells it."""
    role: str | None = None
    """teacher, student, control or plain: how the checkpoint came about."""
    preprocess: Preprocess | None = None
    class_names: list[str] | None = None
    precision: str = "fp32"
    """fp32, fp16, int8 or int8+fp16."""
    parameters: int | None = None
    """Number of weights of the merged network."""
    macs: int | None = None
    """Multiply-accumulates for one image."""
    training: dict[str, Any] = field(default_factory=dict)
    """Recipe name, epochs, KD loss, metrics at the best epoch (top1 in percent)."""
    quantization: Quantization | None = None
    """How a file in int8 or fp16 came about: method, placement, images with hashes, layers left in float."""
    verification: Verification = field(default_factory=_nothing_checked)
    """What was checked before the file was written, with the numbers."""
    lineage: dict[str, Any] = field(default_factory=dict)
    """SHA-256 of checkpoint, teacher, fp32 ONNX and data this was made from."""
    versions: dict[str, str] = field(default_factory=dict)
    """Packages that made it."""
    engine: EngineRecord | None = None
    """Only for a plan, and read by runtime.backends.tensorrt.plan: which TensorRT built it where, from which
    ONNX, its profiles and layers."""

    def to_map(self) -> dict[str, str]:
        """The entries to store in ONNX `metadata_props`."""
        return {KEY: files.json_text(self.to_dict(), sort_keys=True)}

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        records = ("preprocess", "quantization", "verification", "engine")
        return plain | {name: plain[name].to_dict() if plain[name] else None for name in records}

    def unknown(self) -> list[str]:
        """Which of the fields that prediction needs are not known."""
        return [name for name in ("preprocess", "class_names") if getattr(self, name) is None]


PLAIN: dict[str, Any] = {
    **{"model": str, "role": str, "precision": str, "class_names": list[str], "parameters": int, "macs": int},
    **{"training": dict[str, Any], "lineage": dict[str, Any], "versions": dict[str, str]},
}
"""What the entries are that have no reader of their own."""


def read_map(entries: Mapping[str, str], name: str) -> Metadata:
    """Metadata from the stored entries; an artifact of another origin has none and gives
    `Metadata(precision="unknown")`.

    name is used in messages. Raises ArtifactError when the entry is damaged or of a newer schema.
    """
    if KEY not in entries:
        return Metadata(precision="unknown")
    try:
        values = files.from_json(entries[KEY], KEY)
        found = values["schema"]
    except (ArtifactError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{name}: its large2small metadata is damaged ({error}). Export it again"
        ) from error
    if isinstance(found, bool) or found not in (1, SCHEMA):
        raise ArtifactError(
            f"{name}: metadata schema {files.short(str(found))}; this runtime reads {SCHEMA}. "
            "Install the large2small that wrote it, or export it again"
        )
    if found == 1:
        values = _of_schema_1(values)
    from .records import EngineRecord, Quantization, Verification, require_recorded, typed

    readers: dict[str, Callable[[Any], Any]] = {
        "preprocess": lambda value: _preprocess(value, name),
        "quantization": lambda value: Quantization.from_dict(value, f"{name}: quantization"),
        "verification": lambda value: Verification.from_dict(value, f"{name}: verification"),
        "engine": lambda value: EngineRecord.from_dict(value, f"{name}: engine"),
    }
    read: dict[str, Any] = {key: reader(values[key]) for key, reader in readers.items() if values.get(key)}
    known = {key: kind for key, kind in PLAIN.items() if values.get(key) is not None}
    read |= {key: typed(values[key], kind, f"{name}: {key}") for key, kind in known.items()}
    require_recorded(read, name)
    return Metadata(**read)


def _preprocess(values: Any, name: str) -> Preprocess:
    if not isinstance(values, Mapping):
        raise ArtifactError(f"{name}: its preprocessing is damaged ({values!r}). Export it again")
    try:
        return Preprocess.from_dict(values)
    except UsageError as error:
        raise ArtifactError(
            f"{name}: its preprocessing cannot be used here ({error}). Install the large2small that wrote it,"
            " or export it again"
        ) from error


def _of_schema_1(values: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of the first schema under today's names.

    It called the reference fp32 and the candidate int8, also in fp16 files and for plans, the evaluation
    images held_out and the number of selection images held_back.
    """
    top1 = {"fp32_top1": "reference_top1", "int8_top1": "candidate_top1", "class": "class_name"}
    given = values.get("verification")
    checks = dict(given) if isinstance(given, Mapping) else {}
    lowered = next((checks.pop(key) for key in ("int8", "fp16") if key in checks), None)
    if isinstance(lowered, Mapping):
        checks["lowered"] = _renamed(lowered, top1)
        if isinstance(lowered.get("worst_class"), Mapping):
            checks["lowered"]["worst_class"] = _renamed(lowered["worst_class"], top1)
    how = values.get("quantization")
    if isinstance(how, Mapping):
        how = _renamed(how, {"held_back": "selection"})
        if isinstance(how.get("draws"), Mapping):
            how["draws"] = _renamed(how["draws"], top1)
    lineage = values.get("lineage") or {}
    if isinstance(lineage, Mapping) and isinstance(lineage.get("data"), Mapping):
        lineage = {**lineage, "data": _renamed(lineage["data"], {"held_out": "evaluation"})}
    return {**values, "verification": checks, "quantization": how, "lineage": lineage}


def _renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in values.items()}


def sidecar_of(plan: str | Path) -> Path:
    """Where a plan's metadata is, as a plan stays byte for byte what TensorRT gave: student.plan ->
    student.plan.json.
    """
    return Path(f"{plan}.json")


def sidecar_bytes(meta: Metadata) -> bytes:
    """The content of that file: a sealed JSON object whose one entry of ours is the metadata."""
    return seal(files.json_text({KEY: json.loads(meta.to_map()[KEY])}, indent=1, sort_keys=True).encode())


def read_sidecar(plan: str | Path) -> Metadata:
    """The metadata beside a plan; whether it is this plan's is runtime.backends.tensorrt.plan's question.

    Raises ArtifactError when it is not there, damaged, changed since it was written, or of a newer schema.
    """
    path = sidecar_of(plan)
    try:
        content = files.read_small(path, MOST_SIDECAR)
    except FileNotFoundError:
        raise ArtifactError(
            f"{plan}: {path.name} is not beside it, which says what the plan is, how images are preprocessed"
            " and what was checked. Copy both files, or build again: distill export trt CKPT"
        ) from None
    try:
        entries = files.from_json(content, path.name)[KEY]
    except (ArtifactError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path}: not metadata of a plan ({type(error).__name__}: {error}). Copy it again from its "
            "source, or build the plan again: distill export trt CKPT"
        ) from error
    check_seal(content, str(path))
    return read_map({KEY: files.json_text(entries)}, str(path))


def first_class_difference(ours: list[str], theirs: list[str]) -> str | None:
    """One line on where two class lists part, or None when they are equal."""
    for index, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if _composed(a) != _composed(b):
            return f"class {index} is {a!r} here and {b!r} there"
    if len(ours) != len(theirs):
        return f"{len(ours)} classes here and {len(theirs)} there"
    return None


def require_same_classes(ours: list[str] | None, ours_name: str, theirs: list[str], theirs_name: str) -> None:
    """Raise ArtifactError naming the first difference; an unknown list (None) is compared with nothing."""
    if ours is None:
        return
    difference = first_class_difference(ours, theirs)
    if difference:
        same = sorted(map(_composed, ours)) == sorted(map(_composed, theirs))
        raise ArtifactError(
            f"{'class order differs' if same else 'classes differ'}: {difference} ({ours_name} against"
            f" {theirs_name}). Use the data set the model was trained on, or rename the class folders"
        )


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


class _Frame(NamedTuple):
    """Where the seal stands in a kind of file: the digits between `before` and `after` at the start, `tail`
    at the end.

    Two entries, so that damage to one of them, or a cut at either end, does not make a sealed file look like
    an unsealed one.
    """

    before: bytes
    after: bytes
    tail: bytes
    remains: tuple[bytes, bytes]
    """One of these is left in a file that was sealed, wherever another tool may have put it."""


def _onnx_entry(key: str, value: str) -> bytes:
    """A `metadata_props` entry of an ONNX file as protobuf bytes, which may stand anywhere between the file's
    other fields.

    Field 14 of ModelProto, fields 1 and 2 of StringStringEntryProto, each with a length below 128
    (protobuf.dev, encoding).
    """
    entry = b"".join(bytes((tag, len(text))) + text.encode() for tag, text in ((0x0A, key), (0x12, value)))
    return bytes((0x72, len(entry))) + entry


_METADATA = bytes((0x0A, len(KEY))) + KEY.encode() + bytes((0x12,))
"""What the entry of the metadata in an ONNX file begins with, behind the lengths of entry and value."""
_HEAD, _TAIL = _onnx_entry(SEAL_KEY, "0" * DIGITS)[:-DIGITS], _onnx_entry(f"{SEAL_KEY}ed", "sha256")
_ONNX = _Frame(_HEAD, b"", _TAIL, (_HEAD, _TAIL))
_JSON = _Frame(
    f'{{"{SEAL_KEY}": "'.encode(),
    b'", ',
    f', "{SEAL_KEY}ed": "sha256"}}\n'.encode(),
    (f'"{SEAL_KEY}":'.encode(), f'"{SEAL_KEY}ed":'.encode()),
)


def seal(content: bytes) -> bytes:
    """A file's content with a seal: the SHA-256 of the whole, with zeros for the seal's own 64 digits.

    content: a serialized ONNX model, or a JSON object that is not empty (what is beside a file that cannot
    hold metadata). Readers of either find two more entries. Finds accidents and quiet edits; it is not
    a signature, anyone can seal again.
    """
    frame, body = (_JSON, content.strip()[1:-1]) if content.startswith(b"{") else (_ONNX, content)
    rest = frame.after + body + frame.tail
    return frame.before + _digest(frame, rest, 0) + rest


def check_seal(content: bytes | mmap.mmap, name: str) -> bool:
    """True when the seal holds, False when there is none: an older file, or one of another origin.

    name is used in messages. Raises ArtifactError when any byte was changed, added or cut off after `seal`,
    when another tool has written the file anew, or when both entries of the seal are gone, which the metadata
    shows.
    """
    frame = next((frame for frame in (_ONNX, _JSON) if content[: len(frame.before)] == frame.before), None)
    is_bare = frame is None and all(content.find(part) < 0 for part in (*_ONNX.remains, *_JSON.remains))
    if is_bare and _stated_schema(content) < SEALED_SINCE:
        return False
    end = len(frame.before) + DIGITS if frame else 0
    if frame is None or content[end - DIGITS : end] != _digest(frame, content, end):
        raise ArtifactError(
            f"{name}: changed since it was written (its SHA-256 seal does not hold), so what was verified"
            " about it is no longer true. Copy it again from its source, or export again: distill export"
            f" {'trt' if name.endswith('.plan.json') else 'onnx'} CKPT"
        )
    return True


def _stated_schema(content: bytes | mmap.mmap) -> int:
    """What the metadata in a file's content says its schema is; 0 where there is none that can be read."""
    start = 0 if content[:1] == b"{" else content.find(_METADATA)
    if start < 0:
        return 0
    begin = content.find(b"{", start)
    try:
        text = content[begin : begin + MOST_SIDECAR].decode(errors="replace")
        values = json.JSONDecoder().raw_decode(text)[0]
        return int((values if start else values[KEY])["schema"])
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return 0


def check_file(path: str | Path) -> bool:
    """`check_seal` of a file, without holding it in memory."""
    if not Path(path).stat().st_size:  # nothing cannot be mapped
        return False
    with files.open_regular(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return check_seal(content, str(path))


def _digest(frame: _Frame, content: bytes | mmap.mmap, start: int) -> bytes:
    """The hex digits over the frame's start, zeros for the digits, and `content` from `start` on."""
    from hashlib import sha256  # loads OpenSSL

    digest = sha256(frame.before + b"0" * DIGITS)
    for place in range(start, len(content), BLOCK):
        digest.update(content[place : place + BLOCK])
    return digest.hexdigest().encode()
