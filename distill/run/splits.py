"""The images of a run: training and validation, apart from each other and of the same classes.

In:  a recipe, and the run folder.
Out: `Splits`.
Elsewhere: sources of images (runtime.images, distill.data), choosing validation images
(runtime.images.split), the run (distill.run.job).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from runtime.artifact import require_same_classes
from runtime.errors import DataError, UsageError
from runtime.images import ImageSet, has_own_split, split
from runtime.images.lists import is_list, read, with_columns
from runtime.images.order import same_name
from runtime.images.sets import Subset
from runtime.images.summary import shown

from ..data import open_data
from ..data.sets import TIMM_PREFIXES
from ..recipe import Recipe
from ..training.task import Splits
from .folder import absolute


def open_splits(recipe: Recipe, folder: Path | None = None, resumes: bool = False) -> Splits:
    """Training and validation images and the specs to find them again; classes and their order must agree.

    folder: RUN, where the list of --val-split is kept; resumes: take the list that is there.
    """
    train_spec = _with_columns(absolute(recipe.data), recipe)
    val_spec = _with_columns(absolute(recipe.val_data), recipe) or train_spec
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
    require_same_classes(
        train.class_names, f"training images {train_spec}", val.class_names, f"validation images {val_spec}"
    )
    val.class_names = train.class_names  # equal but for how accents are stored
    return Splits(train, val, train_spec, val_spec)


def require_every_class(train: ImageSet, val: ImageSet) -> None:
    """Raise DataError where the folders of one split lack a class of the other."""
    ours, theirs = ([same_name(name) for name in images.class_names] for images in (train, val))
    for split_name, has, needs, images in (("val", theirs, ours, val), ("train", ours, theirs, train)):
        missing = [name for name in needs if name not in has]
        others = [name for name in has if name not in needs]
        if missing and not others:
            raise DataError(
                f"{split_name} has no image of {shown(missing)} ({len(has)} of {len(needs)} classes):"
                f" {images.name}. Add some, or remove the class from the other set"
            )
    empty = val.summary().empty_classes
    if is_list(val.name) and empty:
        raise DataError(
            f"val has no image of {shown(empty)} "
            f"({len(val.class_names) - len(empty)} of {len(val.class_names)} classes): {val.name}."
            " Add some, or remove the class"
        )


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


def _with_columns(spec: str, recipe: Recipe) -> str:
    return with_columns(spec, recipe.csv_image, recipe.csv_label) if is_list(spec) else spec
