"""Image -> (C, H, W) float32: the only definition, used by evaluation, calibration and prediction.

In:  a path, encoded bytes, a PIL image or a uint8 array (H, W, 3) or (H, W), and a `Preprocess` spec.
Out: float32 array (C, H, W), equal bit for bit to timm's evaluation transform
(`create_transform(is_training=False)`).
Elsewhere: decoding (runtime.images.decode), training augmentation (distill.data.augment).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import DataError, UsageError

if TYPE_CHECKING:
    from .images.decode import Image

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
CROP_MODES = ("center", "squash", "border")
EXIF = ("ignore", "apply")
LARGEST_SIDE, MOST_INPUT = 2**14, 2**24
"""Pixels of a network's input, in height or width and in all."""
CROP_PCT, MEAN, STD = (0.01, 100.0), (-1000.0, 1000.0), (1e-6, 1e6)
"""Smallest and largest of each, as examples/cpp has them too."""


@dataclass(frozen=True)
class Preprocess:
    """What is done to an image before the network sees it; travels with every checkpoint and artifact."""

    input_size: tuple[int, int, int] = (3, 224, 224)
    """Channels, height, width in pixels; channels is 3, the others 1 to LARGEST_SIDE, together at most
    MOST_INPUT."""
    interpolation: str = "bicubic"
    """Resampling filter of the resize, one of INTERPOLATIONS; antialiased, as Pillow does."""
    crop_pct: float = 0.875
    """Side of the crop divided by the side resized to, in CROP_PCT."""
    crop_mode: str = "center"
    """center: shorter side resized, center cropped; squash: both sides; border: longer side, padded with the
    mean color."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Subtracted per channel after division by 255, in MEAN."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Divided by per channel, in STD."""
    exif: str = "ignore"
    """apply: an image is turned and mirrored as its EXIF orientation says; ignore: it stays as it is stored,
    which is what timm, torchvision and the weights they publish do."""

    def __post_init__(self) -> None:
        for name, kind in (("input_size", Integral), ("mean", Real), ("std", Real)):
            values = getattr(self, name)  # lists come from JSON and YAML
            if isinstance(values, (str, Mapping)) or not isinstance(values, Iterable):
                raise UsageError(f"{name} {values!r}: expected three numbers")
            object.__setattr__(self, name, tuple(values))
            if not all(isinstance(v, kind) and not isinstance(v, bool) for v in getattr(self, name)):
                raise UsageError(f"{name} {values!r}: expected three numbers")
        if (
            len(self.input_size) != 3
            or self.input_size[0] != 3
            or not all(1 <= side <= LARGEST_SIDE for side in self.input_size)
            or self.input_size[1] * self.input_size[2] > MOST_INPUT
        ):
            raise UsageError(
                f"input_size {self.input_size}: expected (3, height, width), 1 to {LARGEST_SIDE} pixels each"
                f" and {MOST_INPUT:,} in all"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise UsageError(
                f"interpolation {self.interpolation!r}: expected one of {', '.join(INTERPOLATIONS)}"
            )
        if self.crop_mode not in CROP_MODES:
            raise UsageError(f"crop_mode {self.crop_mode!r}: expected one of {', '.join(CROP_MODES)}")
        if self.exif not in EXIF:
            raise UsageError(f"exif {self.exif!r}: expected one of {', '.join(EXIF)}")
        self._check_numbers()

    def _check_numbers(self) -> None:
        """Bounds far outside of what is in use, within which the arithmetic cannot overflow."""
        for name, values, wanted, (least, most) in (
            ("crop_pct", (self.crop_pct,), "a number", CROP_PCT),
            ("mean", self.mean, "three numbers", MEAN),
            ("std", self.std, "three numbers", STD),
        ):
            if len(values) != (1 if name == "crop_pct" else 3) or not all(
                isinstance(v, Real) and least <= v <= most for v in values
            ):
                found = ", ".join(map(repr, values))
                raise UsageError(f"{name} {found}: expected {wanted} from {least:g} to {most:g}")
        if min(self.input_size[1:]) < self.crop_pct:
            raise UsageError(
                f"crop_pct {self.crop_pct} of input_size {self.input_size} leaves less than a pixel. Expected"
                f" crop_pct up to {min(self.input_size[1:])}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """Read the spec from a plain mapping; unknown keys raise UsageError."""
        if not isinstance(values, Mapping):
            raise UsageError(f"preprocessing is a {type(values).__name__}: expected a mapping")
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise UsageError(f"preprocessing keys {sorted(unknown)} are unknown to this version")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values. `exif` is left out where it is `ignore`: readers that do not know it then do the
        right thing, and refuse `apply`.
        """
        values = {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }
        if self.exif == "ignore":
            del values["exif"]
        return values

    def __call__(self, image: Image) -> np.ndarray:
        """(C, H, W) float32 of one image. Raises DataError when it cannot be decoded."""
        return self.normalize(self.pixels(image))

    def rgb(self, image: Image) -> Any:
        """A PIL image, mode RGB, turned where `exif` and the image say so; neither resized nor cropped."""
        from .images.decode import open_rgb, upright  # here, so that `import runtime` does not pay for it

        return upright(open_rgb(image)) if self.exif == "apply" else open_rgb(image)

    def pixels(self, image: Image) -> np.ndarray:
        """Decoded, resized and cropped: (H, W, 3) uint8."""
        name = os.fspath(image) if isinstance(image, (str, os.PathLike)) else "image"
        return np.asarray(_crop(_resize(self.rgb(image), self, name), self), dtype=np.uint8)

    def normalize(self, pixels: np.ndarray) -> np.ndarray:
        """(..., H, W, 3) uint8 -> (..., 3, H, W) float32, in the order of operations that
        torchvision uses.
        """
        scaled = np.moveaxis(pixels, -1, -3).astype(np.float32, order="C") / np.float32(255)
        shape = (3, 1, 1)
        mean, std = (np.asarray(each, np.float32).reshape(shape) for each in (self.mean, self.std))
        normalized: np.ndarray = (scaled - mean) / std
        return normalized

    def batch(self, images: Iterable[Image]) -> np.ndarray:
        """(N, C, H, W) float32 of N images, one or more."""
        pixels = [self.pixels(image) for image in images]
        if not pixels:
            raise UsageError("no images to make a batch of. Give one or more")
        return self.normalize(np.stack(pixels))


def _resize(image: Any, spec: Preprocess, name: str) -> Any:
    from .images.decode import MOST_PIXELS

    if not image.width or not image.height:
        raise DataError(f"{name}: {image.width} x {image.height} pixels. Expected one or more; leave it out")
    height, width = spec.input_size[1:]
    target = (math.floor(height / spec.crop_pct), math.floor(width / spec.crop_pct))
    size = _resized_size((image.height, image.width), target, spec.crop_mode)
    if size == (image.height, image.width):
        return image
    too_many = f", more than {MOST_PIXELS:,} pixels" if size[0] * size[1] > MOST_PIXELS else ""
    if min(size) < 1 or too_many:
        raise DataError(
            f"{name}: {image.width} x {image.height} pixels are too narrow for crop mode {spec.crop_mode},"
            f" which scales them to {size[1]} x {size[0]}{too_many}. Crop it, or leave it out"
        )
    return image.resize((size[1], size[0]), getattr(_resampling(), spec.interpolation.upper()))


def _resized_size(size: tuple[int, int], target: tuple[int, int], crop_mode: str) -> tuple[int, int]:
    """(height, width) after the resize, rounded as torchvision (square targets) and timm (others) do."""
    height, width = size
    if crop_mode == "squash":
        return target
    ratios = (height / target[0], width / target[1])
    if crop_mode == "border":
        # timm blends the two ratios with weights 1 and 0; adding 0 * x changes no finite value
        return round(height / max(ratios)), round(width / max(ratios))
    if target[0] != target[1]:
        return round(height / min(ratios)), round(width / min(ratios))
    if width <= height:
        return int(target[0] * height / width), target[0]
    return target[0], int(target[0] * width / height)


def _crop(image: Any, spec: Preprocess) -> Any:
    height, width = spec.input_size[1:]
    if image.width < width or image.height < height:
        red, green, blue = (round(255 * v) for v in spec.mean) if spec.crop_mode == "border" else (0, 0, 0)
        fill = (red, green, blue)
        image = _pad(image, height, width, fill)
    top = round((image.height - height) / 2)
    left = round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))


def _pad(image: Any, height: int, width: int, fill: tuple[int, int, int]) -> Any:
    from PIL import Image as pil

    canvas = pil.new("RGB", (max(width, image.width), max(height, image.height)), fill)
    canvas.paste(image, (max(width - image.width, 0) // 2, max(height - image.height, 0) // 2))
    return canvas


def _resampling() -> Any:
    from PIL import Image as pil

    return pil.Resampling
