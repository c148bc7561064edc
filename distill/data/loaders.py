"""Images for training and evaluation as torch batches.

In:  an `ImageSet`, the student's `Preprocess`, the recipe.
Out: batches (images (N, C, H, W) float32, labels (N,), names of unreadable images), the same for the same
     seed, epoch and step, whatever the number of workers. What fails at a readable image is raised by the
     loaders as one line with the image's name and the step, from a worker too.
Elsewhere: opening a data set (distill.data.sets), augmentation (distill.data.augment), what happens to whole
     batches (distill.data.batches); evaluation's pixels (runtime.preprocess).
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from runtime.cli import outcome
from runtime.env import usable_cores, versions
from runtime.errors import DataError, Large2SmallError, MissingError, UsageError
from runtime.images import ImageSet
from runtime.images.decode import only_formats, open_rgb, reduced_to
from runtime.preprocess import Preprocess

from ..processes import together
from ..recipe import Recipe
from .augment import DRAWN_BY, Key, TransformError, in_one_line, side_needed, training_transform
from .balance import BalancedDraw, require_labels
from .batches import Batch, CudaSide, Finish, Sample, collate, collate_pictures, finished
from .cached.on_device import collate_crops, resident
from .seeds import hash_seed, own_random_state
from .sets import StreamSet

RETRIES = 100
"""Images tried for one place, with skip_bad_images, before the data set itself is called broken."""


def failure(name: str, error: Exception) -> Large2SmallError:
    """What to say of an exception at the image `name` that does not mean it is unreadable."""
    if isinstance(error, MemoryError):
        return MissingError(
            f"{name}: memory ran out while it was read or augmented. Give fewer --workers or a smaller"
            " --batch"
        )
    here = ", ".join(f"{package} {version}" for package, version in versions(DRAWN_BY).items())
    what, change = f"reading or preprocessing failed ({in_one_line(error)}; {here})", "Install"
    if isinstance(error, TransformError):
        what = f"the augmentation step {error.step} failed ({error.reason}; {here})"
        change = f"Change {error.flags}, install" if error.flags else "Install"
    return DataError(f"{name}: {what}. {change} other versions of these packages, or remove the image")


class TrainSet(Dataset[Sample]):
    """Augmented images by (epoch, number): what is drawn depends on seed, epoch and number alone, so any
    worker may draw it. The image is number % N; a number of N or more is one that comes again in its epoch.
    """

    def __init__(
        self,
        images: ImageSet,
        transform: Any,
        seed: int,
        skip_bad: bool,
        balanced: bool = False,
        side: int = 0,
    ) -> None:
        """balanced: what stands in for an unreadable image is of the same class as long as there is one.
        side: shorter side in pixels that images are decoded to at least; 0: as they are.
        """
        self.images, self.transform, self.seed, self.skip_bad = images, transform, seed, skip_bad
        self.balanced, self.side = balanced, side

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[Sample]:
        with own_random_state():
            return [self._one(epoch, number) for epoch, number in keys]

    def _one(self, epoch: int, number: int) -> Sample:
        bad: list[str] = []
        for chosen in self._with_substitutes(epoch, number):
            try:
                with reduced_to(self.side):
                    image = self.images.image(chosen)
                picture = self.transform(image, (self.seed, epoch, number))
                return picture, int(self.images.labels[chosen]), bad
            except DataError as error:
                bad.append(str(error))
            except Exception as error:  # whatever a reader or a transform raises
                return failure(self.images.item_name(chosen), error)
        return None, -1, bad

    def _with_substitutes(self, epoch: int, number: int) -> Iterator[int]:
        """The image, then with skip_bad others drawn at random, each once, until RETRIES were tried."""
        size = len(self.images)
        first = number % size
        yield first
        tried = {first}
        chance = np.random.default_rng(hash_seed(self.seed, epoch, number))
        of_any_class = iter(lambda: int(chance.integers(size)), -1)
        drawn = itertools.chain(self._of_its_class(first, chance) if self.balanced else (), of_any_class)
        while self.skip_bad and len(tried) < min(RETRIES, size):
            other = next(drawn)
            if other not in tried:
                tried.add(other)
                yield other

    def _of_its_class(self, index: int, chance: np.random.Generator) -> Iterator[int]:
        """The images of the same class, shuffled when the first is asked for."""
        labels = self.images.labels
        yield from chance.permutation(np.flatnonzero(labels == labels[index])).tolist()


class EvalSet(Dataset[Sample]):
    """Images through `runtime.preprocess`, by index."""

    def __init__(self, images: ImageSet, preprocess: Preprocess) -> None:
        self.images, self.preprocess = images, preprocess

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        try:
            return (
                torch.from_numpy(self.preprocess(self.images.image(index))),
                int(self.images.labels[index]),
                [],
            )
        except DataError as error:
            return None, -1, [str(error)]
        except Exception as error:  # whatever a reader or a resize raises
            return failure(self.images.item_name(index), error)


class StreamItems(IterableDataset[Sample]):
    """A `StreamSet` through a transform; images come in the stream's own order, which depends on the number
    of workers.
    """

    def __init__(
        self, images: StreamSet, transform: Any, seed: int, batch: int, skip_bad: bool, side: int = 0
    ) -> None:
        self.images, self.transform, self.seed, self.batch, self.skip_bad = (
            images,
            transform,
            seed,
            batch,
            skip_bad,
        )
        self.epoch, self.side = 0, side

    def __iter__(self) -> Iterator[Sample]:
        bad: list[str] = []
        worker = get_worker_info()
        index = -1
        try:
            stream = self.images.stream(hash_seed(self.seed, self.epoch, -1) & 0x7FFFFFFF, self.batch)
            stream.set_epoch(self.epoch)
            for index, (image, label) in enumerate(_decoded(stream)):
                name = f"{self.images.name}, image {index} of the stream"
                number = index * worker.num_workers + worker.id if worker else index
                found = self._one(name, image, int(label), number)
                if isinstance(found, str):
                    bad.append(found)
                    if not self.skip_bad:
                        yield None, -1, bad
                    continue
                yield found if isinstance(found, Large2SmallError) else (*found, bad)
                bad = []
        except Large2SmallError as error:
            yield from [error] * self.batch  # a batch of it, for the last one is dropped when it is not full
        except Exception as error:  # each kind of shard fails in its own way
            broken = f"{self.images.name}: the stream cannot be read behind image {index}"
            yield from [DataError(f"{broken} ({in_one_line(error)}). Check its files")] * self.batch
        if bad:
            yield None, -1, bad

    def _one(
        self, name: str, image: Any, label: int, number: int
    ) -> tuple[Any, int] | str | Large2SmallError:
        """(image, label); or what to call it when it is unreadable; or what failed at a readable one."""
        try:
            with reduced_to(self.side):
                rgb = open_rgb(image)
            with own_random_state():
                return self.transform(rgb, (self.seed, self.epoch, number)), label
        except (OSError, SyntaxError, DataError) as error:
            return f"{name}: {' '.join(str(error).split())}"
        except Exception as error:  # whatever a transform raises
            return failure(name, error)


def _decoded(stream: Any) -> Iterator[Any]:
    """What `stream` gives, which decodes by itself; between two images other code opens what it likes."""
    images = iter(stream)
    while True:
        with only_formats():
            item = next(images, None)
        if item is None:
            return
        yield item


class EpochOrder:
    """Batches of (epoch, number) in a seeded random order, each image once or as `draw` says; `start` skips
    what a resumed run has already seen.
    """

    def __init__(
        self,
        size: int,
        batch: int,
        seed: int,
        draw: BalancedDraw | None = None,
        share: Sequence[int] | None = None,
    ) -> None:
        """batch: images of all processes; share: the places in it that are this process's, by default all."""
        self.size, self.batch, self.seed, self.draw = size, batch, seed, draw
        self.share = range(batch) if share is None else share
        self.epoch = self.start = 0
        self.stride = 1
        """Of so many batches one is read, where several processes share whole ones."""

    def __len__(self) -> int:
        return self.size // self.batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(hash_seed(self.seed, self.epoch, -1))
        order = self.draw(generator) if self.draw else torch.randperm(self.size, generator=generator).tolist()
        for step in range(self.start, len(self), self.stride):
            yield [(self.epoch, order[step * self.batch + place]) for place in self.share]


