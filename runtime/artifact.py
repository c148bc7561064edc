"""The contract between export and everything that runs a model: the metadata inside an artifact.

In:  a `Metadata` value at export; the string map of an ONNX file (`metadata_props`) when loading.
Out: the map to store, or the `Metadata` read back; for a file of another origin, one whose fields say "unknown" (None).
Elsewhere: opening the model (runtime.backends), writing ONNX (export.graph).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .errors import ArtifactError
from .preprocess import Preprocess

SCHEMA = 1
"""Version of the metadata; raised when a reader of the old one would go wrong."""

KEY = "large2small"
"""Name of the one metadata entry, a JSON object."""


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
    """fp32 or int8."""
    parameters: int | None = None
    """Number of weights of the merged network."""
    macs: int | None = None
    """Multiply-accumulates for one image."""
    training: dict[str, Any] = field(default_factory=dict)
    """Recipe name, epochs, KD loss, metrics at the best epoch (top1 in percent)."""
    quantization: dict[str, Any] | None = None
    """Method, placement, images with hashes, layers left in float, scales' count."""
    verification: dict[str, Any] = field(default_factory=dict)
    """What was checked before the file was written, with the numbers."""
    lineage: dict[str, Any] = field(default_factory=dict)
    """SHA-256 of checkpoint, teacher, fp32 ONNX and data this was made from."""
    versions: dict[str, str] = field(default_factory=dict)
    """Packages that made it."""

    def to_map(self) -> dict[str, str]:
        """The entries to store in ONNX `metadata_props`."""
        values = asdict(self) | {"preprocess": self.preprocess.to_dict() if self.preprocess else None}
        return {KEY: json.dumps(values, sort_keys=True)}

    def unknown(self) -> list[str]:
        """Which of the fields that prediction needs are not known."""
        return [name for name in ("preprocess", "class_names") if getattr(self, name) is None]


def read_map(entries: Mapping[str, str], name: str) -> Metadata:
    """Metadata from the stored entries; an artifact of another origin has none and gives `Metadata(precision="unknown")`.

    name is used in messages. Raises ArtifactError when the entry is damaged or of a newer schema.
    """
    if KEY not in entries:
        return Metadata(precision="unknown")
    try:
        values = json.loads(entries[KEY])
        found = values["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{name}: its large2small metadata is damaged ({error}). Export it again") from error
    if found != SCHEMA:
        raise ArtifactError(f"{name}: metadata schema {found}; this runtime reads {SCHEMA}. "
                            "Install the large2small that wrote it, or export it again")
    known = {f.name for f in fields(Metadata)}
    preprocess = values.get("preprocess")
    return Metadata(**{k: v for k, v in values.items() if k in known and k != "preprocess"},
                    preprocess=Preprocess.from_dict(preprocess) if preprocess else None)


def first_class_difference(ours: list[str], theirs: list[str]) -> str | None:
    """One line on where two class lists part, or None when they are equal."""
    for index, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if a != b:
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
        raise ArtifactError(f"class order differs: {difference} ({ours_name} against {theirs_name}). "
                            "Use the data set the model was trained on, or rename the class folders")
