"""What an export wrote: the file, what it says about itself, and the figures that were measured.

In:  the path, the metadata, the figures that the command prints with --json.
Out: an `Exported`, which is a path wherever one is expected.
Elsewhere: the figures (export.stages.report, export.stages.plan).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.artifact import Metadata


@dataclass(frozen=True)
class Exported:
    """A file that passed its checks and was written."""

    path: Path
    """The .onnx or .plan file."""
    precision: str
    """fp32, fp16, int8 or int8+fp16."""
    size_bytes: int
    top1: float | None
    """Top-1 of the file, percent; None where it was not measured."""
    drop_points: float | None
    """Top-1 of the fp32 student less that of the file, points; None where it was not measured."""
    metadata: Metadata = field(repr=False)
    figures: Mapping[str, Any] = field(repr=False)
    """Everything that was measured, under the names of the command's --json."""

    def __fspath__(self) -> str:
        return str(self.path)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that the command prints with --json."""
        return dict(self.figures)
