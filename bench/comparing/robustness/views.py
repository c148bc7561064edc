"""What is shown to a network of one image: as it is, corrupted, occluded, shuffled, shifted, cropped.

Every view comes after the resize and the crop, at the network's input size, on 8-bit pixels; so did
ImageNet-C's.

In:  which parts, corruptions and severities are asked for; the preprocessing of the network.
Out: a list of `View`s; each makes the same picture of the same pixels, whatever was made before.
Elsewhere: the pictures (bench.comparing.robustness.corruptions, bench.comparing.robustness.patches), asking
the network (bench.comparing.robustness.asking).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from runtime import ArtifactError, Preprocess

from . import patches
from .corruptions import CORRUPTIONS

PARTS = ("corruptions", "occlusion", "shuffle", "shifts", "crops")
DROPPED = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Shares of cells that are occluded."""
MESHES = (2, 4, 8)
"""Cells on a side of shuffled images."""
SHIFTS = (1 / 32, 1 / 16, 1 / 8)
"""Of the shorter side."""
CROPS = (0.95, 0.9, 0.8)
"""Shares of both sides that are kept."""
LARGEST_CIFAR_SIDE = 64
"""Pixels of the shorter side up to which an input is like CIFAR's."""
LEAST_SIDE = 8


@dataclass(frozen=True)
class Asked:
    """What to measure. The names are keys of the JSON result."""

    parts: tuple[str, ...] = PARTS
    corruptions: tuple[str, ...] = tuple(CORRUPTIONS)
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    constants: str = "imagenet"
    """Whose constants corruptions have, and how fine the mesh of occlusion is: cifar or imagenet."""
    seed: int = 0

    @property
    def grid(self) -> int:
        """Cells on a side of occluded images: 4 pixels each at 32, 16 each at 224."""
        return 8 if self.constants == "cifar" else 14


@dataclass(frozen=True)
class View:
    """One way to show every image."""

    part: str
    """One of PARTS, or clean."""
    name: str
    """Of the corruption; the part again for the others."""
    level: float
    """Severity, share, cells on a side, or pixels."""
    of: Callable[[np.ndarray], np.ndarray]
    """(H, W, 3) uint8 -> the same."""


def constants_for(preprocess: Preprocess) -> str:
    """Whose constants suit this input size."""
    return "cifar" if min(preprocess.input_size[1:]) <= LARGEST_CIFAR_SIDE else "imagenet"


def views(asked: Asked, preprocess: Preprocess) -> list[View]:
    """All views that are asked for, the image itself first. Raises ArtifactError for tiny inputs."""
    side = min(preprocess.input_size[1:])
    if side < LEAST_SIDE:
        raise ArtifactError(f"input of {side} pixels: robustness needs {LEAST_SIDE} or more on each side")
    color = np.clip(np.round(255 * np.array(preprocess.mean)), 0, 255).astype(np.uint8)
    made = [View("clean", "clean", 0, lambda image: image)]
    if "corruptions" in asked.parts:
        made += [
            View("corruptions", name, severity, partial(_corrupted, name, severity, asked))
            for name in asked.corruptions
            for severity in asked.severities
        ]
    pictures: dict[str, tuple[tuple[float, ...], Callable[..., np.ndarray]]] = {
        "occlusion": (DROPPED, lambda image, share, r: patches.occluded(image, share, asked.grid, color, r)),
        "shuffle": (MESHES, lambda image, mesh, r: patches.shuffled(image, int(mesh), r)),
        "shifts": (shift_pixels(side), lambda image, pixels, r: patches.shifted(image, int(pixels), r)),
        "crops": (CROPS, patches.cropped),
    }
    for part, (levels, picture) in pictures.items():
        if part in asked.parts:
            made += [View(part, part, x, partial(_pictured, part, x, picture, asked.seed)) for x in levels]
    return made


def shift_pixels(side: int) -> tuple[int, ...]:
    """The shifts of an input with this shorter side, pixels."""
    return tuple(dict.fromkeys(max(round(share * side), 1) for share in SHIFTS))


def generator(image: np.ndarray, *words: object) -> np.random.Generator:
    """Random numbers that depend on the pixels and the words alone: neither on the order of the
    images, nor on their names or the size of a batch.
    """
    digest = hashlib.blake2b(" ".join(map(str, (*words, image.shape))).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    return np.random.default_rng(int.from_bytes(digest.digest(), "little"))


def _corrupted(name: str, severity: int, asked: Asked, image: np.ndarray) -> np.ndarray:
    random = generator(image, name, severity, asked.seed)
    return CORRUPTIONS[name](image, severity, asked.constants, random)


def _pictured(
    part: str, level: float, picture: Callable[..., np.ndarray], seed: int, image: np.ndarray
) -> np.ndarray:
    return picture(image, level, generator(image, part, seed))
