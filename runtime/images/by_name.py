"""Labeled images by name, without torch: a folder tree, a list, npz arrays, or scikit-learn's digits.

In:  a spec (`DIR`, `FILE.csv`, `npz:FILE`, `digits`) and a split (`train` or `val`).
Out: an `ImageSet`.
Elsewhere: every other source timm reads (distill.data); augmentation (distill.data.augment); resize, crop,
scale (runtime.preprocess).
"""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError
from .digits import open_digits
from .folder import FolderSet, has_class_folders, has_split_folder, split_folder
from .lists import has_splits, holds_lists, is_list, list_in, open_list
from .npz import open_npz
from .sets import ImageSet


def open_images(spec: str, split: str) -> ImageSet:
    """The labeled images that `spec` names.

    spec: `digits`; `npz:FILE`; a list; a folder of class folders; or a folder of lists. split: `train` or
    `val`; a folder without a sub-folder or list of that meaning (SPLIT_FOLDERS) is used as it is. Raises
    DataError when it is missing, empty, or has fewer than two classes.
    """
    images: ImageSet
    if spec == "digits":
        images = open_digits(split)
    elif spec.startswith("npz:"):
        images = open_npz(spec[len("npz:") :], split)
    elif is_list(spec):
        images = open_list(spec, split)
    elif not has_class_folders(Path(spec), split) and holds_lists(Path(spec)):
        images = open_list(f"csv:{spec}", split)
    else:
        images = FolderSet(split_folder(Path(spec), split))
    if len(images.class_names) < 2:
        raise DataError(
            f"{images.name}: one class ({images.class_names[0]!r}) cannot be classified. "
            "Expected at least two class folders"
        )
    return images


def has_own_split(spec: str, split: str) -> bool:
    """Whether `spec` keeps `split` apart from the other one (a sub-folder, a split file, the digits)."""
    if spec == "digits":
        return True
    if spec.startswith("npz:"):
        path = Path(spec[len("npz:") :])
        return path.is_dir() or "{split}" in str(path)
    if is_list(spec):
        return has_splits(spec)
    if holds_lists(Path(spec)):  # a folder val/ without classes then holds images that a list may name
        return bool(list_in(Path(spec), split)) or has_class_folders(Path(spec), split)
    return has_split_folder(Path(spec), split)
