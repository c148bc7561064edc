"""What training does to one image: crop, flip, auto-augment policy, colors, and where it will be erased.

In:  the recipe's augmentation settings and the student's `Preprocess`.
Out: a transform: PIL RGB image and its `Key` -> `Picture`, uint8 pixels, drawn from python's, numpy's and
     torch's generators.
     A `TransformError` names the step that failed.
Elsewhere: the generators (distill.data.seeds), what happens to a whole batch (distill.data.batches), the
     image's name in an error (distill.data.loaders); evaluation's pixels (runtime.preprocess).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import ceil, sqrt
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment, create_transform
from timm.data.random_erasing import RandomErasing
from torchvision import transforms

from runtime.errors import UsageError
from runtime.preprocess import Preprocess

from ..recipe import Recipe
from .crops import ResizedCrop
from .seeds import hash_seed, seed_all
from .shifts import FASTER

PIXELS = 2
"""Version of what training does to images: another one gives other pixels for the same seed. Version 1 left
resized crops, shears and translations to Pillow, and decoded every JPEG at its full size."""
Key = tuple[int, int, int]
"""Seed, epoch and number of an image: what everything that is drawn for it depends on."""
DRAWN_BY = ("torch", "torchvision", "timm", "pillow", "numpy")
"""Packages that draw the augmentation; stored answers record their versions, and an error names them."""
FLAGS = {
    "ResizedCrop": "--scale, --ratio or --train-interpolation",
    "Resize": "--img-size",
    "RandomCrop": "--crop-padding",
    "RandomHorizontalFlip": "--hflip",
    "RandAugment": "--aa",
    "AugMixAugment": "--aa",
    "AutoAugment": "--aa",
    "ColorJitter": "--color-jitter",
    "Erased": "--reprob",
}
"""The flags that a transform comes from, by its class."""


class TransformError(Exception):
    """A step of the augmentation failed at an image."""

    def __init__(self, step: str, flags: str, error: Exception) -> None:
        self.step, self.flags, self.reason = step, flags, in_one_line(error)
        super().__init__(f"{step}: {self.reason}")


def in_one_line(error: Exception) -> str:
    """An exception's class and text, without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(": ")


class Patch(NamedTuple):
    """A part of an image that is erased."""

    top: int
    left: int
    height: int
    width: int
    values: torch.Tensor
    """(C, height, width) or (C, 1, 1) float32, in the place of normalized pixels."""


class Picture(NamedTuple):
    """An augmented image."""

    pixels: torch.Tensor
    """(H, W, C) uint8."""
    erased: tuple[Patch, ...]


class Steps:
    """Transforms one after the other. Raises TransformError naming the one that failed."""

    def __init__(self, transforms: Sequence[Any]) -> None:
        self.transforms = list(transforms)

    def __call__(self, image: Any, key: Key) -> Picture:
        """A PIL RGB image as training sees it for this key. Seeds the three generators."""
        seed_all(hash_seed(*key))
        for step in self.transforms:
            try:
                image = step(image)
            except (TransformError, MemoryError):
                raise
            except Exception as error:  # each transform fails in its own way
                name = type(step).__name__
                raise TransformError(name, FLAGS.get(name, ""), error) from error
        found: Picture = image
        return found


class Erased:
    """The last step: uint8 pixels, and what timm's random erasing would write into them, which is written
    when they are normalized.
    """

    def __init__(self, erase: RandomErasing | None) -> None:
        self.erase = erase

    def __call__(self, image: Image.Image) -> Picture:
        pixels = torch.from_numpy(np.array(image))
        return Picture(pixels, self.patches(pixels.shape))

    def patches(self, shape: Sequence[int]) -> tuple[Patch, ...]:
        """What is erased of an image of this shape, (H, W, C)."""
        written = _Written(shape)
        if self.erase:
            self.erase(written)
        return tuple(written.patches)


class _Written:
    """In the place of a tensor (C, H, W): keeps what is written into it."""

    dtype = torch.float32

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape, self.patches = (shape[2], *shape[:2]), list[Patch]()

    def size(self) -> tuple[int, ...]:
        return self.shape

    def __setitem__(self, place: tuple[slice, slice, slice], values: torch.Tensor) -> None:
        _, rows, columns = place
        height, width = rows.stop - rows.start, columns.stop - columns.start
        self.patches.append(Patch(rows.start, columns.start, height, width, values))


