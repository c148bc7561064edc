"""A set of labeled images: what every source of images is turned into.

In:  class names, labels (N,) and a way to decode image i.
Out: an `ImageSet`: class names, labels (N,) int64, image i as a PIL RGB image, its name and its SHA-256.
Elsewhere: the sources (runtime.images.folder, runtime.images.npz, runtime.images.digits), decoding
(runtime.images.decode).
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import DataError
from .decode import open_rgb
from .order import as_bytes
from .summary import LeftOut, Overlap, Summary

Stamp = tuple[int, int]
"""Size in bytes and time of the last change in ns of an image's file: other content has another stamp."""
MOST_CLASSES = 100_000
"""Classes that a set may have in any case; one with more images may have as many as these."""


class ImageSet:
    """N images with labels; `image(i)` decodes, everything else is cheap."""

    left_out: tuple[LeftOut, ...] = ()
    """What was found beside the images and is not in the set."""
    is_decoded = False
    """Are the pixels in memory already?"""

    def __init__(self, name: str, class_names: Sequence[str], labels: np.ndarray) -> None:
        self.name = name
        self.class_names = [str(c) for c in class_names]
        self.labels = np.asarray(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Any:
        """PIL image, mode RGB. Raises DataError naming the image when it cannot be read."""
        raise NotImplementedError

    def item_name(self, index: int) -> str:
        """A name a person can find the image by."""
        return f"{self.name}[{index}]"

    def item_bytes(self, index: int) -> bytes:
        """What identifies the image's content: the encoded file, or the pixels."""
        return np.asarray(self.image(index)).tobytes()

    def item_sha256(self, index: int) -> str:
        """SHA-256 of the image's content."""
        return hashlib.sha256(self.item_bytes(index)).hexdigest()

    def item_size(self, index: int) -> int:
        """Bytes of the image's content: images of different size are different."""
        return len(self.item_bytes(index))

    def orientation(self, index: int) -> int:
        """EXIF orientation of an image that is a file, 1 to 8; 1, which is upright, for all others."""
        return 1

    def stamp(self, index: int) -> Stamp | None:
        """What tells the image's file from a changed one; None where it is not a file of its own."""
        return None

    def place(self, index: int) -> str:
        """The image's name inside the set, which stays when the whole set is moved."""
        return str(index)

    def summary(self) -> Summary:
        """The set in a few numbers."""
        counts = np.bincount(self.labels, minlength=len(self.class_names)).tolist()
        return Summary(self.name, len(self), tuple(self.class_names), tuple(counts), self.left_out)

    def overlap(self, other: ImageSet, shown: int = 3) -> Overlap:
        """Images of `other` whose content is in this set, too. Only what is of equal size is read."""
        ours, theirs = _by_size(self), _by_size(other)
        pairs: list[tuple[str, str]] = []
        for size in ours.keys() & theirs.keys():
            known = {self.item_sha256(i): i for i in ours[size]}
            for j in theirs[size]:
                if (i := known.get(other.item_sha256(j))) is not None:
                    pairs.append((self.item_name(i), other.item_name(j)))
        return Overlap(len(pairs), tuple(sorted(pairs, key=lambda pair: pair[1])[:shown]))

    def fingerprint(self) -> str:
        """SHA-256 over class names, item names and labels: changes when an image is added, removed or
        relabeled.
        """
        digest = hashlib.sha256(as_bytes("\0".join(self.class_names)))
        digest.update(self.labels.tobytes())
        for index in range(len(self)):
            digest.update(as_bytes(os.path.basename(self.item_name(index))))
        return digest.hexdigest()


class ArraySet(ImageSet):
    """Images held in memory: x uint8 (N, H, W, 3) or (N, H, W), y integer (N,)."""

    is_decoded = True

    def __init__(self, name: str, x: np.ndarray, y: np.ndarray, class_names: Sequence[str]) -> None:
        super().__init__(name, class_names, y)
        self.x = x

    def image(self, index: int) -> Any:
        return open_rgb(self.x[index])

    def item_bytes(self, index: int) -> bytes:
        return np.asarray(self.x[index]).tobytes()

    def fingerprint(self) -> str:
        """SHA-256 over class names, labels and pixels."""
        digest = hashlib.sha256(as_bytes("\0".join(self.class_names)))
        digest.update(self.labels.tobytes())
        digest.update(np.ascontiguousarray(self.x).data)
        return digest.hexdigest()


class Within(ImageSet):
    """Another set, with something changed."""

    def __init__(self, images: ImageSet) -> None:
        super().__init__(images.name, images.class_names, images.labels)
        self.images, self.left_out, self.is_decoded = images, images.left_out, images.is_decoded

    def image(self, index: int) -> Any:
        return self.images.image(index)

    def item_name(self, index: int) -> str:
        return self.images.item_name(index)

    def item_bytes(self, index: int) -> bytes:
        return self.images.item_bytes(index)

    def item_sha256(self, index: int) -> str:
        return self.images.item_sha256(index)

    def item_size(self, index: int) -> int:
        return self.images.item_size(index)

    def orientation(self, index: int) -> int:
        return self.images.orientation(index)

    def stamp(self, index: int) -> Stamp | None:
        return self.images.stamp(index)

    def place(self, index: int) -> str:
        return self.images.place(index)

    def fingerprint(self) -> str:
        """That of the set itself."""
        return self.images.fingerprint()


class Subset(ImageSet):
    """Some images of another set, with its classes."""

    def __init__(self, images: ImageSet, chosen: np.ndarray) -> None:
        super().__init__(images.name, images.class_names, images.labels[chosen])
        self.images, self.chosen, self.is_decoded = images, chosen, images.is_decoded

    def image(self, index: int) -> Any:
        return self.images.image(int(self.chosen[index]))

    def item_name(self, index: int) -> str:
        return self.images.item_name(int(self.chosen[index]))

    def item_bytes(self, index: int) -> bytes:
        return self.images.item_bytes(int(self.chosen[index]))

    def item_size(self, index: int) -> int:
        return self.images.item_size(int(self.chosen[index]))

    def orientation(self, index: int) -> int:
        return self.images.orientation(int(self.chosen[index]))

    def stamp(self, index: int) -> Stamp | None:
        return self.images.stamp(int(self.chosen[index]))


def most_classes(images: int) -> int:
    """How many classes a set of so many images may have: a network has a score for each."""
    return max(MOST_CLASSES, images)


def numbered(labels: np.ndarray, where: str) -> list[str]:
    """Names for classes that have none: their numbers, from 0 to the largest label of labels (N,), N > 0.

    Raises DataError for a label that is far too large, before names are made for all below it.
    """
    largest, most = int(labels.max()), most_classes(len(labels))
    if largest >= most:
        raise DataError(
            f"{where}: has a label {largest}; expected classes numbered from 0 on, at most {most:,} of them."
            " Number them anew"
        )
    return [str(i) for i in range(largest + 1)]


def _by_size(images: ImageSet) -> dict[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for index in range(len(images.labels)):  # a stream has none
        found[images.item_size(index)].append(index)
    return found