class TrainLoader:
    """`epoch(e, start)` gives the batches of epoch e from batch `start` on."""

    def __init__(
        self, images: ImageSet, recipe: Recipe, preprocess: Preprocess, device: torch.device
    ) -> None:
        transform: Callable[[Any, Key], Any] = training_transform(recipe, preprocess)
        side = side_needed(recipe, preprocess)
        self.finish: Callable[[Any], Batch] = Finish(preprocess, device)
        collate: Callable[[list[Sample]], Any] = collate_pictures
        if recipe.cache == "device":
            there, finish = resident(images, recipe, preprocess, device), self.finish
            images, transform, collate = there.images, there.draw, collate_crops
            self.finish = lambda batch: finish(there(batch))
        self.side = CudaSide(device) if device.type == "cuda" else None
        every = recipe.batch * together.size()
        self.batches = len(images) // every
        if self.batches < recipe.grad_accum:
            raise UsageError(
                f"{images.name}: {len(images)} training images are fewer than one step of {every} x "
                f"{recipe.grad_accum}. Give a smaller --batch"
            )
        common = loader_settings(
            recipe.workers, device, None if isinstance(images, StreamSet) else self.batches
        ) | {"collate_fn": collate}
        self.stream = isinstance(images, StreamSet)
        balanced = recipe.sampler == "balanced"
        if balanced:
            require_labels(images, "--sampler balanced")
        if isinstance(images, StreamSet):
            require_random_access(images)
            self.items = StreamItems(
                images, transform, recipe.seed, recipe.batch, recipe.skip_bad_images, side
            )
            self.loader = Loader(
                self.items, batch_size=recipe.batch, drop_last=True, **common | {"persistent_workers": False}
            )
        else:
            draw = BalancedDraw(images.labels) if balanced else None
            self.order = EpochOrder(len(images), every, recipe.seed, draw, together.share(recipe.batch))
            self.loader = Loader(
                TrainSet(images, transform, recipe.seed, recipe.skip_bad_images, balanced, side),
                batch_sampler=self.order,
                **common,
            )

    def __len__(self) -> int:
        return self.batches

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
        """Batches of one epoch, on the device. A stream has no random access: what was already seen is read
        again and dropped.
        """
        yield from finished(self.read(epoch, start), self.finish, self.side)

    def read(self, epoch: int, start: int = 0) -> Generator[Any, None, None]:
        """The same as the reading processes give them, with uint8 pixels (distill.data.batches.Pixels)."""
        if not self.stream:
            self.order.epoch, self.order.start = epoch, start
            yield from self.loader
            return
        self.items.epoch = epoch
        self.loader.loader.generator.manual_seed(
            hash_seed(self.items.seed, epoch, -1)
        )  # the workers' seeds are drawn from it
        for step, batch in enumerate(self.loader):
            if start <= step < self.batches:
                yield batch


