"""The images a checkpoint is judged on: those named, in the split that its run made of them.

In:  a data spec, a split, the checkpoint's file.
Out: an `ImageSet`.
Elsewhere: making the split (runtime.images.split, distill.run.splits), opening by name (distill.data.sets).
"""

from __future__ import annotations

from os.path import basename
from pathlib import Path

import numpy as np

from runtime.images import ImageSet, has_own_split, split
from runtime.images.lists import read
from runtime.images.order import same_name
from runtime.images.sets import Subset

from .sets import TIMM_PREFIXES, open_data


def open_of_run(spec: str, which: str, checkpoint: str | Path, num_classes: int = 0) -> ImageSet:
    """The `which` (train or val) images of `spec`.

    Where the run of `checkpoint` set images apart (--val-split) and `spec` is all of them, moved or not, they
    are those that the run's list gives to that split: the others were trained on.
    """
    kept = list_of_run(Path(checkpoint))
    if kept is None or not _is_whole(spec):
        return open_data(spec, which, num_classes)
    images = open_data(spec, "train", num_classes)
    rows = {(row.place, same_name(row.label), basename(row.path)): row.split for row in read(str(kept))}
    names = [
        (images.place(i), same_name(images.class_names[label]), basename(images.item_name(i)))
        for i, label in enumerate(images.labels.tolist())
    ]
    if set(names) != rows.keys():
        return open_data(spec, which, num_classes)
    return Subset(images, np.array([i for i, name in enumerate(names) if rows[name] == which]))


def list_of_run(checkpoint: Path) -> Path | None:
    """The list of --val-split of the run that a checkpoint is in, as its student or its control."""
    folders = (checkpoint.parent, checkpoint.parent.parent)
    return next((each / split.NAME for each in folders if (each / split.NAME).is_file()), None)


def _is_whole(spec: str) -> bool:
    """Whether `spec` is one set without validation images of its own, which can be read at any place."""
    if not spec or spec.startswith(TIMM_PREFIXES) or spec.endswith(".tar"):
        return False
    return not has_own_split(spec, "val")
