"""What is measured by `distill erf`, and at the end of a training with --erf.

In:  flags, or a training's own files.
Out: an `ErfOptions`, its ranges checked.
Elsewhere: measuring and drawing (distill.erf.report).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from runtime.errors import UsageError


@dataclass(frozen=True)
class ErfOptions:
    """Flags of `distill erf`."""

    checkpoints: tyro.conf.Positional[tuple[str, ...]]
    """best.pth of this project, or files of timm, torchvision or the authors (then with --model); drawn in
    this order."""
    data: Annotated[str, tyro.conf.arg(aliases=["--data-dir"])] = ""
    """Images: a folder, npz:FILE, digits, torch/NAME:DIR; default: those the first checkpoint was validated
    with."""
    split: Literal["val", "train"] = "val"
    """val or train, where the data has both."""
    labels: tuple[str, ...] = ()
    """Names in tables and figures, one per checkpoint; default: its role, or its file's name."""
    model: tuple[str, ...] = ()
    """Architectures, one per checkpoint; auto for a file of this project, which says it itself."""
    model_args: tuple[str, ...] = ()
    """Arguments of the architecture of foreign files, KEY=VALUE."""
    num_classes: int = 0
    """Number of classes of foreign files whose classifier does not show it; 0: that of the data."""
    img_size: Annotated[int, tyro.conf.arg(aliases=["--imgsz"])] = 0
    """Whole images are resized to squares of this side, pixels; 0: each network's own input size. The papers
    take 1024."""
    num_images: int = 50
    """Images to average over, 1 or more."""
    batch: Annotated[int, tyro.conf.arg(aliases=["-b", "--batch-size"])] = 8
    """Images per pass, 1 or more."""
    seed: int = 0
    """Of the choice of images."""
    device: str = "auto"
    """cpu, cuda, cuda:INDEX or auto."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("erf")
    """Folder for erf.png, one PNG per network, erf.json and erf.npz."""
    overwrite: bool = False
    """Replace existing files there."""
    skip_bad_images: bool = False
    """Leave unreadable images out and count them."""
    json: bool = False
    """One JSON object on stdout."""

    def __post_init__(self) -> None:
        given = len(self.checkpoints)
        if not given:
            raise UsageError(
                "no checkpoint given. Expected one or more files before the flags, for example best.pth"
            )
        if (
            self.num_images < 1
            or self.batch < 1
            or self.img_size < 0
            or self.num_classes < 0
            or self.seed < 0
        ):
            raise UsageError(
                f"num-images {self.num_images}, batch {self.batch}, img-size {self.img_size}, num-classes"
                f" {self.num_classes}, seed {self.seed}: expected images and batch 1 or more, the others 0 or"
                " more"
            )
        for flag, words in (("labels", self.labels), ("model", self.model)):
            if words and len(words) != given:
                raise UsageError(
                    f"--{flag} has {len(words)} words for {given} checkpoints. Give one for each"
                    + (", auto where the file says it itself" if flag == "model" else "")
                )
