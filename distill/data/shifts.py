"""Shears and translations of an image: what Pillow's affine transform with its bicubic filter gives, but for
a level of 255 in a few pixels, in less time.

In:  a PIL image in mode RGB, the shift of each of its rows or columns in pixels.
Out: a PIL image of the same size.
Elsewhere: which image is moved, and how far (distill.data.augment).

A shear or a translation along one axis moves a row by one distance, so that four taps with one fraction for
all of its pixels take the place of sixteen with a fraction for each.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from timm.data import auto_augment

BLOCK = 64
"""Rows at a time, so that they stay in the processor's cache."""
EDGE = 4
"""Pixels that are repeated beyond an edge: as far as the taps of a pixel inside reach, and one for
rounding."""

Moved = Callable[..., Image.Image]


def shear_x(image: Image.Image, factor: float, **settings: Any) -> Image.Image:
    """timm's function of the same name."""
    shifts = factor * (np.arange(image.height) + 0.5)
    return _moved(image, shifts, False, auto_augment.shear_x, factor, settings)


def shear_y(image: Image.Image, factor: float, **settings: Any) -> Image.Image:
    """timm's function of the same name."""
    shifts = factor * (np.arange(image.width) + 0.5)
    return _moved(image, shifts, True, auto_augment.shear_y, factor, settings)


def translate_x_rel(image: Image.Image, pct: float, **settings: Any) -> Image.Image:
    """timm's function of the same name."""
    shifts = np.full(image.height, pct * image.width)
    return _moved(image, shifts, False, auto_augment.translate_x_rel, pct, settings)


def translate_y_rel(image: Image.Image, pct: float, **settings: Any) -> Image.Image:
    """timm's function of the same name."""
    shifts = np.full(image.width, pct * image.height)
    return _moved(image, shifts, True, auto_augment.translate_y_rel, pct, settings)


FASTER: dict[Moved, Moved] = {
    auto_augment.shear_x: shear_x,
    auto_augment.shear_y: shear_y,
    auto_augment.translate_x_rel: translate_x_rel,
    auto_augment.translate_y_rel: translate_y_rel,
}
"""timm's function -> the one here that gives the same image but for rounding."""


def _moved(
    image: Image.Image,
    shifts: np.ndarray,
    is_vertical: bool,
    of_timm: Moved,
    amount: float,
    settings: dict[str, Any],
) -> Image.Image:
    """The image with its rows (columns where is_vertical) taken `shifts` pixels further on. With another
    filter than bicubic, for what Pillow does quickly itself, timm's own function is asked.
    """
    resample = settings.get("resample", Image.Resampling.BICUBIC)
    if isinstance(resample, (list, tuple)):  # drawn as timm draws it
        resample = random.choice(resample)
    if resample != Image.Resampling.BICUBIC or image.mode != "RGB":
        return of_timm(image, amount, **settings | {"resample": resample})
    fill = np.array(settings.get("fillcolor") or (0, 0, 0), np.uint8)
    if is_vertical:
        turned = image.transpose(Image.Transpose.TRANSPOSE)
        found = along_rows(np.asarray(turned), shifts, fill)
        return Image.fromarray(found).transpose(Image.Transpose.TRANSPOSE)
    return Image.fromarray(along_rows(np.asarray(image), shifts, fill))


def along_rows(pixels: np.ndarray, shifts: np.ndarray, fill: np.ndarray) -> np.ndarray:
    """(H, W, C) uint8 whose pixel (y, x) is that of `pixels` at (y, x + shifts[y]), by bicubic interpolation
    as Pillow's (a = -1, cut off to whole numbers); `fill` (C,) where that is outside.

    pixels: (H, W, C) uint8; shifts: (H,) float64.
    """
    height, width, channels = pixels.shape
    shifts = np.clip(shifts, -2.0 * width, 2.0 * width)
    whole = np.floor(shifts)
    share = (shifts - whole).astype(np.float32)[:, None]
    first = np.ceil(-shifts - 0.5).clip(0, width).astype(np.int64)
    last = np.ceil(width - shifts - 0.5).clip(0, width).astype(np.int64)
    begin = first + whole.astype(np.int64) - 1 + EDGE
    parts = _equal_rows(np.stack([first, last, begin], axis=1) * channels)
    rows = np.pad(pixels, ((0, 0), (EDGE, EDGE), (0, 0)), "edge").reshape(height, -1)
    taps = np.zeros((height, (width + 3) * channels), np.uint8)
    for y, a, b, start in parts:
        taps[y, a : b + 3 * channels] = rows[y, start : start + b - a + 3 * channels]
    found = np.empty((height, width * channels), np.uint8)
    for top in range(0, height, BLOCK):
        block = slice(top, top + BLOCK)
        found[block] = _between(taps[block].astype(np.int16), share[block], channels)
    outside = np.tile(fill, width)
    for y, a, b, _ in parts:
        found[y, :a] = outside[:a]
        found[y, b:] = outside[b:]
    return found.reshape(pixels.shape)


def _equal_rows(numbers: np.ndarray) -> list[tuple[slice, int, int, int]]:
    """Rows of (H, 3) numbers that follow each other and are equal, each time with their numbers; an interval
    whose first number is not below the second is left empty, at the end.
    """
    ends = np.flatnonzero((np.diff(numbers, axis=0) != 0).any(axis=1)) + 1
    found = []
    for top, bottom in itertools.pairwise([0, *ends.tolist(), len(numbers)]):
        first, last, begin = numbers[top].tolist()
        interval = (first, last, begin) if first < last else (0, 0, 0)
        found.append((slice(top, bottom), *interval))
    return found


def _between(taps: np.ndarray, share: np.ndarray, channels: int) -> np.ndarray:
    """(R, N) float32, 0 to 255, between the second and the third of four neighbors. taps: (R, N + 3 channels)
    int16; share: (R, 1) float32, of the way to the third.
    """
    count = taps.shape[1] - 3 * channels
    v1, v2, v3, v4 = (taps[:, k * channels : k * channels + count] for k in range(4))
    cubic = v4 - v1 - v3 + v2
    found = np.multiply(cubic, share, dtype=np.float32)
    found += v1 - v2 - cubic
    found *= share
    found += v3 - v1
    found *= share
    found += v2
    return np.clip(found, 0.0, 255.0, out=found)
