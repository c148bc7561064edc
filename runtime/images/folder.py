"""Labeled images in a folder tree, ROOT/CLASS/image.jpg.

In:  a folder, and the split that is wanted.
Out: a `FolderSet`, classes in natural order.
Elsewhere: decoding (runtime.images.decode).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .decode import open_rgb, require_file
from .sets import ImageSet

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "eval", "evaluation", "test"),
}


class FolderSet(ImageSet):
    """`ROOT/CLASS/image.jpg`, at any depth: an image's class is the folder it is in, classes in natural
    order (2 before 10), both as timm reads them. Raises DataError for an image beside the class folders.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        files = [
            Path(folder) / file
            for folder, _, names in os.walk(self.root, followlinks=True)
            for file in names
            if os.path.splitext(file)[1].lower() in EXTENSIONS
        ]
        if not files:
            raise DataError(
                f"{root}: no images found ({', '.join(EXTENSIONS)}). Expected {root}/CLASS/image.jpg"
            )
        self.files = sorted(files, key=lambda path: natural_key(str(path)))
        loose = next((file for file in self.files if file.parent == self.root), None)
        if loose:
            raise DataError(f"{loose}: is not in a class folder. Expected {root}/CLASS/image.jpg")
        names = [file.parent.name for file in self.files]
        class_names = sorted(set(names), key=natural_key)
        index = {name: i for i, name in enumerate(class_names)}
        super().__init__(str(root), class_names, np.array([index[name] for name in names]))

    def image(self, index: int) -> Any:
        return open_rgb(self.files[index])

    def item_name(self, index: int) -> str:
        return str(self.files[index])

    def item_bytes(self, index: int) -> bytes:
        require_file(self.files[index])
        return self.files[index].read_bytes()


def natural_key(text: str) -> list[Any]:
    """Sort key that reads runs of digits as numbers: class2 before class10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text.lower())]


def split_folder(root: Path, split: str) -> Path:
    if not root.exists():
        raise DataError(
            f"{root}: no such folder. Expected an image folder with one sub-folder per class, npz:FILE, or"
            " digits"
        )
    if not root.is_dir():
        raise DataError(f"{root}: not a folder. Expected an image folder, npz:FILE, or digits")
    found = {
        each: next((root / name for name in names if (root / name).is_dir()), None)
        for each, names in SPLIT_FOLDERS.items()
    }
    if found[split] is None and any(found.values()):  # else the whole root would mix both splits
        raise DataError(
            f"{root}: has a folder of {'val' if split == 'train' else 'training'} images but none for"
            f" {split}. Expected one of {', '.join(SPLIT_FOLDERS[split])} in it, or a folder of class folders"
        )
    return found[split] or root
