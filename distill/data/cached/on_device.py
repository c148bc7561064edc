"""Small images on the device, cropped and flipped there.

In:  an `ImageSet` whose images all have the size of the input, and a recipe that crops by --crop-padding.
Out: `Resident`: what the reading processes draw for an image in place of its pixels, and a batch of pixels
     made from that on the device. They are, bit for bit, what the processes would have given.
Elsewhere: normalization and erasing (distill.data.batches), the transforms whose draws are repeated here
     (distill.data.augment).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from runtime.cli.terminal import loading
from runtime.errors import DataError, Large2SmallError, UsageError
from runtime.images import ImageSet
from runtime.images.sets import Within
from runtime.preprocess import Preprocess

from ...recipe import Recipe
from ..augment import FLAGS, Erased, Key, Patch, training_transform
from ..batches import Batch, Pixels, Sample, collated, patches_of
from ..seeds import hash_seed, seed_all
from ..sets import StreamSet

FREE = 0.5
"""Share of a GPU's free memory that images take where --cache-limit says nothing."""


class Crop(NamedTuple):
    """What is drawn for an image."""

    number: int
    """Of the image."""
    top: int
    left: int
    """Corner of the crop in the padded image."""
    is_flipped: bool
    erased: tuple[Patch, ...]


class Crops(NamedTuple):
    """A batch of `Crop`s as the reading processes give it."""

    chosen: Tensor
    """(N, 4) int64: image, top, left, flipped or not."""
    labels: Tensor
    """(N,) int64."""
    bad: list[str]
    places: Tensor
    values: Tensor
    """Both as `Pixels` has them."""


def collate_crops(samples: list[Sample]) -> Batch | Crops | Large2SmallError:
    """Readable samples stacked; what could not be read is named. The first error takes the batch's place."""
    return collated(
        samples,
        lambda crops, labels, bad: Crops(
            torch.tensor([crop[:4] for crop in crops], dtype=torch.int64), labels, bad, *patches_of(crops)
        ),
    )


class Draw:
    """In the place of the transform of an image: what it draws, without its pixels."""

    def __init__(self, recipe: Recipe, spec: Preprocess) -> None:
        """Raises UsageError for augmentation that the device does not do."""
        if not recipe.crop_padding:
            raise _refusal("random crops of --scale", "Give --crop-padding 4")
        self.steps = [step for step in training_transform(recipe, spec).transforms if _is_drawing(step)]
        height, width = spec.input_size[1:]
        self.padding = recipe.crop_padding
        self.padded = Image.new("L", (width + 2 * self.padding, height + 2 * self.padding))
        self.shape = (height, width, 3)

    def __call__(self, number: int, key: Key) -> Crop:
        seed_all(hash_seed(*key))
        top, left, is_flipped = 0, 0, False
        erased: tuple[Patch, ...] = ()
        for step in self.steps:
            if isinstance(step, transforms.RandomCrop):
                top, left, *_ = step.get_params(self.padded, step.size)
            elif isinstance(step, transforms.RandomHorizontalFlip):
                is_flipped = bool(torch.rand(1) < step.p)
            elif isinstance(step, Erased):
                erased = step.patches(self.shape)
            else:  # it leaves the image as it is, and draws all the same
                step.get_params(step.brightness, step.contrast, step.saturation, step.hue)
        return Crop(number, top, left, is_flipped, erased)


def _is_drawing(step: Any) -> bool:
    """Whether a transform has to be repeated. Raises UsageError where it cannot."""
    if isinstance(step, transforms.Resize) or getattr(step, "__name__", "") == "rgb":
        return False  # done when the images are put on the device
    if isinstance(step, (transforms.RandomCrop, transforms.RandomHorizontalFlip, Erased)):
        return True
    names = ("brightness", "contrast", "saturation", "hue")
    if isinstance(step, transforms.ColorJitter) and all(getattr(step, name) is None for name in names):
        return True
    flag = FLAGS.get(type(step).__name__, type(step).__name__)
    raise _refusal(flag, "Turn it off" if flag.startswith("--") else "Leave it out")


def _refusal(flag: str, way_out: str) -> UsageError:
    return UsageError(
        f"--cache device: crops with --crop-padding, flips and erases on the device, and no more: not {flag}."
        f" {way_out}, or give --cache ram"
    )


class Resident:
    """Images on the device."""

    def __init__(self, pixels: Tensor, images: ImageSet, draw: Draw) -> None:
        """pixels: (N, H + 2 padding, W + 2 padding, C) uint8. images: gives numbers in place of images."""
        self.pixels, self.images, self.draw = pixels, images, draw
        height, width, _ = draw.shape
        self.rows, self.columns = (torch.arange(side, device=pixels.device) for side in (height, width))

    def __call__(self, batch: Crops | Batch) -> Pixels | Batch:
        if isinstance(batch, Batch):  # one without readable images
            return batch
        number, top, left, is_flipped = batch.chosen.to(self.pixels.device, non_blocking=True).unbind(1)
        columns = torch.where(is_flipped[:, None] > 0, self.columns.flip(0), self.columns) + left[:, None]
        rows = self.rows + top[:, None]
        pixels = self.pixels[number[:, None, None], rows[:, :, None], columns[:, None, :]]
        return Pixels(pixels, batch.labels, batch.bad, batch.places, batch.values)


class _Numbers(Within):
    """Numbers of images in place of the images; those that could not be read are still errors."""

    def __init__(self, images: ImageSet, bad: dict[int, str]) -> None:
        super().__init__(images)
        self.bad = bad

    def image(self, index: int) -> int:
        if index in self.bad:
            raise DataError(self.bad[index])
        return index


def resident(images: ImageSet, recipe: Recipe, spec: Preprocess, device: torch.device) -> Resident:
    """The images on the device.

    Raises UsageError where they do not all have the size of the input or are too many, and for augmentation
    that the device does not do.
    """
    if isinstance(images, StreamSet):
        raise UsageError(f"--cache device: {images.name} is a stream. Unpack it into a folder")
    draw = Draw(recipe, spec)
    height, width, channels = draw.shape
    edge = draw.padding
    shape = (len(images), height + 2 * edge, width + 2 * edge, channels)
    _require_room(images, int(np.prod(shape, dtype=np.int64)), recipe.cache_limit, device)
    pixels, bad = np.zeros(shape, np.uint8), dict[int, str]()
    with loading(f"reading the images of {images.name} for the device"):
        for number in range(len(images)):
            try:
                found = np.asarray(spec.rgb(images.image(number)))
            except DataError as error:
                bad[number] = str(error)
                continue
            if found.shape != draw.shape:
                raise UsageError(
                    f"--cache device: {images.item_name(number)} has {found.shape[0]} x {found.shape[1]}"
                    f" pixels, and the input {height} x {width}. Give --cache ram, or resize the images"
                )
            pixels[number, edge : edge + height, edge : edge + width] = found
    return Resident(torch.from_numpy(pixels).to(device), _Numbers(images, bad), draw)


def _require_room(images: ImageSet, size: int, limit: float, device: torch.device) -> None:
    room = limit * 1e9
    if not limit and device.type == "cuda":
        room = FREE * torch.cuda.mem_get_info(device)[0]
    if room and size > room:
        raise UsageError(
            f"--cache device: {images.name} takes {size / 1e9:.2f} GB, more than {room / 1e9:.2f} GB. Give a"
            " larger --cache-limit, or --cache ram"
        )
