"""Set a share of the images of each class apart for validation, images of one content together.

In:  an `ImageSet` that can be read at any place; the share; a seed.
Out: which images are for validation; the list of both, which is kept, read by runtime.images.lists.
Elsewhere: folders that hold validation images already (runtime.images.by_name).
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import defaultdict

import numpy as np

from ..errors import DataError
from ..recorded import SPLIT_LIST
from .lists import Row
from .sets import ImageSet
from .summary import shown

NAME = SPLIT_LIST
"""The list in a run folder."""


def choose(images: ImageSet, share: float, seed: int) -> np.ndarray:
    """(N,) bool: the images for validation, a `share` (0 to 1) of the distinct contents of each class.

    Depends on content, not on names or order; images of equal bytes are on one side. Every class has at least
    one image on both sides. Raises DataError for a class of fewer than two distinct images.
    """
    content = [images.item_sha256(i) for i in range(len(images))]
    classes_of: dict[str, set[int]] = defaultdict(set)
    for sha256, label in zip(content, images.labels.tolist(), strict=True):
        classes_of[sha256].add(label)
    _require_no_two_labels(images, content, classes_of)
    for_val: set[str] = set()
    for label, name in enumerate(images.class_names):
        distinct = [sha256 for sha256, labels in classes_of.items() if label in labels]
        if len(distinct) < 2:
            raise DataError(
                f"{images.name}: class {name!r} has {len(distinct)} of different content,"
                " too few to set one apart for validation. Add some, or remove the class"
            )
        count = min(max(round(share * len(distinct)), 1), len(distinct) - 1)
        for_val |= set(sorted(distinct, key=lambda sha256: _by_chance(seed, sha256))[:count])
    return np.array([sha256 in for_val for sha256 in content])


def to_list(images: ImageSet, is_val: np.ndarray) -> str:
    """The list of both splits as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label", "split", "class_index", "place"))
    for index, label in enumerate(images.labels.tolist()):
        split = "val" if is_val[index] else "train"
        name = images.class_names[label]
        writer.writerow((images.item_name(index), name, split, label, images.place(index)))
    return text.getvalue()


def again(images: ImageSet, rows: list[Row], where: str) -> np.ndarray:
    """The images for validation as a list says, wherever the data is now. Raises DataError where the list is
    not of these images.
    """
    split = {row.place: row.split for row in rows}
    places = [images.place(i) for i in range(len(images))]
    if set(places) != split.keys():
        raise DataError(
            f"{where}: was made for other images than those of {images.name}. Put them back, or start another"
            " run with a new --output"
        )
    return np.array([split[place] == "val" for place in places])


def _require_no_two_labels(images: ImageSet, content: list[str], classes_of: dict[str, set[int]]) -> None:
    twice = [i for i, sha256 in enumerate(content) if len(classes_of[sha256]) > 1]
    if twice:
        names = shown([images.item_name(i) for i in twice if content[i] == content[twice[0]]])
        raise DataError(
            f"{images.name}: {len(twice)} images are in more than one class ({names}). Keep each in the class"
            " it belongs to"
        )


def _by_chance(seed: int, sha256: str) -> str:
    return hashlib.sha256(f"{seed}:{sha256}".encode()).hexdigest()
