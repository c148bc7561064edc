"""Mixup and cutmix of a batch, drawn from seed, epoch and batch alone, so that they can be drawn again.

In:  the recipe; a batch of images and labels, and its place in the training.
Out: mixed images, and labels (N, K) that say how they were mixed.
Elsewhere: the seeds (distill.data.seeds), augmentation of single images (distill.data.augment).
"""

from __future__ import annotations

from typing import NamedTuple

from timm.data import Mixup
from torch import Tensor

from ..recipe import Recipe
from .seeds import hash_seed, own_random_state, seed_all

MIXING = -2
"""Where the seeds of batches begin, counted down: images count up from 0, and -1 is the order of an epoch."""


class Place(NamedTuple):
    """Which batch of a training, both from 0."""

    epoch: int
    batch: int


def mixing(recipe: Recipe, num_classes: int) -> Mixup | None:
    """timm's mixup and cutmix, with --mixup or --cutmix; None without them."""
    if not (recipe.mixup or recipe.cutmix):
        return None
    return Mixup(
        recipe.mixup,
        recipe.cutmix,
        prob=recipe.mixup_prob,
        switch_prob=recipe.mixup_switch_prob,
        label_smoothing=recipe.smoothing,
        num_classes=num_classes,
    )


def mixed(
    mixup: Mixup | None, images: Tensor, labels: Tensor, seed: int, place: Place
) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) and labels (N,), as they are or mixed, then (N, K)."""
    if mixup is None:
        return images, labels
    with own_random_state():
        seed_all(hash_seed(seed, place.epoch, MIXING - place.batch))
        found: tuple[Tensor, Tensor] = mixup(images, labels)
        return found
