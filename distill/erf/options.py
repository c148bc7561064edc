"""What is measured by `distill erf`, and at the end of a training with --erf.

In:  flags, or a training's own files.
Out: an `ErfOptions`, its ranges checked.
Elsewhere: measuring and drawing (distill.erf.report).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from runtime.cli import settings
from runtime.cli.settings import Flag
from runtime.errors import UsageError


@dataclass(frozen=True)
class ErfOptions:
    """Flags of `distill erf`."""

    checkpoints: Annotated[tuple[str, ...], Flag("CKPT", positional=True)]
    """Checkpoints to measure, drawn in this order: best.pth of this project, or files of timm, torchvision or
    the authors (then with --model)."""
    data: Annotated[str, Flag("DATA", aliases=("--data-dir",))] = ""
    """Images to average over: a folder, npz:FILE, digits, torch/NAME:DIR; by default those the first
    checkpoint was validated with."""
    split: Literal["val", "train"] = "val"
    """Part of --data to read, where the data has both."""
    labels: tuple[str, ...] = ()
    """Names in tables and figures, one per checkpoint; by default its role, or its file's name."""
    model: tuple[str, ...] = ()
    """Architectures, one per checkpoint; auto for a file of this project, which says it itself."""
    model_args: Annotated[tuple[str, ...], Flag("KEY=VALUE")] = ()
    """Arguments of the architecture of foreign files."""
    checkpoint_key: Annotated[tuple[str, ...], Flag("KEY")] = ()
    """Entries of foreign files that hold the weights, one per checkpoint; auto for averaged weights before
    others, and for a file of this project."""
    num_classes: Annotated[int, Flag("N", least=0)] = 0
    """Number of classes of foreign files whose classifier does not show it; 0: that of the data."""
    img_size: Annotated[int, Flag("PIXELS", aliases=("--imgsz",), least=0)] = 0
    """Side of the squares that whole images are resized to; 0: each network's own input size. The papers take
    1024."""
    input_size: Annotated[tuple[int, ...], Flag("PIXELS")] = ()
    """Height and width that whole images are resized to, for ones that are not square."""
    num_images: Annotated[int, Flag("N", least=1)] = 50
    """Images to average over, 1 or more."""
    batch: Annotated[int, Flag("N", aliases=("-b", "--batch-size"), least=1)] = 8
    """Images per pass, 1 or more."""
    seed: int = 0
    """Seed for choosing images."""
    device: Annotated[str, Flag("DEVICE")] = "auto"
    """Device: cpu, cuda, cuda:INDEX; auto: cuda where there is one."""
    output: Annotated[Path, Flag("DIR", aliases=("-o",))] = Path("erf")
    """Folder for erf.png, one PNG per network, erf.json and erf.npz."""
    overwrite: bool = False
    """Replace existing files in --output."""
    skip_bad_images: bool = False
    """Leave unreadable images out and count them."""
    json: bool = False
    """Print the result as one JSON object and nothing else."""

    def __post_init__(self) -> None:
        given = len(self.checkpoints)
        if not given:
            raise UsageError(
                "no checkpoint given. Expected one or more files before the flags, for example best.pth"
            )
        settings.check(self)
        several = {"labels": self.labels, "model": self.model, "checkpoint-key": self.checkpoint_key}
        for flag, words in several.items():
            if words and len(words) != given:
                raise UsageError(
                    f"--{flag} has {len(words)} words for {given} checkpoints. Give one for each"
                    + ("" if flag == "labels" else ", auto where the file says it itself")
                )
