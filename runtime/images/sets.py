"""A set of labeled images: what every source of images is turned into.

In:  class names, labels (N,) and a way to decode image i.
Out: an `ImageSet`: class names, labels (N,) int64, image i as a PIL RGB image, its name and its SHA-256.
Elsewhere: the sources (runtime.images.folder, runtime.images.npz, runtime.images.digits), decoding
(runtime.images.decode).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from .decode import open_rgb


class ImageSet:
    """N images with labels; `image(i)` decodes, everything else is cheap."""

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

    def fingerprint(self) -> str:
        """SHA-256 over class names, item names and labels: changes when an image is added, removed or
        relabeled.
        """
        digest = hashlib.sha256("\0".join(self.class_names).encode())
        digest.update(self.labels.tobytes())
        for index in range(len(self)):
            digest.update(os.path.basename(self.item_name(index)).encode())
        return digest.hexdigest()


class ArraySet(ImageSet):
    """Images held in memory: x uint8 (N, H, W, 3) or (N, H, W), y integer (N,)."""

    def __init__(self, name: str, x: np.ndarray, y: np.ndarray, class_names: Sequence[str]) -> None:
        super().__init__(name, class_names, y)
        self.x = x

    def image(self, index: int) -> Any:
        return open_rgb(self.x[index])

    def item_bytes(self, index: int) -> bytes:
        return np.asarray(self.x[index]).tobytes()

    def fingerprint(self) -> str:
        """SHA-256 over class names, labels and pixels."""
        digest = hashlib.sha256("\0".join(self.class_names).encode())
        digest.update(self.labels.tobytes())
        digest.update(np.ascontiguousarray(self.x).data)
        return digest.hexdigest()
