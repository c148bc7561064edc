"""`distill attack`: images on which a checkpoint errs although they hardly differ, for artifacts to answer.

In:  a checkpoint, labeled images.
Out: an npz file of images (uint8), labels and class names; two lines, or with --json one object.
Elsewhere: the attacks (distill.data.attack); what an artifact answers (bench.accuracy).
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from runtime import UsageError, files
from runtime.cli import settings
from runtime.cli.settings import Flag
from runtime.cli.terminal import in_rows, loading, progress_bar
from runtime.images import ImageSet
from runtime.intervals import wilson

SUMMARY = "write images changed by FGSM or PGD, to see whether int8 errs on them, too"
DESCRIPTION = """The images are at the network's input size, with a border that preprocessing cuts off again.
distill bench accuracy then measures any artifact on them. Give --attack none for the same images unchanged.

examples:
  {prog} runs/student/best.pth --data DIR --output adversarial.npz
  {prog} runs/student/best.pth --data DIR --attack fgsm --epsilon 1 --output fgsm.npz
  distill bench accuracy best.int8.onnx npz:adversarial.npz --reference best.onnx"""

ANY_CLASSES = 2
"""For streams, which have to be opened before they are refused."""


@dataclass(frozen=True)
class Options:
    """Flags of `distill attack`."""

    checkpoint: Annotated[str, Flag("CKPT", positional=True)]
    """Checkpoint to attack: best.pth, or a file of timm, torchvision or the authors (then with --model)."""
    output: Path
    """File to write the images to, .npz."""
    data: Annotated[str, Flag("DATA", aliases=("--data-dir",))] = ""
    """Labeled images: a folder, npz:FILE or digits; by default those the checkpoint was validated with."""
    split: Literal["val", "train"] = "val"
    """Part of --data to read, where the data has both."""
    attack: Literal["pgd", "fgsm", "none"] = "pgd"
    """Attack: fgsm, one step along the sign of the gradient; pgd, several from a random start; none."""
    epsilon: Annotated[int, Flag("LEVELS", least=1, most=255)] = 2
    """Largest change of a value, in steps of 8-bit pixels."""
    steps: Annotated[int, Flag("N", least=1)] = 10
    """Steps of pgd, 1 or more."""
    step_size: Annotated[float | None, Flag("LEVELS", above=0)] = None
    """Change of a value in one step of pgd, in steps of 8-bit pixels; by default a quarter of --epsilon."""
    images: Annotated[int, Flag("N", aliases=("--limit",), least=1)] = 1000
    """Largest number of images, drawn by --seed, 1 or more."""
    model: str = ""
    """Architecture of a foreign file, for example resnet20."""
    model_args: Annotated[tuple[str, ...], Flag("KEY=VALUE")] = ()
    """Arguments of the architecture of a foreign file."""
    batch: Annotated[int, Flag("N", aliases=("-b", "--batch-size"), least=1)] = 64
    """Images per forward and backward pass."""
    device: Annotated[str, Flag("DEVICE")] = "auto"
    """Device: cpu, cuda, cuda:INDEX; auto: cuda where there is one."""
    seed: int = 0
    """Seed of the random starts and of the choice of images."""
    json: bool = False
    """Print the result as one JSON object and nothing else."""
    overwrite: bool = False
    """Replace an existing --output."""

    def __post_init__(self) -> None:
        settings.check(self)
        if self.output.suffix != ".npz":
            raise UsageError(f"--output {self.output}: expected a name that ends in .npz")


@dataclass(frozen=True)
class Attacked:
    """What the command found. The names are the keys of the JSON result."""

    output: str
    checkpoint: str
    data: str
    split: str
    images: int
    clean_right: int
    """Images."""
    attacked_right: int
    """Images, after the attack."""
    kind: str
    """Of the attack."""
    epsilon: int
    steps: int
    step: float
    seed: int


def run(options: Options) -> None:
    """`distill attack`: write the images, and print how many the network still gets right."""
    found = do(options)
    if options.json:
        print(files.json_text(asdict(found)))
        return
    said = f"{found.kind} within {found.epsilon}/255" if found.kind != "none" else "unchanged"
    lines = [
        f"{found.checkpoint}: top-1 {_top1(found.clean_right, found.images)} on {found.images} {found.split}"
        f" images of {found.data}",
        f"{found.output}: {said}: top-1 {_top1(found.attacked_right, found.images)}",
    ]
    print(in_rows("\n".join(lines), sys.stdout))


def _top1(right: int, n: int) -> str:
    low, high = wilson(right, n)
    return f"{100 * right / n:.2f} % (95 % interval {100 * low:.2f} to {100 * high:.2f})"


def do(options: Options) -> Attacked:
    """Attack, and write the images."""
    files.refuse_existing(options.output, options.overwrite)
    files.require_writable(options.output)
    with loading("loading torch"):
        from runtime.images.classes import in_order_of

        from .. import checkpoint as checkpoints
        from .. import models
        from ..data import attack as attacks
        from ..data import open_of_run
        from ..evaluate import pick_device
        from ..recipe import key_values

    found = checkpoints.load_any(options.checkpoint, options.model or None, key_values(options.model_args))
    spec = options.data or found.recorded_data("val", "--data")
    with loading(f"looking for the images of {spec}"):
        images = open_of_run(spec, options.split, options.checkpoint, ANY_CLASSES)
    if not len(images.labels):
        raise UsageError(f"{spec}: a stream, of which no images can be drawn. Give a folder or npz:FILE")
    images = in_order_of(found.class_names, options.checkpoint, images, options.split)
    model = models.build(found.model, len(images.class_names), found.model_args)
    checkpoints.require_finite(found.state_dict, str(options.checkpoint))
    checkpoints.load_weights(model, found)
    device = pick_device(options.device)
    attack = attacks.Attack(
        options.attack, options.epsilon, options.steps, options.step_size or options.epsilon / 4, options.seed
    )
    drawn = np.sort(np.random.default_rng(options.seed).permutation(len(images))[: options.images])
    with progress_bar("attacking", len(drawn)) as advance:
        x, right, still = attacks.on_set(
            model.to(device).eval(), images, drawn, found.preprocess, attack, device, options.batch, advance
        )
    _write(options.output, x, images, drawn)
    return Attacked(
        str(options.output),
        options.checkpoint,
        spec,
        options.split,
        len(drawn),
        right,
        still,
        **asdict(attack),
    )


def _write(path: Path, x: np.ndarray, images: ImageSet, drawn: np.ndarray) -> None:
    """The arrays that npz:FILE reads, and where each image came from."""
    with files.replacing(path) as file:
        np.savez(file, x=x, y=images.labels[drawn], class_names=np.array(images.class_names), indices=drawn)
