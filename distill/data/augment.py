"""What training does to an image: crop, flip, auto-augment policy, colors, erasing, normalization.

In:  the recipe's augmentation settings and the student's `Preprocess`.
Out: a transform: PIL RGB image -> (C, H, W) float32 tensor, drawn from python's, numpy's and torch's
     generators.
     A `TransformError` names the step that failed.
Elsewhere: seeding the generators, batches, the image's name in an error (distill.data.loaders); evaluation's
     pixels (runtime.preprocess).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from PIL import Image
from timm.data import auto_augment, create_transform
from torchvision import transforms

from runtime.errors import UsageError
from runtime.preprocess import Preprocess

from ..recipe import Recipe

DRAWN_BY = ("torch", "torchvision", "timm", "pillow", "numpy")
"""Packages that draw the augmentation; stored answers record their versions, and an error names them."""
FLAGS = {
    "RandomResizedCropAndInterpolation": "--scale, --ratio or --train-interpolation",
    "Resize": "--img-size",
    "RandomCrop": "--crop-padding",
    "RandomHorizontalFlip": "--hflip",
    "RandAugment": "--aa",
    "AugMixAugment": "--aa",
    "AutoAugment": "--aa",
    "ColorJitter": "--color-jitter",
    "RandomErasing": "--reprob",
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


class Steps:
    """Transforms one after the other. Raises TransformError naming the one that failed."""

    def __init__(self, transforms: Sequence[Any]) -> None:
        self.transforms = list(transforms)

    def __call__(self, image: Any) -> Any:
        for step in self.transforms:
            try:
                image = step(image)
            except (TransformError, MemoryError):
                raise
            except Exception as error:  # each transform fails in its own way
                name = type(step).__name__
                raise TransformError(name, FLAGS.get(name, ""), error) from error
        return image


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
    """PIL image -> (C, H, W) float32 tensor, augmented by timm's transforms as the recipe says.

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
            function = operation.aug_fn
            mended = posterize if function is auto_augment.posterize else function
            operation.aug_fn = Operation(operation.name, mended)
    if recipe.crop_padding:
        size = spec.input_size[1:]
        first = [
            transforms.Resize(size),
            transforms.RandomCrop(size, padding=recipe.crop_padding),
            transforms.RandomHorizontalFlip(recipe.hflip),
        ]
    turn = [spec.rgb] if spec.exif == "apply" else []
    return Steps([*turn, *first, *second, *last])


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
