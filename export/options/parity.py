"""The flags of `distill parity`.

In:  flags (runtime.cli.flags).
Out: a `ParityOptions`, its ranges checked.
Elsewhere: the comparison (export.stages.parity).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from runtime.cli.settings import Flag
from runtime.errors import UsageError


@dataclass(frozen=True)
class ParityOptions:
    """Flags of `distill parity`."""

    checkpoint: Annotated[Path, Flag("CKPT", positional=True)]
    """Checkpoint of this project, or weights of another one together with --model."""
    file: Annotated[Path, Flag("FILE", positional=True)]
    """Artifact made from the checkpoint: an .onnx file, or a .plan file where its GPU is."""
    data: Annotated[str | None, Flag("DATA")] = None
    """Labeled images (DIR, npz:FILE, digits); by default the checkpoint's own validation images."""
    size: int = 256
    """Number of images, as many of each class as possible; 0: all."""
    model: str | None = None
    """Architecture of foreign weights, as timm spells it."""
    model_args: Annotated[tuple[str, ...], Flag("KEY=VALUE")] = ()
    """Arguments of the architecture of foreign weights."""
    img_size: Annotated[int | None, Flag("PIXELS")] = None
    """Height and width in pixels, when the file was exported with another size than the checkpoint's."""
    atol: Annotated[float, Flag("SHARE")] = 1e-4
    """Largest logit difference of an fp32 file, as a share of the largest logit (at least 1)."""
    min_agreement: Annotated[float, Flag("PERCENT")] = 95.0
    """Share of images on which an int8 or fp16 file must choose the checkpoint's class, percent."""
    seed: int = 0
    """Seed for choosing images."""
    json: bool = False
    """Print the result as one JSON object and nothing else."""

    def __post_init__(self) -> None:
        if self.size < 0 or not self.atol > 0 or not 0 <= self.min_agreement <= 100:
            raise UsageError(
                f"size {self.size}, atol {self.atol:g}, min-agreement {self.min_agreement:g}: expected size 0"
                " (all) or more, atol above 0, min-agreement 0 to 100 percent"
            )
        if self.img_size is not None and self.img_size < 1:
            raise UsageError(f"img-size {self.img_size}: expected 1 or more pixels")
