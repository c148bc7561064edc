"""Labeled images in files: a folder tree ROOT/CLASS/image.jpg, or any files with labels.

In:  a folder, and the split that is wanted; or paths and labels.
Out: a `FolderSet`, classes in natural order; a `FileSet`.
Elsewhere: looking through the folder (runtime.images.scan), decoding (runtime.images.decode), lists of files
(runtime.images.lists).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..files import open_regular, sha256
from .decode import open_rgb, require_file, stored_orientation
from .order import natural_key, ordered_classes
from .scan import EXTENSIONS, is_system, scan
from .sets import ImageSet, Stamp

__all__ = ["EXTENSIONS", "SPLIT_FOLDERS", "FileSet", "FolderSet", "natural_key", "split_folder"]

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "eval", "evaluation", "test", "testing"),
}


class FileSet(ImageSet):
    """Image files with labels."""

    def __init__(self, name: str, class_names: Sequence[str], labels: np.ndarray, files: list[Path]) -> None:
        super().__init__(name, class_names, labels)
        self.files = files

    def image(self, index: int) -> Any:
        return open_rgb(self.files[index])

    def item_name(self, index: int) -> str:
        return str(self.files[index])

    def item_bytes(self, index: int) -> bytes:
        require_file(self.files[index])
        with open_regular(self.files[index]) as file:
            return file.read(os.fstat(file.fileno()).st_size)

    def item_sha256(self, index: int) -> str:
        require_file(self.files[index])
        return sha256(self.files[index])

    def orientation(self, index: int) -> int:
        return stored_orientation(self.files[index])

    def item_size(self, index: int) -> int:
        return os.stat(self.files[index]).st_size

    def stamp(self, index: int) -> Stamp | None:
        try:
            found = os.stat(self.files[index])
        except OSError:  # said when it is read
            return None
        return found.st_size, found.st_mtime_ns

    def own_class(self, index: int) -> str:
        """What the image's own place says its class is, apart from `labels`."""
        name: str = self.class_names[int(self.labels[index])]
        return name


class FolderSet(FileSet):
    """`ROOT/CLASS/image.jpg`: an image's class is the first folder below ROOT, classes in natural order (2
    before 10), files in timm's. Raises DataError where the classes are not clear (runtime.images.scan).
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        tree = scan(root)
        class_names = ordered_classes((name for name, _ in tree.images), str(root))
        index = {name: i for i, name in enumerate(class_names)}
        labels = np.array([index[name] for name, _ in tree.images])
        super().__init__(str(root), class_names, labels, [self.root / path for _, path in tree.images])
        self.left_out = tree.left_out

    def own_class(self, index: int) -> str:
        first: str = self.files[index].relative_to(self.root).parts[0]
        return first

    def place(self, index: int) -> str:
        return str(self.files[index].relative_to(self.root))


def split_folder(root: Path, split: str) -> Path:
    """The folder of that split, or `root` where it has none for any split."""
    found = _split_folders(_existing(root))
    if split not in found and found:  # else the whole root would mix both splits
        raise DataError(
            f"{root}: has a folder of {'val' if split == 'train' else 'training'} images but none for"
            f" {split}. Expected one of {', '.join(SPLIT_FOLDERS[split])} in it, or a folder of class folders"
        )
    return found.get(split, root)


def has_split_folder(root: Path, split: str) -> bool:
    """Whether `root` has a folder of that split."""
    return split in _split_folders(_existing(root))


def _existing(root: Path) -> Path:
    if not root.exists():
        raise DataError(
            f"{root}: no such folder. Expected an image folder with one sub-folder per class, a list"
            " FILE.csv, npz:FILE, or digits"
        )
    if not root.is_dir():
        raise DataError(
            f"{root}: not a folder. Expected an image folder, a list FILE.csv, npz:FILE, or digits"
        )
    return root


def has_class_folders(root: Path, split: str) -> bool:
    """Whether `root` has a folder of that split with folders in it."""
    found = _split_folders(root).get(split) if root.is_dir() else None
    return found is not None and _has_folders(found)


def _split_folders(root: Path) -> dict[str, Path]:
    """Split -> its folder, in any case of the letters; a folder of that name that holds images beside other
    class folders is a class.
    """
    try:
        folders = [each for each in root.iterdir() if not is_system(each.name) and each.is_dir()]
    except OSError as error:
        raise DataError(f"{root}: cannot be listed ({error.strerror or error})") from error
    named = {word for words in SPLIT_FOLDERS.values() for word in words}
    alone = all(each.name.lower() in named for each in folders)
    by_name: dict[str, list[Path]] = {}
    for each in folders:
        if each.name.lower() in named and (alone or _has_folders(each)):
            by_name.setdefault(each.name.lower(), []).append(each)
    found = {}
    for split, words in SPLIT_FOLDERS.items():
        places = next((by_name[word] for word in words if word in by_name), [])
        if len(places) > 1:
            raise DataError(f"{places[0]} and {places[1]}: two folders for {split}. Rename one of them")
        if places:
            found[split] = places[0]
    return found


def _has_folders(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.is_dir() and not is_system(entry.name) for entry in entries)
