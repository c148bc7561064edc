"""`distill eval`: top-1, top-5, balanced accuracy and loss of a checkpoint on labeled images.

In:  a checkpoint, labeled images.
Out: three lines, or with --json one object that has each class.
Elsewhere: the evaluation itself (distill.evaluate); accuracy of artifacts (bench.accuracy).
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from runtime import files
from runtime.cli import settings
from runtime.cli.settings import Flag
from runtime.cli.terminal import in_rows, loading, printable, progress_bar, say
from runtime.errors import GateError
from runtime.images.summary import balanced_line

from ..processes.begin import begun
from ..processes.world import speaks

if TYPE_CHECKING:
    from ..evaluate import EvaluationReport

SUMMARY = "measure top-1, top-5, balanced accuracy and loss of a checkpoint"
DESCRIPTION = """example:
  {prog} runs/student/best.pth --data DIR"""

SHARES_WORK = True


@dataclass(frozen=True)
class Options:
    """Flags of `distill eval`."""

    checkpoint: Annotated[str, Flag("CKPT", positional=True)]
    """Checkpoint to evaluate: best.pth, or a file of timm, torchvision or the authors (then with --model)."""
    data: Annotated[str, Flag("DATA", aliases=("--data-dir",))] = ""
    """Labeled images: a folder, npz:FILE, digits, torch/NAME:DIR; by default those the checkpoint was
    validated with."""
    split: Literal["val", "train"] = "val"
    """Part of --data to read, where the data has both."""
    model: str = ""
    """Architecture of a foreign file, for example resnet20."""
    model_args: Annotated[tuple[str, ...], Flag("KEY=VALUE")] = ()
    """Arguments of the architecture of a foreign file."""
    checkpoint_key: Annotated[str, Flag("KEY")] = ""
    """Entry of a foreign file that holds the weights, for example ema.module; by default averaged weights
    before others."""
    img_size: Annotated[int, Flag("PIXELS", aliases=("--imgsz",), least=0)] = 0
    """Side of the input; 0: the checkpoint's."""
    input_size: Annotated[tuple[int, ...], Flag("PIXELS")] = ()
    """Height and width of the input, for one that is not square."""
    batch: Annotated[int, Flag("N", aliases=("-b", "--batch-size"), least=1)] = 256
    """Images per forward pass."""
    workers: Annotated[int, Flag("N", aliases=("-j",), least=-1)] = -1
    """Processes that read images; -1: up to 8 with a GPU, none on a CPU."""
    device: Annotated[str, Flag("DEVICE")] = "auto"
    """Device: cpu, cuda, cuda:INDEX; auto: cuda where there is one."""
    num_classes: Annotated[int, Flag("N", least=0)] = 0
    """Number of classes; only needed for streamed data."""
    skip_bad_images: bool = False
    """Leave unreadable images out and count them."""
    json: bool = False
    """Print the result as one JSON object and nothing else."""

    def __post_init__(self) -> None:
        settings.check(self)


def run(options: Options) -> int:
    """`distill eval`: print the accuracy of a checkpoint; 1 where its logits are not numbers."""
    found = do(options)
    is_finite = math.isfinite(found.result.loss)
    if not speaks():
        return int(not is_finite)
    if options.json:
        print(files.json_text(found.to_dict()))
        return int(not is_finite)
    lines = [f"{found.checkpoint}: {note}" for note in found.notes]
    result = found.result
    skipped = f", {result.skipped} unreadable images skipped" if result.skipped else ""
    lines.append(
        f"{found.checkpoint}: {found.model}  top-1 {result.top1:.2f} %  top-5 {result.top5:.2f} %  "
        f"loss {result.loss:.4f} nats  (n={result.images} {found.split} images of {found.data}{skipped})"
    )
    low, high = found.top1_interval
    lines.append(
        f"{found.checkpoint}: top-1 {low:.2f} to {high:.2f} % (95 % interval on {result.images} images)"
    )
    lines.append(f"{found.checkpoint}: {balanced_line(found.classes)}")
    print(in_rows("\n".join(map(printable, lines)), sys.stdout))
    if not is_finite:
        raise GateError(f"{found.checkpoint}: its logits hold NaN or inf, so these figures say nothing")
    return 0


def do(options: Options) -> EvaluationReport:
    """Top-1, top-5 and loss of a checkpoint."""
    with begun(options.device):
        return _evaluated(options)


def _evaluated(options: Options) -> EvaluationReport:
    with loading("loading torch"):
        from runtime.images.classes import in_order_of, require_readable_classes

        from .. import checkpoint as checkpoints
        from .. import models
        from ..data import eval_loader, open_of_run
        from ..evaluate import EvaluationReport, evaluate, pick_device
        from ..models.depthwise import network_format
        from ..recipe import key_values

    found = checkpoints.load_any(
        options.checkpoint,
        options.model or None,
        key_values(options.model_args),
        entry=options.checkpoint_key,
    )
    spec = options.data or found.recorded_data("val", "--data")
    if spec and not options.data:
        say(f"validation data from the checkpoint: {spec}")
    with loading(f"looking for the images of {spec}"):
        images = open_of_run(spec, options.split, options.checkpoint, options.num_classes)
    images = in_order_of(found.class_names, options.checkpoint, images, options.split)
    if options.skip_bad_images:
        require_readable_classes(images, options.split)
    device = pick_device(options.device)
    model = models.build(found.model, len(images.class_names), found.model_args)
    checkpoints.load_weights(model, found)
    preprocess = models.sized(found.preprocess, options.img_size, options.input_size)
    loader = eval_loader(images, preprocess, options.batch, options.workers, device)
    with progress_bar("evaluating", len(images)) as advance:
        result = evaluate(
            model.to(device).to(memory_format=network_format(model, device, channels_last=True)),
            loader,
            device,
            skip_bad=options.skip_bad_images,
            after_batch=advance,
        )
    notes = list(found.notes)
    if bad := checkpoints.not_finite(found.state_dict):
        notes.append(f"its weight {bad} holds NaN or inf")
    if found.class_names is None:
        notes.append(f"carries no class names; their order is taken from {spec}")
    return EvaluationReport(
        options.checkpoint, found.model, spec, options.split, result, notes, images.class_names
    )