def eval_loader(
    images: ImageSet, preprocess: Preprocess, batch: int, workers: int, device: torch.device
) -> Loader:
    """Every image once, in order, through runtime.preprocess; of n processes each has every n-th batch."""
    common = loader_settings(workers, device, -(-len(images) // batch))
    if isinstance(images, StreamSet):
        require_random_access(images)
        items: Any = StreamItems(
            images, lambda image, _: torch.from_numpy(preprocess(image)), 0, batch, skip_bad=True
        )
        return Loader(items, batch_size=batch, **common | {"persistent_workers": False, "num_workers": 0})
    items_ = EvalSet(images, preprocess)
    if together.size() == 1:
        return Loader(items_, batch_size=batch, shuffle=False, **common)
    all_batches = [range(first, min(first + batch, len(images))) for first in range(0, len(images), batch)]
    mine = all_batches[together.rank() :: together.size()]
    loader = Loader(items_, batch_sampler=mine, **common)
    loader.turns = -(-len(all_batches) // together.size())
    return loader


def require_random_access(images: StreamSet) -> None:
    """Raise UsageError for a stream that several processes would have to share."""
    if together.size() > 1:
        raise UsageError(
            f"{images.name}: streamed images have no fixed order, so {together.size()} processes cannot share"
            " them. Unpack them into a folder, or use one process"
        )


class Loader:
    """A DataLoader that raises the error which stands in the place of a batch, and ends its processes."""

    def __init__(self, items: Dataset[Sample], **settings: Any) -> None:
        self.items, self.loader = items, DataLoader(items, **settings)
        self.turns: int | None = None
        """Batches of the process that has most, where several share the items batch by batch."""
        self._reading: Iterator[Any] | None = None

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        self._reading = iter(self.loader)
        try:
            for batch in self._reading:
                if isinstance(batch, Large2SmallError):
                    raise batch
                yield batch
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        """End the processes that read, if there are any; the next iteration starts new ones.

        Left to the garbage collector, these processes do not hear that they are to end, and each is waited
        for in vain: this process then never exits if it ends before the collector has run.
        """
        end = getattr(self._reading, "_shutdown_workers", None)  # torch has no public way
        self._reading = self.loader._iterator = None
        if end is not None:
            end()


def loader_settings(workers: int, device: torch.device, batches: int | None = None) -> dict[str, Any]:
    """Arguments for every DataLoader: pinned memory for a GPU, workers that leave Ctrl-C to the main process,
    at most one for each of the `batches` (None for a stream, whose order depends on their number).
    """
    if workers < 0:
        workers = min(8, usable_cores()) if device.type == "cuda" else 0
    workers = workers if batches is None else min(workers, batches)
    return {
        "num_workers": workers,
        "pin_memory": device.type == "cuda",
        "persistent_workers": workers > 0,
        "worker_init_fn": _worker_init,
        "collate_fn": collate,
        "generator": torch.Generator().manual_seed(0),
    }  # its own, so that loading draws nothing from the global one


def _worker_init(_: int) -> None:
    for each in (signal.SIGINT, *outcome.STOPS):  # sent to all; the main process ends its workers itself
        signal.signal(each, signal.SIG_IGN)
    torch.set_num_threads(1)