class Operation:
    """One operation of a policy. Raises TransformError with its name and the values drawn for it."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self.function = name, function

    def __call__(self, image: Any, *drawn: Any, **settings: Any) -> Any:
        try:
            return self.function(image, *drawn, **settings)
        except MemoryError:
            raise
        except Exception as error:  # each operation fails in its own way
            values = ", ".join(f"{value:.4g}" for value in drawn)
            raise TransformError(f"{self.name}({values})", "--aa", error) from error


def timm_settings(recipe: Recipe, spec: Preprocess) -> dict[str, Any]:
    """The recipe's augmentation in the words of timm's `create_transform` and `create_loader`."""
    return {
        "scale": recipe.scale,
        "ratio": recipe.ratio,
        "hflip": recipe.hflip,
        "color_jitter": recipe.color_jitter,
        "auto_augment": recipe.aa or None,
        "interpolation": recipe.train_interpolation,
        "mean": spec.mean,
        "std": spec.std,
        "re_prob": recipe.reprob,
        "re_mode": recipe.remode,
    }


def training_transform(recipe: Recipe, spec: Preprocess) -> Steps:
    """PIL image -> `Picture`, augmented as the recipe says: by timm's transforms, the slow ones of which are
    done in a faster way.

    Raises UsageError for a policy that timm does not know.
    """
    try:
        stages = create_transform(
            spec.input_size, is_training=True, separate=True, **timm_settings(recipe, spec)
        )
    except (
        AssertionError,
        ValueError,
        KeyError,
        IndexError,
    ) as error:  # timm's, while it takes the policy apart
        raise UsageError(
            f"aa {recipe.aa!r}: timm cannot read this policy ({error}). Expected for example "
            "rand-m9-mstd0.5-inc1"
        ) from error
    first, second, last = (stage.transforms for stage in stages)
    for step in second:
        for operation in operations(step):
            operation.aug_fn = Operation(operation.name, _mended(operation.aug_fn))
    size = spec.input_size[1:]
    if recipe.crop_padding:
        first = [
            transforms.Resize(size),
            transforms.RandomCrop(size, padding=recipe.crop_padding),
            transforms.RandomHorizontalFlip(recipe.hflip),
        ]
    else:
        first[0] = ResizedCrop(size, recipe.scale, recipe.ratio, recipe.train_interpolation)
    erase = next((step for step in last if isinstance(step, RandomErasing)), None)
    turn = [spec.rgb] if spec.exif == "apply" else []
    return Steps([*turn, *first, *second, Erased(erase)])


def side_needed(recipe: Recipe, spec: Preprocess) -> int:
    """Shorter side in pixels from which on a crop of the smallest size is still of the input's size; a larger
    JPEG is decoded at a half, a quarter or an eighth of its size as long as this side stays.
    """
    share = 1.0 if recipe.crop_padding else recipe.scale[0]
    return ceil(max(spec.input_size[1:]) / sqrt(share))


def _mended(function: Callable[..., Any]) -> Callable[..., Any]:
    """timm's function, or what gives the same image, but for rounding, faster or with every Pillow."""
    if function is auto_augment.posterize:
        return posterize
    return FASTER.get(function, function)


def operations(step: Any) -> Iterator[Any]:
    """The operations (timm.data.auto_augment.AugmentOp) that a policy of timm (RandAugment, AugMix,
    AutoAugment) draws from; none for another transform.
    """
    if isinstance(step, (auto_augment.RandAugment, auto_augment.AugMixAugment)):
        yield from step.ops
    elif isinstance(step, auto_augment.AutoAugment):
        for sub_policy in step.policy:
            yield from sub_policy


def posterize(image: Image.Image, bits_to_keep: int, **unused: Any) -> Image.Image:
    """Each channel's highest `bits_to_keep` bits, the same as timm's; without any the image is black.

    timm's policies draw 0 bits, and with `mmax` fewer. Pillow before 13 made a black image of both; 13 raises
    ValueError.
    """
    if bits_to_keep < 1:
        return Image.new(image.mode, image.size)
    return auto_augment.posterize(image, bits_to_keep)
