"""What training does to an image: crop, flip, auto-augment policy, colors, erasing, normalization.

In:  the recipe's augmentation settings and the student's `Preprocess`.
Out: a transform: PIL RGB image -> (C, H, W) float32 tensor, drawn from python's, numpy's and torch's
     generators.
Elsewhere: seeding the generators, batches (distill.data); evaluation's pixels (runtime.preprocess).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from PIL import Image
from timm.data import auto_augment, create_transform
from torchvision import transforms

from runtime.errors import UsageError
from runtime.preprocess import Preprocess

from .recipe import Recipe


def training_transform(recipe: Recipe, spec: Preprocess) -> Any:
    """PIL image -> (C, H, W) float32 tensor, augmented by timm's transforms as the recipe says.

    Raises UsageError for a policy that timm does not know.
    """
    try:
        stages = create_transform(
            spec.input_size,
            is_training=True,
            scale=recipe.scale,
            ratio=recipe.ratio,
            hflip=recipe.hflip,
            color_jitter=recipe.color_jitter,
            auto_augment=recipe.aa or None,
            interpolation=recipe.train_interpolation,
            mean=spec.mean,
            std=spec.std,
            re_prob=recipe.reprob,
            re_mode=recipe.remode,
            separate=True,
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
    first, second, last = stages
    for step in second.transforms:
        for operation in operations(step):
            if operation.aug_fn is auto_augment.posterize:
                operation.aug_fn = posterize
    if recipe.crop_padding:
        size = spec.input_size[1:]
        first = transforms.Compose(
            [
                transforms.Resize(size),
                transforms.RandomCrop(size, padding=recipe.crop_padding),
                transforms.RandomHorizontalFlip(recipe.hflip),
            ]
        )
    return transforms.Compose([first, second, last])


def operations(step: Any) -> Iterator[auto_augment.AugmentOp]:
    """The operations that a policy of timm (RandAugment, AugMix, AutoAugment) draws from; none for another
    transform.
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
