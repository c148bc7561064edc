"""The images of a run: training and validation, apart from each other and of the same classes.

In:  a recipe.
Out: `Splits`.
Elsewhere: sources of images (runtime.images, distill.data), the run (distill.run.job).
"""

from __future__ import annotations

from runtime.artifact import require_same_classes
from runtime.errors import UsageError
from runtime.images import has_own_split

from ..data import open_data
from ..data.sets import TIMM_PREFIXES
from ..recipe import Recipe
from ..training.task import Splits
from .folder import absolute


def open_splits(recipe: Recipe) -> Splits:
    """Training and validation images and the specs to find them again; classes and their order must agree."""
    train_spec = absolute(recipe.data)
    val_spec = absolute(recipe.val_data) or train_spec
    train = open_data(train_spec, "train", recipe.num_classes)
    splittable = train_spec.startswith(TIMM_PREFIXES) or (
        not train_spec.endswith(".tar") and has_own_split(train_spec, "val")
    )
    if not recipe.val_data and not splittable:
        raise UsageError(
            f"{recipe.data}: has no validation images apart from the training images. "
            "Expected a val/ folder in it, or --val-data"
        )
    val = open_data(val_spec, "val", recipe.num_classes)
    require_same_classes(
        train.class_names, f"training images {train_spec}", val.class_names, f"validation images {val_spec}"
    )
    return Splits(train, val, train_spec, val_spec)
