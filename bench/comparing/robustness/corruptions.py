"""Ten corruptions of images at five severities, with the formulas and constants of ImageNet-C and CIFAR-10-C.

Source: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations" (ICLR 2019), and the constants that they published with it.

In:  an image (H, W, 3) uint8 at the network's input size, a severity 1 to 5, a generator of random numbers.
Out: an image of the same shape, uint8; fractions are cut off, as in the published sets.
Elsewhere: the generator of an image (bench.comparing.robustness.views), filters
(bench.comparing.robustness.filters). Glass and motion blur, snow, frost and fog are not made: they need
OpenCV, ImageMagick or photographs of frost.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import filters

Random = np.random.Generator
SEVERITIES = (1, 2, 3, 4, 5)


def gaussian_noise(image: np.ndarray, deviation: float, random: Random) -> np.ndarray:
    """x + a normal deviate in each channel; deviation: of values 0 to 1."""
    return _bytes(_unit(image) + random.normal(scale=deviation, size=image.shape))


def shot_noise(image: np.ndarray, photons: float, random: Random) -> np.ndarray:
    """Poisson counts of x * photons, divided by photons; photons: expected in a white pixel."""
    return _bytes(random.poisson(_unit(image) * photons) / photons)


def impulse_noise(image: np.ndarray, amount: float, random: Random) -> np.ndarray:
    """Salt and pepper: this share of values becomes 0 or 255, each with probability 1/2."""
    hit = random.random(image.shape) <= amount
    salt = random.random(image.shape) <= 0.5
    return np.where(hit, np.where(salt, 255, 0), image).astype(np.uint8)


def defocus_blur(image: np.ndarray, lens: tuple[float, float], random: Random) -> np.ndarray:
    """Mean over a disk. lens: its radius, and the Gaussian that smooths its rim, pixels."""
    return _bytes(filters.correlate(_unit(image).astype(np.float32), filters.disk(*lens)))


def zoom_blur(image: np.ndarray, zooms: tuple[float, float, float], random: Random) -> np.ndarray:
    """Mean of the image and of enlargements of its middle. zooms: first, end and step of the factors."""
    x = _unit(image).astype(np.float32)
    factors = np.arange(*zooms)
    total = sum((filters.zoomed(x, float(factor)) for factor in factors), x)
    return _bytes(total / (len(factors) + 1))


def brightness(image: np.ndarray, added: float, random: Random) -> np.ndarray:
    """Added to V of HSV, the largest channel. Hue and saturation stay, so all channels grow in proportion."""
    x = _unit(image)
    value = x.max(axis=2, keepdims=True)
    brighter = np.minimum(value + added, 1)
    return _bytes(np.where(value > 0, x * (brighter / np.where(value > 0, value, 1)), brighter))


def contrast(image: np.ndarray, kept: float, random: Random) -> np.ndarray:
    """Distances of each channel from its mean over the image, multiplied by `kept`."""
    x = _unit(image)
    mean = x.mean(axis=(0, 1), keepdims=True)
    return _bytes((x - mean) * kept + mean)


def elastic_transform(image: np.ndarray, lengths: tuple[float, float, float], random: Random) -> np.ndarray:
    """A random affine map, then a smooth random displacement of each pixel.

    lengths: factor of the displacement, deviation of the Gaussian that smooths it, and how far each of three
    corners moves at most; in sides of the image.
    """
    height, width = image.shape[:2]
    strength, sigma, jitter = (min(height, width) * each for each in lengths)
    x = _unit(image).astype(np.float32)
    y_here, x_here = np.mgrid[:height, :width].astype(np.float64)
    inverse = _random_affine(height, width, jitter, random)
    x_from, y_from = np.einsum("ij,jhw->ihw", inverse, np.stack([x_here, y_here, np.ones_like(x_here)]))
    x = filters.sample(x, y_from, x_from, at="pixel")
    dx, dy = (filters.smooth(random.uniform(-1, 1, (height, width)), sigma) * strength for _ in range(2))
    return _bytes(filters.sample(x, y_here + dy, x_here + dx, at="edge"))


def _random_affine(height: int, width: int, jitter: float, random: Random) -> np.ndarray:
    """(2, 3): from a place (x, y, 1) in the result to the place in the image that is shown there."""
    middle, arm = np.array([width // 2, height // 2], np.float64), min(height, width) // 3
    corners = middle + arm * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = corners + random.uniform(-jitter, jitter, corners.shape)
    inverse: np.ndarray = np.linalg.solve(np.column_stack([moved, np.ones(3)]), corners).T
    return inverse


def pixelate(image: np.ndarray, scale: float, random: Random) -> np.ndarray:
    """Reduced to `scale` of its sides and enlarged again, by areas."""
    from PIL import Image as pil

    height, width = image.shape[:2]
    small = (max(int(width * scale), 1), max(int(height * scale), 1))
    box = pil.Resampling.BOX
    return np.asarray(pil.fromarray(image).resize(small, box).resize((width, height), box))


def jpeg_compression(image: np.ndarray, quality: int, random: Random) -> np.ndarray:
    """Through a JPEG file of this quality."""
    from PIL import Image as pil

    file = io.BytesIO()
    pil.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(pil.open(file).convert("RGB"))


def _unit(image: np.ndarray) -> np.ndarray:
    """Values 0 to 1, float64."""
    return image / 255.0


def _bytes(x: np.ndarray) -> np.ndarray:
    """Values 0 to 1 as bytes, without rounding."""
    cut: np.ndarray = (np.clip(x, 0, 1) * 255).astype(np.uint8)
    return cut


@dataclass(frozen=True)
class Corruption:
    """A formula, and its constant at each severity."""

    formula: Callable[[np.ndarray, Any, Random], np.ndarray]
    cifar: tuple[Any, ...]
    imagenet: tuple[Any, ...]

    def __call__(self, image: np.ndarray, severity: int, constants: str, random: Random) -> np.ndarray:
        """constants: cifar or imagenet."""
        return self.formula(image, getattr(self, constants)[severity - 1], random)


SIDE = 244 / 224
"""ImageNet-C's lengths of elastic_transform are multiples of 244, at images of 224 pixels."""

CORRUPTIONS = {
    "gaussian_noise": Corruption(
        gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)
    ),
    "shot_noise": Corruption(shot_noise, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
    "impulse_noise": Corruption(
        impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)
    ),
    "defocus_blur": Corruption(
        defocus_blur,
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    "zoom_blur": Corruption(
        zoom_blur,
        ((1, 1.06, 0.01), (1, 1.11, 0.01), (1, 1.16, 0.01), (1, 1.21, 0.01), (1, 1.26, 0.01)),
        ((1, 1.11, 0.01), (1, 1.16, 0.01), (1, 1.21, 0.02), (1, 1.26, 0.02), (1, 1.31, 0.03)),
    ),
    "brightness": Corruption(brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": Corruption(contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "elastic_transform": Corruption(
        elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        (
            (SIDE * 2, SIDE * 0.7, SIDE * 0.1),
            (SIDE * 2, SIDE * 0.08, SIDE * 0.2),
            (SIDE * 0.05, SIDE * 0.01, SIDE * 0.02),
            (SIDE * 0.07, SIDE * 0.01, SIDE * 0.02),
            (SIDE * 0.12, SIDE * 0.01, SIDE * 0.02),
        ),
    ),
    "pixelate": Corruption(pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg_compression": Corruption(jpeg_compression, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
}
"""Name in ImageNet-C -> the corruption; in the order of the published tables."""
