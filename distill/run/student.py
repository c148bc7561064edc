"""The student before training: which architecture it is, and what its images have to look like.

In:  a recipe.
Out: the student's name and `Preprocess`.
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
from .options import TrainOptions

DEFAULT = "resnet18"
"""The architecture where neither --student nor a file names one."""


def named(options: TrainOptions) -> TrainOptions:
    """The options with the student's architecture settled: typed, or of its file, or DEFAULT. Raises
    UsageError for fresh weights of which a part is to be frozen.
    """
    starts = options.student_ckpt or options.pretrained or models.has_tag(options.student)
    if (options.freeze or options.freeze_norms) and not starts:
        what = f"--freeze {options.freeze}" if options.freeze else "--freeze-norms (recipe finetune sets it)"
        raise UsageError(
            f"{what}: the student starts from fresh weights, of which nothing is worth keeping. Give"
            " --student-ckpt FILE or --pretrained, or leave it out"
        )
    if options.student != "auto":
        return options
    if not options.student_ckpt:
        return replace(options, student=DEFAULT)
    return replace(options, student=checkpoints.load_any(options.student_ckpt, None, flag="--student").model)


def student_preprocess(recipe: Recipe) -> tuple[Preprocess, list[str]]:
    """How the student's images are resized, cropped and normalized, and what was assumed of them. Raises
    UsageError for two sizes.
    """
    assumed = False
    if recipe.student_ckpt:
        found = checkpoints.load_any(
            recipe.student_ckpt, recipe.student, flag="--student", entry=recipe.checkpoint_key
        )
        preprocess, assumed = found.preprocess, found.class_names is None
    else:
        preprocess = models.preprocess_of(recipe.student)
    preprocess = _sized(preprocess, recipe)
    # random crops of a padded image show it at its own scale, and so must validation
    crop_pct = recipe.crop_pct or (1.0 if recipe.crop_padding else preprocess.crop_pct)
    said = {
        "mean": recipe.mean,
        "std": recipe.std,
        "interpolation": recipe.interpolation,
        "exif": recipe.exif,
    }
    said = {name: value for name, value in said.items() if value}
    preprocess = models.as_asked(replace(preprocess, crop_pct=crop_pct), said)
    built_for = recipes.key_values(recipe.student_args).get("img_size")
    sized = ("input_size",) if recipe.input_size or recipe.img_size or built_for else ()
    return preprocess, models.assumption(preprocess, "", (*said, *sized)) if assumed else []


def _sized(preprocess: Preprocess, recipe: Recipe) -> Preprocess:
    """At the size of --img-size, --input-size or an argument of the network; as it is where none is given."""
    asked = models.sized(preprocess, recipe.img_size, recipe.input_size)
    built_for = recipes.key_values(recipe.student_args).get("img_size", 0)
    if not built_for:
        return asked
    size = models.preprocess_of(recipe.student, built_for).input_size
    if (recipe.img_size or recipe.input_size) and asked.input_size != size:
        words = " ".join(map(str, recipe.input_size))
        flag = f"--input-size {words}" if words else f"--img-size {recipe.img_size}"
        raise UsageError(f"{flag} and --student-args img_size={built_for}: two sizes. Give one")
    return replace(preprocess, input_size=size)
