"""Images changed a little so that a network errs: FGSM and PGD, in steps of 8-bit pixels.

In:  a network in torch; images (N, H, W, 3) uint8 at its input size; labels (N,).
Out: images of the same shape, uint8, each value within `epsilon` of what it was.
Elsewhere: the command (distill.commands.attack), what artifacts answer to such images (bench.accuracy).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from runtime.errors import UsageError
from runtime.images import ImageSet
from runtime.preprocess import Preprocess


@dataclass(frozen=True)
class Attack:
    """How images are changed."""

    kind: str
    """fgsm: one step along the sign of the gradient (Goodfellow et al., ICLR 2015, arXiv:1412.6572); pgd:
    several from a random start (Madry et al., ICLR 2018, arXiv:1706.06083); none."""
    epsilon: int
    """Largest change of a value, 0 to 255."""
    steps: int
    """Of pgd."""
    step: float
    """Change of a value in one step of pgd."""
    seed: int


def on_set(
    model: nn.Module,
    images: ImageSet,
    drawn: np.ndarray,
    preprocess: Preprocess,
    attack: Attack,
    device: torch.device,
    batch: int,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[np.ndarray, int, int]:
    """(the drawn images after the attack, framed; how many the network gets right before it, and after)."""
    frame = framed(np.zeros((1, *preprocess.input_size[1:], 3), np.uint8), preprocess).shape[1:]
    made, right, still = np.empty((len(drawn), *frame), np.uint8), 0, 0
    model.requires_grad_(False)
    for start in range(0, len(drawn), batch):
        some = drawn[start : start + batch]
        pixels = np.stack([preprocess.pixels(images.image(int(index))) for index in some])
        labels = images.labels[some]
        changed = attacked(model, pixels, labels, some.tolist(), preprocess, attack, device)
        right += int((classes(model, pixels, preprocess, device) == labels).sum())
        still += int((classes(model, changed, preprocess, device) == labels).sum())
        made[start : start + len(some)] = framed(changed, preprocess)
        progress(start + len(some))
    return made, right, still


def attacked(
    model: nn.Module,
    pixels: np.ndarray,
    labels: np.ndarray,
    indices: Sequence[int],
    preprocess: Preprocess,
    attack: Attack,
    device: torch.device,
) -> np.ndarray:
    """The images after the attack. indices: their places in the set, from which the random starts come, so
    that these do not depend on the batches; gradients may round differently in a batch of another size. The
    network has to be in evaluation mode.
    """
    if attack.kind == "none":
        return pixels
    clean = torch.from_numpy(pixels).to(device).float()
    truth = torch.from_numpy(labels).to(device)
    if attack.kind == "fgsm":
        moved = clean + attack.epsilon * _uphill(model, clean, truth, preprocess)
        return _bytes(moved)
    low, high = (clean - attack.epsilon).clamp(min=0), (clean + attack.epsilon).clamp(max=255)
    moved = torch.clamp(clean + _starts(clean, indices, attack), low, high)
    for _ in range(attack.steps):
        moved = torch.clamp(moved + attack.step * _uphill(model, moved, truth, preprocess), low, high)
    return _bytes(moved)


def classes(model: nn.Module, pixels: np.ndarray, preprocess: Preprocess, device: torch.device) -> np.ndarray:
    """(N,) the best class of each image."""
    with torch.inference_mode():
        logits = model(_normalized(torch.from_numpy(pixels).to(device).float(), preprocess))
    best: np.ndarray = logits.float().argmax(1).cpu().numpy()
    return best


def framed(pixels: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """(N, H', W', 3): the images with a border that `preprocess` cuts off again, so that it neither resizes
    nor moves them. Raises UsageError where no border can do that.
    """
    if preprocess.crop_pct > 1:
        raise UsageError(
            f"crop_pct {preprocess.crop_pct}: an artifact of this network makes every image smaller than its"
            " input, so it cannot be shown these pixels. Expected a network whose crop_pct is at most 1"
        )
    sides = preprocess.input_size[1:]
    whole = [math.floor(side / preprocess.crop_pct) for side in sides]
    before = [round((all_of_it - side) / 2) for all_of_it, side in zip(whole, sides, strict=True)]
    borders = [(b, w - s - b) for b, w, s in zip(before, whole, sides, strict=True)]
    return np.pad(pixels, [(0, 0), *borders, (0, 0)], mode="edge")


def _uphill(
    model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, preprocess: Preprocess
) -> torch.Tensor:
    """Sign of the gradient of the cross-entropy, (N, H, W, 3)."""
    pixels = pixels.detach().requires_grad_(True)
    with torch.enable_grad():
        loss = F.cross_entropy(model(_normalized(pixels, preprocess)).float(), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, pixels)
    return gradient.sign()


def _normalized(pixels: torch.Tensor, preprocess: Preprocess) -> torch.Tensor:
    """(N, H, W, 3) of 0 to 255 -> what the network takes."""
    mean, std = (pixels.new_tensor(each) for each in (preprocess.mean, preprocess.std))
    return ((pixels / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def _starts(clean: torch.Tensor, indices: Sequence[int], attack: Attack) -> torch.Tensor:
    """Uniform in the allowed range, for each image from a generator of its own."""
    drawn = [
        np.random.default_rng((attack.seed, int(index))).uniform(-1, 1, clean.shape[1:]) for index in indices
    ]
    return torch.from_numpy(np.stack(drawn).astype(np.float32)).to(clean.device) * attack.epsilon


def _bytes(pixels: torch.Tensor) -> np.ndarray:
    made: np.ndarray = pixels.detach().round().clamp(0, 255).byte().cpu().numpy()
    return made
