"""Accuracy of a network on labelled images, and the command `distill eval`.

In:  a network in torch and a loader of `Batch`es; or a checkpoint file and a data spec.
Out: top-1 and top-5 in percent, cross-entropy in nats, number of images.
Elsewhere: accuracy of exported artifacts (bench.accuracy).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
import tyro
from torch import nn
from torch.nn import functional as F

from runtime.artifact import require_same_classes
from runtime.errors import DataError, MissingError, UsageError

from . import checkpoint as checkpoints
from . import models
from .data import Batch, eval_loader, open_data
from .recipe import key_values


@dataclass(frozen=True)
class Accuracy:
    """How good a network is on `images` labelled images."""

    top1: float
    """Percent."""
    top5: float
    """Percent; with fewer than five classes, of the best K."""
    loss: float
    """Cross-entropy, nats per image."""
    images: int
    skipped: int
    """Unreadable images left out."""
    classes: torch.Tensor = field(repr=False, compare=False)
    """(images,) predicted class of each, in order."""


def agreement(one: torch.Tensor, other: torch.Tensor) -> float | None:
    """Percent of images on which two networks predict the same class; None when they did not see the same
    images.
    """
    return 100 * (one == other).double().mean().item() if one.shape == other.shape else None


@torch.inference_mode()
def evaluate(
    model: nn.Module | Callable,
    loader: Iterable[Batch],
    device: torch.device,
    *,
    amp_dtype: torch.dtype | None = None,
    channels_last: bool = True,
    skip_bad: bool = False,
    after_batch: Callable[[int], None] = lambda n: None,
) -> Accuracy:
    """Run every batch; after_batch(images so far) may raise to stop. Raises DataError for an unreadable image
    unless skip_bad.
    """
    if isinstance(model, nn.Module):
        model.eval()
    right1 = right5 = images = skipped = 0
    loss = 0.0
    classes = []
    for batch in loader:
        require_readable(batch.bad, skip_bad)
        skipped += len(batch.bad)
        if not len(batch.labels):
            continue
        inputs = batch.images.to(device, non_blocking=True)
        labels = batch.labels.to(device, non_blocking=True)
        if channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, amp_dtype, enabled=amp_dtype is not None):
            logits = model(inputs)
        logits = logits.float()
        loss += F.cross_entropy(logits, labels, reduction="sum").double().item()
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hits = best == labels[:, None]
        classes.append(best[:, 0].cpu())
        right1 += int(hits[:, 0].sum())
        right5 += int(hits.sum())
        images += len(labels)
        after_batch(images)
    if not images:
        raise DataError("no readable image to evaluate on")
    return Accuracy(
        100 * right1 / images, 100 * right5 / images, loss / images, images, skipped, torch.cat(classes)
    )


def require_readable(bad: list[str], skip_bad: bool) -> None:
    """Raise DataError naming the first unreadable image, unless they are to be skipped."""
    if bad and not skip_bad:
        raise DataError(
            f"{bad[0]}. Remove or replace it, or add --skip-bad-images to leave such images out and count"
            " them"
        )


def pick_device(name: str) -> torch.device:
    """auto, cpu, cuda or cuda:INDEX. Raises MissingError when that GPU is not there, UsageError for another
    word.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise UsageError(f"device {name!r}: expected auto, cpu, cuda or cuda:INDEX")
    if kind == "cuda" and (not torch.cuda.is_available() or int(index or 0) >= torch.cuda.device_count()):
        raise MissingError(
            f"device {name!r}: torch {torch.__version__} sees {torch.cuda.device_count()} GPUs. Use"
            " --device cpu"
        )
    return torch.device(name)


@dataclass(frozen=True)
class EvalOptions:
    """Flags of `distill eval`."""

    checkpoint: tyro.conf.Positional[str]
    """best.pth, or a file of timm, torchvision or the authors (then with --model)."""
    data: Annotated[str, tyro.conf.arg(aliases=["--data-dir"])] = ""
    """Labelled images: a folder, npz:FILE, digits, torch/NAME:DIR; default: those the checkpoint was
    validated with."""
    split: Literal["val", "train"] = "val"
    """val or train, where the data has both."""
    model: str = ""
    """Architecture of a foreign file, for example resnet20."""
    model_args: tuple[str, ...] = ()
    """Its arguments, KEY=VALUE."""
    img_size: Annotated[int, tyro.conf.arg(aliases=["--imgsz"])] = 0
    """Input side in pixels; 0: the checkpoint's."""
    batch: Annotated[int, tyro.conf.arg(aliases=["-b", "--batch-size"])] = 256
    """Images per forward pass."""
    workers: Annotated[int, tyro.conf.arg(aliases=["-j"])] = -1
    """Reading processes; -1: up to 8 with a GPU, none on a CPU."""
    device: str = "auto"
    """cpu, cuda, cuda:INDEX or auto."""
    num_classes: int = 0
    """Only for streamed data."""
    skip_bad_images: bool = False
    """Leave unreadable images out and count them."""
    json: bool = False
    """One JSON object on stdout."""

    def __post_init__(self) -> None:
        if self.batch < 1 or self.workers < -1:
            raise UsageError(
                f"batch {self.batch}, workers {self.workers}: expected batch 1 or more, workers -1 or more"
            )


def run(options: EvalOptions) -> None:
    """`distill eval`: print top-1, top-5 and loss of a checkpoint."""
    from .progress import progress_bar

    found = checkpoints.load_any(options.checkpoint, options.model or None, key_values(options.model_args))
    spec = options.data or found.lineage.get("data", {}).get("val_spec", "")
    images = open_data(spec, options.split, options.num_classes)
    require_same_classes(found.class_names, options.checkpoint, images.class_names, spec)
    device = pick_device(options.device)
    model = models.build(found.model, len(images.class_names), found.model_args)
    checkpoints.load_weights(model, found)
    preprocess = found.preprocess
    if options.img_size:
        preprocess = replace(preprocess, input_size=(3, options.img_size, options.img_size))
    loader = eval_loader(images, preprocess, options.batch, options.workers, device)
    with progress_bar("evaluating", len(images)) as advance:
        result = evaluate(
            model.to(device).to(memory_format=torch.channels_last),
            loader,
            device,
            skip_bad=options.skip_bad_images,
            after_batch=advance,
        )
    if options.json:
        print(
            json.dumps(
                {
                    "checkpoint": options.checkpoint,
                    "data": spec,
                    "model": found.model,
                    "top1_percent": result.top1,
                    "top5_percent": result.top5,
                    "loss_nats": result.loss,
                    "images": result.images,
                    "skipped_images": result.skipped,
                    "notes": found.notes,
                }
            )
        )
        return
    for note in found.notes:
        print(f"{options.checkpoint}: {note}")
    if found.class_names is None:
        print(f"{options.checkpoint}: carries no class names; their order is taken from {spec}")
    skipped = f", {result.skipped} unreadable images skipped" if result.skipped else ""
    print(
        f"{options.checkpoint}: {found.model}  top-1 {result.top1:.2f} %  top-5 {result.top5:.2f} %  "
        f"loss {result.loss:.4f} nats  (n={result.images} {options.split} images of {spec}{skipped})"
    )
