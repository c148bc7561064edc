"""The checks every artifact must pass before it is written: the same numbers as torch, and accuracy on real labelled images.

In:  logits of the checkpoint's own network; the artifact, opened by `runtime.load` as an application would.
Out: the numbers, for the metadata; GateError when a check does not hold.
Elsewhere: making the artifact (export.graph, export.quantize), speed (bench).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from runtime.artifact import Metadata
from runtime.errors import GateError
from runtime.predictor import Predictor, load

BATCH_SIZES = (1, 2, 16)
"""At which ONNX is compared with torch; 1 and 2 on some images, the largest on all."""

INT8_TOLERANCE = 0.05
"""Largest difference between batch 1 and batch N of one int8 image, as a share of the logit scale. Kernels for other batch
sizes sum in another order; in int8 the last bit of a sum can move a value across a rounding border, which is a whole step."""


@dataclass(frozen=True)
class Agreement:
    """How two sets of logits for the same images compare."""

    images: int
    max_abs: float
    """Largest difference between two logits."""
    logit_scale: float
    """Largest |logit| of the reference, at least 1."""
    top1_agreement: float
    """Share of images with the same best class, percent."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Accuracy:
    """int8 against fp32 on the same labelled images; percent and points of top-1."""

    images: int
    fp32_top1: float
    int8_top1: float
    drop: float
    """fp32_top1 - int8_top1, points; negative when int8 is better."""
    agreement: float
    """Share of images for which both choose the same class, percent."""
    max_abs: float
    """Largest difference between an fp32 and an int8 logit."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def torch_logits(network: nn.Module, images: np.ndarray, batch: int = 16) -> np.ndarray:
    """(N, K) float32 of preprocessed images (N, C, H, W)."""
    with torch.inference_mode():
        parts = [network(torch.from_numpy(images[i:i + batch])).numpy() for i in range(0, len(images), batch)]
    return np.concatenate(parts)


def require_equal(reference: np.ndarray, logits: np.ndarray, atol: float, what: str) -> Agreement:
    """Raise GateError unless every logit is within `atol` times the logit scale and every top-1 is the same.

    reference, logits (N, K). The scale is max(1, largest |reference|): float32 rounding grows with the numbers themselves.
    """
    if not (np.isfinite(reference).all() and np.isfinite(logits).all()):
        raise GateError(f"{what}: logits are not finite. The checkpoint's network overflows on these images")
    scale = max(1.0, float(np.abs(reference).max()))
    found = Agreement(len(reference), float(np.abs(reference - logits).max()), scale,
                      100 * float((reference.argmax(1) == logits.argmax(1)).mean()))
    if found.max_abs > atol * scale or found.top1_agreement < 100:
        raise GateError(f"{what}: largest logit difference {found.max_abs:.3g} (allowed {atol * scale:.3g} = {atol:g} x logit "
                        f"scale {scale:.3g}), same top-1 on {found.top1_agreement:.2f} % of {found.images} images. "
                        "Not the same network: report the architecture, or allow more with --atol")
    return found


def parity(predictor: Predictor, reference: np.ndarray, images: np.ndarray, atol: float) -> dict[str, Any]:
    """ONNX against torch at each of BATCH_SIZES, and equal rows for equal images. Raises GateError.

    reference (N, K) are the unmerged network's logits for images (N, C, H, W), preprocessed.
    """
    worst: list[Agreement] = []
    for size in BATCH_SIZES:
        count = len(images) if size == max(BATCH_SIZES) else min(len(images), 8 * size)
        logits = in_batches(predictor, images[:count], size)
        worst.append(require_equal(reference[:count], logits, atol, f"ONNX against torch at batch {size}"))
    spread = require_consistent(predictor, images, atol)
    largest = max(worst, key=lambda found: found.max_abs)
    return worst[-1].to_dict() | {"max_abs": largest.max_abs, "atol": atol, "batch_sizes": list(BATCH_SIZES),
                                  "batch_spread": spread}


def require_consistent(predictor: Predictor, images: np.ndarray, tolerance: float) -> float:
    """Largest difference that the place in the batch or its size makes to an image. Raises GateError above `tolerance`
    times the logit scale: an image's result must not depend on its neighbours.
    """
    some = images[:max(BATCH_SIZES)]
    alone = in_batches(predictor, some, 1)
    together = predictor.logits(np.ascontiguousarray(some))
    repeated = predictor.logits(np.repeat(some[:1], len(some), axis=0))
    spread = max(float(np.abs(alone - together).max()), float(np.abs(repeated - alone[:1]).max()))
    allowed = tolerance * max(1.0, float(np.abs(alone).max()))
    if not spread <= allowed:
        raise GateError(f"the same image gives logits that differ by {spread:.3g} at another place or batch size "
                        f"(allowed {allowed:.3g}). The graph mixes images of a batch; report the architecture")
    return spread


def accuracy(fp32: np.ndarray, int8: np.ndarray, labels: np.ndarray) -> Accuracy:
    """Compare the logits (N, K) of both artifacts for the same images with labels (N,)."""
    guess_fp32, guess_int8 = fp32.argmax(1), int8.argmax(1)
    right_fp32, right_int8 = int((guess_fp32 == labels).sum()), int((guess_int8 == labels).sum())
    n = len(labels)
    return Accuracy(n, 100 * right_fp32 / n, 100 * right_int8 / n, 100 * (right_fp32 - right_int8) / n,
                    100 * float((guess_fp32 == guess_int8).mean()), float(np.abs(fp32 - int8).max()))


def require_small_drop(found: Accuracy, max_drop: float) -> None:
    """Raise GateError when int8 loses more than `max_drop` points of top-1."""
    if found.drop > max_drop:
        raise GateError(f"int8 top-1 is {found.int8_top1:.2f} %, {found.drop:.2f} points below fp32's {found.fp32_top1:.2f} % on "
                        f"{found.images} images; at most {max_drop:g} allowed, nothing written. Try the other --calib-method, "
                        "a larger --calib-size, --exclude LAYER for sensitive layers, or allow more with --max-drop")


def logits_of(content: bytes, path: Path, batches: Iterable[np.ndarray]) -> np.ndarray:
    """(N, K) logits of the artifact with this content. One artifact is open at a time: threads of two engines that wait
    for work take the cores from each other (measured: twice the time).
    """
    with opened(content, path) as predictor:
        return np.concatenate([predictor.logits(batch) for batch in batches])


def in_batches(predictor: Predictor, images: np.ndarray, size: int) -> np.ndarray:
    """(N, K) logits, `size` images at a time."""
    return np.concatenate([predictor.logits(images[i:i + size]) for i in range(0, len(images), size)])


@contextlib.contextmanager
def opened(content: bytes, path: Path) -> Iterator[Predictor]:
    """The artifact with this content, opened by the runtime from `path`; what is measured is what an application loads."""
    path.write_bytes(content)
    with load(path) as predictor:
        yield predictor


def require_opens(content: bytes, meta: Metadata, folder: Path) -> None:
    """Raise GateError unless the final bytes open in the runtime and their metadata reads back as it was written."""
    with opened(content, folder / "final.onnx") as predictor:
        if predictor.metadata.to_map() != meta.to_map():
            raise GateError("the artifact's metadata does not read back as written, so nothing is written. Report this")
