"""What happens to a whole batch: conversion to float, normalization and erasing, on the device.

In:  augmented images with uint8 pixels.
Out: `Batch`es on the device, one ahead of the training on a GPU.
Elsewhere: single images (distill.data.augment), the processes that read them (distill.data.loaders), mixup
     and cutmix (distill.data.mixing).

Every step is one operation that IEEE 754 rounds the same everywhere, so that a batch has the same bits on a
CPU and on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from runtime.errors import Large2SmallError
from runtime.preprocess import Preprocess

T = TypeVar("T")
Sample = tuple[Any, int, list[str]] | Large2SmallError
"""(image or None, label, unreadable images passed over), or the error why there is none, as a value: raised
in a worker, torch would put a traceback into its text. The image is a `Picture`, or for evaluation a tensor
(C, H, W)."""


class Batch(NamedTuple):
    """What a loader gives."""

    images: Tensor
    """(N, C, H, W) float32, normalized for the student."""
    labels: Tensor
    """(N,) int64."""
    bad: list[str]
    """Unreadable images, each "name: reason"."""


class Pixels(NamedTuple):
    """A batch as the reading processes give it."""

    pixels: Tensor
    """(N, H, W, C) uint8."""
    labels: Tensor
    """(N,) int64."""
    bad: list[str]
    places: Tensor
    """(M, 7) int64, of each erased patch: the image, top, left, height, width; height and width of its
    values."""
    values: Tensor
    """Float32: the patches' values, one after the other."""


def collate(samples: list[Sample]) -> Batch | Large2SmallError:
    """Readable samples stacked; what could not be read is named. The first error takes the batch's place."""
    return collated(samples, lambda images, labels, bad: Batch(torch.stack(images), labels, bad))


def collate_pictures(samples: list[Sample]) -> Batch | Pixels | Large2SmallError:
    """The same of `Picture`s; a `Batch` where none is readable."""
    return collated(
        samples,
        lambda pictures, labels, bad: Pixels(
            torch.stack([each.pixels for each in pictures]), labels, bad, *patches_of(pictures)
        ),
    )


def collated(
    samples: list[Sample], stacked: Callable[[list[Any], Tensor, list[str]], T]
) -> T | Batch | Large2SmallError:
    """What `stacked` makes of the readable samples: their images, labels (N,) and what could not be read. An
    empty `Batch` where none is readable; the first error takes the batch's place.
    """
    found = _sorted_out(samples)
    if isinstance(found, Large2SmallError):
        return found
    images, labels, bad = found
    return stacked(images, labels, bad) if images else Batch(torch.zeros(0), labels, bad)


def _sorted_out(samples: list[Sample]) -> tuple[list[Any], Tensor, list[str]] | Large2SmallError:
    """Images and labels (N,) of the readable samples, and what could not be read; or the first error."""
    read = []
    for sample in samples:
        if isinstance(sample, Large2SmallError):
            return sample
        read.append(sample)
    good = [(image, label) for image, label, _ in read if image is not None]
    labels = torch.tensor([label for _, label in good], dtype=torch.int64)
    return [image for image, _ in good], labels, [name for _, _, names in read for name in names]


def patches_of(images: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """`places` and `values` of `Pixels`: two tensors, because each costs a file descriptor on its way."""
    patches = [(number, patch) for number, each in enumerate(images) for patch in each.erased]
    places = [[number, *patch[:4], *patch.values.shape[1:]] for number, patch in patches]
    values = [patch.values.flatten() for _, patch in patches]
    return torch.tensor(places, dtype=torch.int64).view(-1, 7), torch.cat([*values, torch.zeros(0)])


class Finish:
    """`Pixels` -> `Batch` on a device."""

    def __init__(self, spec: Preprocess, device: torch.device) -> None:
        self.device = device
        # tensors, because a GPU multiplies by the reciprocal of a number, which rounds in another way
        self.most = torch.tensor(255.0, device=device)
        self.mean, self.std = (torch.tensor(each, device=device) for each in (spec.mean, spec.std))

    def __call__(self, batch: Pixels | Batch) -> Batch:
        labels = batch.labels.to(self.device, non_blocking=True)
        if isinstance(batch, Batch):  # one without readable images
            return Batch(batch.images.to(self.device, non_blocking=True), labels, batch.bad)
        images = self.normalized(batch.pixels.to(self.device, non_blocking=True))
        values, begin = batch.values.to(self.device, non_blocking=True), 0
        for number, top, left, height, width, *shape in batch.places.tolist():
            count = images.shape[1] * shape[0] * shape[1]
            part = values[begin : begin + count].view(-1, *shape)
            images[number, :, top : top + height, left : left + width] = part
            begin += count
        return Batch(images, labels, batch.bad)

    def normalized(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) float32 in the memory format channels-last, from (N, H, W, C) uint8."""
        rows, width = pixels.flatten(2), pixels.shape[2]
        mean, std = self.mean.repeat(width), self.std.repeat(width)
        found = torch.empty(rows.shape, dtype=torch.float32, device=pixels.device)
        # on a CPU image by image, which stays in its cache
        parts = zip(found, rows, strict=True) if pixels.device.type == "cpu" else [(found, rows)]
        for part, source in parts:
            part.copy_(source).div_(self.most).sub_(mean).div_(std)
        return found.view(pixels.shape).permute(0, 3, 1, 2)


class Side(Protocol):
    """Where the next batch is prepared while the current one is trained on."""

    def start(self, work: Callable[[], Batch]) -> tuple[Batch, Any]:
        """Do it there; the batch, which may not be ready, and a mark of when it is."""

    def join(self, batch: Batch, mark: Any) -> Batch:
        """The batch, for work that is begun from now on."""


class CudaSide:
    """A stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)

    def start(self, work: Callable[[], Batch]) -> tuple[Batch, Any]:
        with torch.cuda.stream(self.stream):
            batch = work()
            return batch, self.stream.record_event()

    def join(self, batch: Batch, mark: Any) -> Batch:
        current = torch.cuda.current_stream(self.stream.device)
        current.wait_event(mark)
        for tensor in (batch.images, batch.labels):
            tensor.record_stream(current)  # so that its memory is not given away while it is read there
        return batch


def finished(
    batches: Iterable[Any], finish: Callable[[Any], Batch], side: Side | None = None
) -> Generator[Batch, None, None]:
    """The batches on the device; with a side the next one is on its way there before one is given. What fails
    while a batch is read is raised in its place, behind the batches before it.
    """
    if side is None:
        yield from map(finish, batches)
        return
    reading, waiting, failure = iter(batches), None, None
    while True:
        started, failure = _next(reading, finish, side)
        if waiting is not None:
            yield side.join(*waiting)
        if failure is not None:
            raise failure
        if started is None:
            return
        waiting = started


def _next(
    reading: Iterator[Any], finish: Callable[[Any], Batch], side: Side
) -> tuple[tuple[Batch, Any] | None, Exception | None]:
    try:
        batch = next(reading, None)
        return (None if batch is None else side.start(lambda: finish(batch))), None
    except Exception as error:  # whatever it is, in its turn
        return None, error
