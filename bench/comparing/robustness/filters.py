"""Resampling and smoothing of images in numpy, as the libraries that made ImageNet-C do it.

In:  float arrays (H, W, C) or (H, W); coordinates in pixels, the middle of the first pixel at 0.
Out: float arrays of the same height and width.
Elsewhere: what they are used for (bench.comparing.robustness.corruptions).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np


def disk(radius: float, blur: float) -> np.ndarray:
    """(K, K) float32: equal weights of sum 1 within `radius` of the middle, then smoothed by a Gaussian of
    `blur` pixels. Where the disk touches the kernel's border (radii 8 and 10), the mirror there adds up to
    1.1 % to the sum, as it does in ImageNet-C.
    """
    reach = 8 if radius <= 8 else math.ceil(radius)
    place = np.arange(-reach, reach + 1)
    inside = (place[:, None] ** 2 + place**2 <= radius**2).astype(np.float64)
    taps = gaussian(blur, 1 if radius <= 8 else 2)
    smoothed = correlate(inside / inside.sum(), np.outer(taps, taps))
    return smoothed.astype(np.float32)


def gaussian(sigma: float, reach: int) -> np.ndarray:
    """(2 * reach + 1,) weights of sum 1."""
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    normalized: np.ndarray = weights / weights.sum()
    return normalized


def correlate(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Weighted sum over each pixel's surroundings; kernel (K, K), K odd. Beyond the border the image is
    mirrored at its outermost pixels.
    """
    reach = len(kernel) // 2
    used = np.abs(np.argwhere(kernel) - reach).max(initial=0)
    padded = np.pad(image, [(used, used), (used, used), (0, 0)][: image.ndim], mode="reflect")
    height, width = image.shape[:2]
    found = np.zeros_like(image)
    for row, column in np.argwhere(kernel):
        top, left = row - reach + used, column - reach + used
        found += kernel[row, column] * padded[top : top + height, left : left + width]
    return found


def smooth(field: np.ndarray, sigma: float) -> np.ndarray:
    """A field (H, W) under a Gaussian that is cut at three sigma; mirrored at the border's edge."""
    if sigma == 0:
        return field
    height, width = field.shape
    smoothed: np.ndarray = _smoothing(height, sigma) @ field @ _smoothing(width, sigma).T
    return smoothed


@lru_cache(maxsize=16)
def _smoothing(size: int, sigma: float) -> np.ndarray:
    """(size, size): row i holds the weights of smoothed value i."""
    reach = int(3 * sigma + 0.5)
    place = np.arange(size)[:, None] + np.arange(-reach, reach + 1)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], mirrored(place, size, "edge")), gaussian(sigma, reach))
    return matrix


def mirrored(place: np.ndarray, size: int, at: str) -> np.ndarray:
    """Whole numbers folded into 0 to size - 1, mirrored at the outermost pixel's middle (at="pixel") or at
    its edge (at="edge"), any number of times.
    """
    if at == "edge":
        folded = place % (2 * size)
        return np.where(folded < size, folded, 2 * size - 1 - folded)
    period = max(2 * size - 2, 1)
    folded = place % period
    return np.where(folded < size, folded, period - folded)


def sample(image: np.ndarray, rows: np.ndarray, columns: np.ndarray, at: str) -> np.ndarray:
    """Bilinear values of an image (H, W, C) at coordinates (...): (..., C). at: as of `mirrored`."""
    height, width = image.shape[:2]
    top, left = np.floor(rows).astype(np.int64), np.floor(columns).astype(np.int64)
    down, right = ((x - whole).astype(image.dtype)[..., None] for x, whole in ((rows, top), (columns, left)))
    y0, y1 = mirrored(top, height, at), mirrored(top + 1, height, at)
    x0, x1 = mirrored(left, width, at), mirrored(left + 1, width, at)
    above = image[y0, x0] * (1 - right) + image[y0, x1] * right
    below = image[y1, x0] * (1 - right) + image[y1, x1] * right
    mixed: np.ndarray = above * (1 - down) + below * down
    return mixed


def zoomed(image: np.ndarray, factor: float) -> np.ndarray:
    """The middle of the image, enlarged to its size; factor >= 1. Corners stay, as in scipy's zoom."""
    for axis in (0, 1):
        image = _stretched(image, factor, axis)
    return image


def _stretched(image: np.ndarray, factor: float, axis: int) -> np.ndarray:
    size = image.shape[axis]
    kept = math.ceil(size / factor)
    large = round(kept * factor)
    place = (np.arange(size) + (large - size) // 2) * ((kept - 1) / max(large - 1, 1))
    low = np.minimum(place.astype(np.int64), max(kept - 2, 0))
    weight = (place - low).astype(image.dtype).reshape([-1 if each == axis else 1 for each in range(3)])
    start = (size - kept) // 2
    first = np.take(image, start + low, axis)
    second = np.take(image, start + np.minimum(low + 1, kept - 1), axis)
    stretched: np.ndarray = first * (1 - weight) + second * weight
    return stretched
