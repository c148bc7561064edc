"""What the student says of every validation image, computed once and kept in RUN/val_predictions.npz.

In:  a `Run`; its validation images.
Out: `Predictions`: label, predicted class, confidence and loss of each image.
Elsewhere: accuracy alone (distill.evaluate), which images are shown (distill.run.report.gallery).
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from runtime import files
from runtime.cli.terminal import progress_bar
from runtime.env import usable_cores
from runtime.errors import DataError
from runtime.images import ArraySet, FolderSet, ImageSet
from runtime.images.classes import in_order_of
from runtime.preprocess import Preprocess

from ... import checkpoint as checkpoints
from ... import models
from ...evaluate import pick_device
from .collect import Run

FILE = "val_predictions.npz"
MOST_IMAGES = 50_000
"""Images that are looked at, spread evenly over the set."""
BATCH = 64
MOST_BYTES = 2**28
"""Bytes that the arrays of a stored file may have together."""
ARRAYS = {"index": "i", "label": "i", "predicted": "i", "confidence": "f", "loss": "f"}
"""Array of the file -> kind of its numbers."""


@dataclass(frozen=True)
class Predictions:
    """Of N images that could be read."""

    index: np.ndarray
    """(N,) place in the data set."""
    label: np.ndarray
    """(N,) class."""
    predicted: np.ndarray
    """(N,) class with the largest score."""
    confidence: np.ndarray
    """(N,) its probability, 0 to 1."""
    loss: np.ndarray
    """(N,) cross-entropy, nats."""
    of: str
    """SHA-256 of the weights, and of the data set's names and labels."""

    @cached_property
    def right(self) -> np.ndarray:
        """(N,) whether the class is the label."""
        found: np.ndarray = self.predicted == self.label
        return found

    def confusion(self, classes: int) -> np.ndarray:
        """(classes, classes) images by label (row) and predicted class (column)."""
        counts = np.bincount(self.label * classes + self.predicted, minlength=classes * classes)
        return counts.reshape(classes, classes)


def of_run(run: Run, images: ImageSet, device: str = "auto") -> Predictions:
    """From the run folder, or computed and written there. Raises DataError when no image can be read,
    ArtifactError for other classes than the network's.
    """
    images = in_order_of(run.checkpoint.class_names, run.name, images, "val")
    identity = f"{run.sha256} {images.fingerprint()}"
    path, classes = run.folder / FILE, len(images.class_names)
    kept = stored(path, classes)
    if kept is not None and kept.of == identity and kept.index.max() < len(images):
        return kept
    found = compute(run, images, identity, pick_device(device))
    content = io.BytesIO()
    np.savez_compressed(content, of=np.array(identity), **{name: getattr(found, name) for name in ARRAYS})
    files.write_bytes(path, content.getvalue())
    return found


def stored(path: Path, classes: int) -> Predictions | None:
    """What is in the file; None where there is none, or it is not what `of_run` writes."""
    try:
        with zipfile.ZipFile(path) as parts:
            if sum(part.file_size for part in parts.infolist()) > MOST_BYTES:
                return None
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ARRAYS}
            of = str(file["of"])
    except Exception:  # whatever numpy and zipfile make of bytes that no one wrote like this
        return None
    shapes = {array.shape for array in arrays.values()}
    kinds = all(array.dtype.kind == ARRAYS[name] for name, array in arrays.items())
    if len(shapes) != 1 or len(next(iter(shapes))) != 1 or not len(arrays["label"]) or not kinds:
        return None
    for name in ("label", "predicted", "index"):
        least, most = arrays[name].min(), arrays[name].max()
        if least < 0 or (name != "index" and most >= classes):
            return None
    return Predictions(**arrays, of=of)


def compute(run: Run, images: ImageSet, identity: str, device: torch.device) -> Predictions:
    """Run best.pth over the images; unreadable ones are left out."""
    found = run.checkpoint
    model = models.build(found.model, len(images.class_names), found.model_args)
    checkpoints.load_weights(model, found)
    model.to(device).eval()
    parts: list[list[np.ndarray]] = []
    with progress_bar("predicting for the report", min(len(images), MOST_IMAGES)) as advance:
        done = 0
        for chosen, pixels in _batches(images, found.preprocess):
            done += len(chosen)
            kept = np.array([i for i, each in zip(chosen, pixels, strict=True) if each is not None], np.int64)
            if len(kept):
                batch = torch.from_numpy(np.stack([each for each in pixels if each is not None]))
                parts.append([kept, *_one_batch(model, batch.to(device), images.labels[kept])])
            advance(done)
    if not parts:
        raise DataError(f"{images.name}: none of its images can be read")
    index, label, predicted, confidence, loss = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Predictions(index, label, predicted, confidence, loss, identity)


@torch.inference_mode()
def _one_batch(model: torch.nn.Module, batch: torch.Tensor, labels: np.ndarray) -> list[np.ndarray]:
    logits = model(batch).float().cpu()
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    loss = F.cross_entropy(logits, torch.from_numpy(labels), reduction="none")
    return [labels, predicted.numpy(), confidence.numpy(), loss.numpy()]


def _batches(
    images: ImageSet, preprocess: Preprocess
) -> Iterator[tuple[np.ndarray, list[np.ndarray | None]]]:
    """(which images, their pixels or None where one cannot be read)."""

    def read(index: int) -> np.ndarray | None:
        try:
            return preprocess(images.image(index))
        except DataError:
            return None

    count = min(len(images), MOST_IMAGES)
    chosen = np.arange(count) * len(images) // count if count else np.arange(0)
    threads = (
        usable_cores() if isinstance(images, (FolderSet, ArraySet)) else 1
    )  # timm's readers are not safe
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, count, BATCH):
            some: Sequence[int] = chosen[start : start + BATCH].tolist()
            yield np.array(some, np.int64), list(pool.map(read, some))
