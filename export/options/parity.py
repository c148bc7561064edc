"""The flags of `distill parity`.

In:  flags (runtime.cli.flags).
Out: a `ParityOptions`, its ranges checked.
Elsewhere: the comparison (export.stages.parity).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from runtime.cli import settings
from runtime.cli.settings import Flag


@dataclass(frozen=True)
class ParityOptions:
    """Flags of `distill parity`."""

    checkpoint: Annotated[Path, Flag("CKPT", positional=True)]
    """Checkpoint of this project, or weights of another one together with --model."""
    file: Annotated[Path, Flag("FILE", positional=True)]
    """Artifact made from the checkpoint: an .onnx file, or a .plan file where its GPU is."""
    data: Annotated[str | None, Flag("DATA")] = None
    """Labeled images (DIR, npz:FILE, digits); by default the checkpoint's own validation images."""
    size: Annotated[int, Flag("N", least=0)] = 256
    """Number of images, as many of each class as possible; 0: all."""
    model: str | None = None
    """Architecture of foreign weights, as timm spells it."""
    model_args: Annotated[tuple[str, ...], Flag("KEY=VALUE")] = ()
    """Arguments of the architecture of foreign weights."""
    checkpoint_key: Annotated[str, Flag("KEY")] = ""
    """Entry of a foreign file that holds the weights, for example ema.module; by default averaged weights
    before others."""
    img_size: Annotated[int | None, Flag("PIXELS", least=1)] = None
    """Height and width in pixels, when the file was exported with another size than the checkpoint's."""
    input_size: Annotated[tuple[int, ...], Flag("PIXELS")] = ()
    """Height and width, when the file was exported with --input-size."""
    atol: Annotated[float, Flag("SHARE", above=0)] = 1e-4
    """Largest logit difference of an fp32 file, as a share of the largest logit (at least 1)."""
    min_agreement: Annotated[float, Flag("PERCENT", least=0, most=100)] = 95.0
    """Share of images on which an int8 or fp16 file must choose the checkpoint's class, percent."""
    seed: int = 0
    """Seed for choosing images."""
    json: bool = False
    """Print the result as one JSON object and nothing else."""

    def __post_init__(self) -> None:
        settings.check(self)
