"""The images of a run: training and validation, apart from each other and of the same classes.

In:  a recipe, and the run folder.
Out: `Splits`.
Elsewhere: sources of images (runtime.images, distill.data), choosing validation images
(runtime.images.split), the run (distill.run.job).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from runtime.errors import UsageError
from runtime.images import ImageSet, has_own_split, split
from runtime.images.classes import differences, in_order_of, lacking, require_readable_classes
from runtime.images.lists import read, with_columns
from runtime.images.sets import Subset

from ..data import open_data
from ..data.sets import TIMM_PREFIXES
from ..recipe import Recipe
from ..training.task import Splits
from .folder import absolute


def open_splits(recipe: Recipe, folder: Path | None = None, resumes: bool = False) -> Splits:
    """Training and validation images of the same classes, and the specs to find them again.

    folder: RUN, where the list of --val-split is kept; resumes: take the list that is there. With
    --skip-bad-images each class must have an image that can be read, in both sets.
    """
    found = _opened(recipe, folder, resumes)
    if recipe.skip_bad_images:
        for images, name in ((found.train, "train"), (found.val, "val")):
            require_readable_classes(images, name)
    return found


def _opened(recipe: Recipe, folder: Path | None, resumes: bool) -> Splits:
    columns = recipe.csv_image, recipe.csv_label
    train_spec = with_columns(absolute(recipe.data), *columns)
    val_spec = with_columns(absolute(recipe.val_data), *columns) if recipe.val_data else train_spec
    train = open_data(train_spec, "train", recipe.num_classes)
    splittable = train_spec.startswith(TIMM_PREFIXES) or (
        not train_spec.endswith(".tar") and has_own_split(train_spec, "val")
    )
    if recipe.val_split:
        if recipe.val_data or splittable:
            raise UsageError(
                f"--val-split {recipe.val_split:g}: {recipe.val_data or recipe.data} holds validation images"
                " already. Leave the flag out, or give the training images alone as --data"
            )
        return _split(recipe, train, train_spec, folder or Path(), resumes)
    if not recipe.val_data and not splittable:
        raise UsageError(
            f"{recipe.data}: has no validation images apart from the training images. "
            "Set some apart: --val-split 0.2; or give a val/ folder in it, or --val-data"
        )
    val = open_data(val_spec, "val", recipe.num_classes)
    require_every_class(train, val)
    val = in_order_of(train.class_names, f"the training set {train_spec}", val, "val")
    return Splits(train, val, train_spec, val_spec)


def require_every_class(train: ImageSet, val: ImageSet) -> None:
    """Raise DataError where the folders of one split lack a class of the other."""
    for one, other, lacks in ((train, val, "val"), (val, train, "train")):
        missing, more = differences(one.class_names, other)
        if missing and not more:
            raise lacking(missing, other, lacks, "Add some, or remove the class from the other set")


def _split(recipe: Recipe, images: ImageSet, spec: str, folder: Path, resumes: bool) -> Splits:
    """One set in two, and the list of it."""
    if spec.startswith(TIMM_PREFIXES) or spec.endswith(".tar") or not len(images.labels):
        raise UsageError(f"--val-split: {spec} cannot be split. Expected an image folder, a list or npz:FILE")
    kept = (folder / split.NAME).absolute()
    is_val = (
        split.again(images, read(str(kept)), str(kept))
        if resumes and kept.is_file()
        else split.choose(images, recipe.val_split, recipe.seed)
    )
    train, val = (Subset(images, np.flatnonzero(chosen)) for chosen in (~is_val, is_val))
    train.left_out = images.left_out
    return Splits(train, val, str(kept), str(kept), {split.NAME: split.to_list(images, is_val)})
