"""Classes that do not fit: a set beside the classes of a network or of another set, matched by name.

In:  an `ImageSet`; the classes that something else knows.
Out: the set with labels in that order; DataError or ArtifactError naming the classes that are missing or not
     known, and those of which no image can be read.
Elsewhere: the order of classes in a set (runtime.images.order), the classifier of a teacher
(distill.models.classifier).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..errors import ArtifactError, DataError
from .folder import FileSet
from .order import same_name
from .sets import ImageSet, Subset
from .summary import shown


def in_order_of(known: Sequence[str] | None, owner: str, images: ImageSet, split: str) -> ImageSet:
    """`images` with labels in the order of `known`, the classes of `owner` (a file); None is not compared.

    Raises DataError where `images`, which are the `split` images, lack a class or have one more,
    ArtifactError where both are so.
    """
    if known is None:
        return images
    missing, unknown = differences(known, images)
    if missing and not unknown:
        raise lacking(missing, images, split, f"{owner} knows {len(known)} classes. Add images of it")
    if unknown and not missing:
        raise DataError(
            f"{images.name}: has images of {shown(unknown)}, a class that {owner} does not know. It knows"
            f" {shown(list(known))}. Leave these images out, or use a network trained with them"
        )
    place = {same_name(name): index for index, name in enumerate(known)}
    if missing:
        raise ArtifactError(
            f"classes differ: {shown(missing)} only in {owner}, {shown(unknown)} only in {images.name}. Use"
            " the data set the model was trained on, or rename the class folders"
        )
    # a class of a list that has no image of this split may be one that nobody knows: no label leads to its -1
    new_label = np.array([place.get(same_name(name), -1) for name in images.class_names])
    return _relabeled(images, known, new_label)


def differences(known: Sequence[str], images: ImageSet) -> tuple[list[str], list[str]]:
    """(classes of `known` that `images` lack, classes of `images` that are not known).

    A class of a list without an image is missing; arrays (npz) say themselves which classes they have.
    """
    names = images.class_names
    if isinstance(images, FileSet):
        empty = set(images.summary().empty_classes)
        names = [name for name in names if name not in empty]
    theirs, ours = ({same_name(name) for name in some} for some in (names, known))
    return [name for name in known if same_name(name) not in theirs], [
        name for name in names if same_name(name) not in ours
    ]


def lacking(missing: Sequence[str], images: ImageSet, split: str, advice: str) -> DataError:
    """The error for classes of which the images of `split` have none."""
    classes = {same_name(name) for name in (*images.class_names, *missing)}
    return DataError(
        f"{split} has no image of {shown(list(missing))} ({len(classes) - len(missing)} of"
        f" {len(classes)} classes): {images.name}. {advice}"
    )


def require_readable_classes(
    images: ImageSet, split: str, after_class: Callable[[int], None] = lambda done: None
) -> None:
    """Raise DataError for classes whose images can all not be read. Of every class images are read until one
    can be, so that a whole set costs one image a class.
    """
    lost = []
    for label, name in enumerate(images.class_names):
        own = np.flatnonzero(images.labels == label)
        if len(own) and not any(_is_readable(images, int(index)) for index in own):
            lost.append(f"{name!r} ({len(own)})")
        after_class(label + 1)
    if lost:
        raise DataError(
            f"{images.name}: no image of {shown(lost)} in {split} can be read, so nothing is known of"
            f" {'this class' if len(lost) == 1 else 'these classes'}. Mend the images, or remove the class"
        )


def _is_readable(images: ImageSet, index: int) -> bool:
    try:
        images.image(index)
    except DataError:
        return False
    return True


def _relabeled(images: ImageSet, class_names: Sequence[str], new_label: np.ndarray) -> ImageSet:
    if np.array_equal(new_label, np.arange(len(new_label))):
        images.class_names = list(class_names)  # equal but for how accents are stored
        return images
    found = Subset(images, np.arange(len(images.labels)))
    found.class_names, found.labels = list(class_names), new_label[images.labels]
    return found
