"""Labeled images by name: local ones, and every source that timm reads.

In:  a data spec and a split.
Out: an `ImageSet` with random access, or a `StreamSet` that can only be read from the front.
Elsewhere: folders, npz and digits without torch (runtime.images), batches (distill.data.loaders).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from timm.data import create_dataset

from runtime.errors import DataError, MissingError, UsageError
from runtime.images import ImageSet, open_images
from runtime.images.decode import only_formats, open_rgb
from runtime.images.sets import numbered

TIMM_PREFIXES = ("torch/", "hfds/", "wds/", "tfds/", "hfids/")
STREAMED = ("wds/", "tfds/", "hfids/")


def open_data(spec: str, split: str, num_classes: int = 0) -> ImageSet:
    """Labeled images by name: what runtime.images reads, and what timm's create_dataset reads.

    split: train or val. num_classes: only for streams. Raises DataError or UsageError when it cannot be used.
    """
    if not spec:
        raise UsageError(
            "no data given. Expected --data DIR (one sub-folder per class), npz:FILE, digits, or"
            " torch/NAME:DIR"
        )
    if spec.startswith(STREAMED):
        return StreamSet(spec, split, num_classes)
    if spec.startswith(TIMM_PREFIXES) or spec.endswith(".tar"):
        return _timm_set(spec, split)
    return open_images(spec, split)


class TimmSet(ImageSet):
    """A data set of timm with random access: torchvision's, the hub's, or a tar file."""

    def __init__(self, spec: str, dataset: Any, class_names: Sequence[str], labels: np.ndarray) -> None:
        super().__init__(spec, class_names, labels)
        self.dataset = dataset

    def image(self, index: int) -> Any:
        reader = getattr(self.dataset, "reader", None)
        try:  # timm's own __getitem__ goes on to the next image when one is broken, and only logs it
            with only_formats():  # torchvision's sets decode by themselves
                found = reader[index][0] if reader is not None else self.dataset[index][0]
            return open_rgb(found.read() if hasattr(found, "read") else found)
        except MemoryError:
            raise
        except Exception as error:  # each reader and each image format fails in its own way
            if isinstance(error, DataError) and hasattr(self.dataset, "loader"):
                raise  # it names the file
            raise DataError(
                f"{self.item_name(index)}: not a readable image ({' '.join(str(error).split())})"
            ) from error

    def item_name(self, index: int) -> str:
        return self.dataset.filename(index) if hasattr(self.dataset, "filename") else super().item_name(index)


class StreamSet(ImageSet):
    """A data set of timm that can only be read from the front (webdataset, TFDS, hub streams); classes have
    no names.
    """

    def __init__(self, spec: str, split: str, num_classes: int) -> None:
        if num_classes < 2:
            raise UsageError(f"{spec}: streamed data carries no class list. Give --num-classes")
        self.split = split
        super().__init__(spec, [str(i) for i in range(num_classes)], np.zeros(0, np.int64))
        self.size = len(self.stream(0, 1).reader)

    def __len__(self) -> int:
        return self.size

    def fingerprint(self) -> str:
        """Not known without reading everything."""
        return ""

    def stream(self, seed: int, batch: int) -> Any:
        """timm's iterable data set of (PIL image in any mode, label)."""
        name, _, root = self.name.partition(":")
        training = {"is_training": self.split == "train", "batch_size": batch, "seed": seed}
        # as they are stored: timm's own conversion makes gray of 16 bits white. TFDS decodes without Pillow
        stored = {} if name.startswith("tfds/") else {"input_img_mode": ""}
        return _create(name, root, self.split, self.name, **training, **stored)


def _create(name: str, root: str, split: str, spec: str, **more: Any) -> Any:
    try:
        return create_dataset(name, root=root or None, split={"val": "validation"}.get(split, split), **more)
    except ImportError as error:
        raise MissingError(
            f"{spec} needs the package {error.name}. Install it: pip install {error.name}"
        ) from error
    except Exception as error:  # each reader fails in its own way
        if "download=True" in str(error):
            raise DataError(f"{spec}: the data is not there. {_fetching(name, root)}") from error
        raise DataError(
            f"{spec}: timm cannot open it ({' '.join(str(error).split())[:200] or type(error).__name__})"
        ) from error


def _fetching(name: str, root: str) -> str:
    """The line that fetches a data set of torchvision, as far as its class is known."""
    from timm.data.dataset_factory import _TORCH_BASIC_DS

    kind = _TORCH_BASIC_DS.get(name.removeprefix("torch/"))
    if kind is None:
        return "Fetch it with torchvision.datasets, or give a folder that holds it"
    name = kind.__name__
    code = f"from torchvision.datasets import {name}; [{name}({root!r}, t, download=True) for t in (1, 0)]"
    return f'Fetch it where there is a network: python -c "{code}"'


def _timm_set(spec: str, split: str) -> TimmSet:
    if spec.endswith(".tar"):
        if not Path(spec).is_file():
            raise DataError(f"{spec}: no such file")
        # without timm's list of contents beside the file, which is a pickle that older ones run
        dataset = _create("", spec, split, spec, cache_tarinfo=False)
        classes, labels = dataset.reader.class_name_to_idx, np.array(dataset.reader.targets)
        names = sorted(classes, key=classes.get)
    else:
        name, _, root = spec.partition(":")
        dataset = _create(name, root, split, spec)
        if hasattr(dataset, "loader"):  # of torchvision's sets of files; its own makes gray of 16 bits white
            dataset.loader = open_rgb
        names, labels = _names_and_labels(dataset, spec)
    if len(names) < 2 or not len(labels):
        raise DataError(
            f"{spec}: {len(labels)} images of {len(names)} classes; expected at least two classes"
        )
    return TimmSet(spec, dataset, names, labels)


def _names_and_labels(dataset: Any, spec: str) -> tuple[list[str], np.ndarray]:
    if hasattr(dataset, "reader"):  # the hub's
        rows, key = dataset.reader.dataset, getattr(dataset.reader, "label_key", "label")
        feature = rows.features[key]
        labels = np.array(rows[key])
        return list(getattr(feature, "names", None) or numbered(labels, spec)), labels
    targets = next(
        (getattr(dataset, name) for name in ("targets", "labels", "_labels") if hasattr(dataset, name)), None
    )
    if targets is None:
        raise DataError(f"{spec}: its labels cannot be listed. Export it to an image folder first")
    labels = np.array(targets)
    return list(map(str, getattr(dataset, "classes", None) or numbered(labels, spec))), labels
