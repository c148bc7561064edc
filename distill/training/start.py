"""The student before its first step: architecture, arguments, preprocessing and the weights it begins with.

In:  a recipe; in a resumed run what the run kept of weights that came from elsewhere.
Out: a `Start`. A file is read once, and published weights are fetched only when they are asked for.
Elsewhere: what names mean (distill.models.names), reading files (distill.checkpoint), a classifier of other
classes (distill.models.classifier), the network itself (distill.training.parts).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from runtime.errors import UsageError
from runtime.preprocess import Preprocess

from .. import checkpoint as checkpoints
from .. import models
from ..checkpoint import Checkpoint
from ..models import names
from ..recipe import Recipe, key_values

DEFAULT = "resnet18"
"""The architecture where neither --student nor a file names one."""
WAY_OUT = "--student-ckpt FILE"


@dataclass(frozen=True)
class Start:
    """What a student begins as."""

    name: str
    """As recipes and lineages have it."""
    model: str
    """Architecture, as checkpoints have it."""
    model_args: dict[str, Any]
    preprocess: Preprocess
    assumed: list[str] = field(default_factory=list)
    """What was taken from the architecture because the file does not say it."""
    read: Callable[[], Checkpoint | None] = lambda: None
    """Gives the weights; None: fresh ones."""

    @cached_property
    def checkpoint(self) -> Checkpoint | None:
        """The weights it begins with, read or fetched at the first use; None: fresh ones."""
        return self.read()


def open_start(recipe: Recipe, kept: Path | None = None) -> Start:
    """The student as the recipe says it. kept: a checkpoint that a stopped run took from a hub or a folder.

    Raises UsageError for two sizes and for a name that is not known, ArtifactError for a file of another
    architecture, MissingError where the hub is out of reach.
    """
    arguments = key_values(recipe.student_args)
    if kept is not None:
        return _of_kept(recipe, arguments, kept)
    if recipe.student_ckpt:
        return _of_file(recipe, arguments)
    name = DEFAULT if recipe.student == "auto" else recipe.student
    network = names.resolve(name, WAY_OUT)
    arguments = network.model_args | arguments
    preprocess = _asked(recipe, models.preprocess_from(network.config), arguments)
    arguments = models.size_argument(network.architecture, preprocess.input_size[1:]) | arguments
    start = Start(network.name, network.architecture, arguments, preprocess)
    if not (recipe.pretrained or names.says_weights(network.name)):
        return start
    return replace(start, read=lambda: checkpoints.load_published(network, arguments, WAY_OUT))


def _of_kept(recipe: Recipe, arguments: dict[str, Any], kept: Path) -> Start:
    found = checkpoints.load(kept)
    preprocess = _asked(recipe, found.preprocess, arguments)
    return Start(recipe.student, found.model, found.model_args, preprocess, read=lambda: found)


def _of_file(recipe: Recipe, arguments: dict[str, Any]) -> Start:
    file = checkpoints.open_file(recipe.student_ckpt)
    asked = None if recipe.student == "auto" else recipe.student
    if file.is_ours:
        found = file.as_model(asked, entry=recipe.checkpoint_key)
        preprocess = _asked(recipe, found.preprocess, arguments)
        arguments = (
            found.model_args | models.size_argument(found.model, preprocess.input_size[1:]) | arguments
        )
        return Start(found.model, found.model, arguments, preprocess, read=lambda: found)
    model = file.require_name(asked, "--student")
    preprocess = _asked(recipe, models.preprocess_of(model), arguments)
    said = {
        "mean": recipe.mean,
        "std": recipe.std,
        "interpolation": recipe.interpolation,
        "input_size": recipe.input_size or recipe.img_size or arguments.get("img_size"),
    }
    assumed = models.assumption(preprocess, "", [name for name, value in said.items() if value])
    arguments = models.size_argument(model, preprocess.input_size[1:]) | arguments
    found = file.as_model(model, arguments, "--student", recipe.checkpoint_key)
    # a published file may show its own kernel sizes
    return Start(model, model, found.model_args, preprocess, assumed, read=lambda: found)


def _asked(recipe: Recipe, preprocess: Preprocess, arguments: dict[str, Any]) -> Preprocess:
    """`preprocess` with what the recipe says of it. arguments: of the network, as the user gives them."""
    preprocess = _sized(preprocess, recipe, arguments.get("img_size", 0))
    # random crops of a padded image show it at its own scale, and so must validation
    crop_pct = recipe.crop_pct or (1.0 if recipe.crop_padding else preprocess.crop_pct)
    said = {
        "mean": recipe.mean,
        "std": recipe.std,
        "interpolation": recipe.interpolation,
        "exif": recipe.exif,
    }
    return models.as_asked(
        replace(preprocess, crop_pct=crop_pct), {name: value for name, value in said.items() if value}
    )


def _sized(preprocess: Preprocess, recipe: Recipe, built_for: Any) -> Preprocess:
    """At the size of --img-size, --input-size or an argument of the network; as it is where none is given."""
    asked = models.sized(preprocess, recipe.img_size, recipe.input_size)
    if not built_for:
        return asked
    size = (3, *models.sides_of(built_for))
    if (recipe.img_size or recipe.input_size) and asked.input_size != size:
        words = " ".join(map(str, recipe.input_size))
        flag = f"--input-size {words}" if words else f"--img-size {recipe.img_size}"
        raise UsageError(f"{flag} and --student-args img_size={built_for}: two sizes. Give one")
    return replace(preprocess, input_size=size)
