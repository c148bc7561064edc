"""A training's stored answers, in place of its teacher: what they have to be for, and opening them.

In:  a recipe, its images.
Out: the `Header` of labels for exactly these images; `Labels` that have it, and lines about them.
Elsewhere: rows and files (distill.data.labels), making them (distill.run.labeling).
"""

from __future__ import annotations

from pathlib import Path

from runtime.cli.terminal import loading, say
from runtime.env import versions
from runtime.errors import UsageError
from runtime.images import ImageSet
from runtime.preprocess import Preprocess

from ..data.augment import DRAWN_BY
from ..data.augment import PIXELS as PIXELS_VERSION
from ..data.labels.store import Header, Labels
from ..data.sets import StreamSet
from ..processes import together
from ..recipe import Recipe
from ..teacher import Origin

PIXELS = (
    "seed",
    "sampler",
    "skip_bad_images",
    "scale",
    "ratio",
    "crop_padding",
    "hflip",
    "color_jitter",
    "aa",
    "train_interpolation",
    "reprob",
    "remode",
    "mixup",
    "cutmix",
    "mixup_prob",
    "mixup_switch_prob",
)
"""Settings of a recipe that change the pixels of a training, or their order."""
BESIDES = ("epochs", "top", "teacher", "teacher_top1_percent", "versions")
"""Parts of a header that a training need not have in common with the labels."""


def open_labels(recipe: Recipe, train: ImageSet, preprocess: Preprocess) -> Labels:
    """The labels of --teacher-labels. Raises UsageError naming the first thing in which this training differs
    from the one that they were made for, ArtifactError where they are damaged.
    """
    folder = Path(recipe.teacher_labels)
    with loading("opening the labels"):
        labels = Labels(folder)
        here = header_for(recipe, train, preprocess, labels.origin, processes=together.size())
    different = labels.header.difference(here, besides=BESIDES)
    if different:
        raise UsageError(
            f"--teacher-labels {folder}: made for another training ({different}). Train as they were made, or"
            " make others with distill label"
        )
    header = labels.header
    stored = "all" if header.layout.is_whole else f"the {header.top} largest of"
    say(
        f"teacher: {labels.origin.model}, through stored answers ({stored} {len(header.class_names)} classes,"
        f" {header.epochs} epoch{'s' * (header.epochs != 1)})"
    )
    if recipe.epochs > header.epochs:
        say(f"teacher: after epoch {header.epochs} the stored epochs are seen again, in their order")
    return labels


def header_for(
    recipe: Recipe,
    train: ImageSet,
    preprocess: Preprocess,
    teacher: Origin,
    *,
    top: int = 0,
    teacher_top1: float = 0.0,
    processes: int = 1,
) -> Header:
    """What labels for this training have in their header. top: classes stored for each image, 0 for all;
    processes: how many share a batch.

    Raises UsageError for images without random access, whose order depends on the number of workers, and for
    more classes than there are.
    """
    if isinstance(train, StreamSet):
        raise UsageError(
            f"{train.name}: streamed images have no fixed order, so that no answer can be stored for them."
            " Unpack them into a folder"
        )
    classes = len(train.class_names)
    if top > classes:
        raise UsageError(f"--top {top}: the data has {classes} classes. Give at most {classes}, or 0 for all")
    return Header(
        pixels=PIXELS_VERSION,
        class_names=list(train.class_names),
        top=top or classes,
        epochs=recipe.epochs,
        batches=len(train) // (recipe.batch * processes),
        batch=recipe.batch * processes,
        train_sha256=train.fingerprint(),
        preprocess={
            "input_size": list(preprocess.input_size),
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
            "exif": preprocess.exif,
        },
        settings={name: _plain(getattr(recipe, name)) for name in PIXELS},
        teacher=teacher.to_dict(),
        teacher_top1_percent=teacher_top1,
        versions=versions(DRAWN_BY),
    )


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
