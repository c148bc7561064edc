"""The student before training: what its images have to look like.

In:  a recipe.
Out: the student's `Preprocess`.
Elsewhere: building the network (distill.training.parts), weights of files (distill.checkpoint).
"""

from __future__ import annotations

from dataclasses import replace

from runtime.errors import UsageError
from runtime.preprocess import Preprocess

from .. import checkpoint as checkpoints
from .. import models
from .. import recipe as recipes
from ..recipe import Recipe


def student_preprocess(recipe: Recipe) -> Preprocess:
    """How the student's images are resized, cropped and normalized. Raises UsageError for two sizes."""
    if recipe.student_ckpt:
        preprocess = checkpoints.load_any(recipe.student_ckpt, recipe.student).preprocess
    else:
        preprocess = models.preprocess_of(recipe.student)
    built_for = recipes.key_values(recipe.student_args).get("img_size", 0)
    if recipe.img_size and built_for not in (0, recipe.img_size):
        raise UsageError(
            f"--img-size {recipe.img_size} and --student-args img_size={built_for}: two sizes. Give one"
        )
    size = models.preprocess_of(
        recipe.student, recipe.img_size or built_for or preprocess.input_size[1:]
    ).input_size
    # random crops of a padded image show it at its own scale, and so must validation
    crop_pct = recipe.crop_pct or (1.0 if recipe.crop_padding else preprocess.crop_pct)
    return replace(preprocess, input_size=size, crop_pct=crop_pct)
