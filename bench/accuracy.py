"""Top-1, top-5, accuracy of each class and loss of an artifact on labeled images, and its agreement with
another one.

In:  an artifact (any `Predictor` with preprocessing) and an `ImageSet`.
Out: `AccuracyResult`, logits included; `Comparison` of two; `AccuracyReport`, whose `to_dict` is the JSON
result.
Elsewhere: speed (bench.clock.latency), reading images (runtime.images), the decision whether a drop is
too much (export.checks.verify), the flags (bench.commands.accuracy), the table for a person (bench.tables).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from runtime import ArtifactError, DataError, Predictor, Preprocess, env
from runtime.images import ImageSet
from runtime.images.classes import in_order_of, require_readable_classes
from runtime.images.order import same_name
from runtime.images.summary import ClassAccuracy, balanced_percent, class_accuracies
from runtime.intervals import newcombe, wilson

from .subject import Description, require_preprocess

LOOKED_AT = 32
"""Images, spread over those that were answered, whose content tells a set from another."""
ANSWERS = ("indices", "labels", "classes", "right")
"""Fields of `Answers` that have a number for each image, as they are kept in files."""
NAMED = 20
"""Unreadable images named in the result; the others are only counted."""


@dataclass(frozen=True, eq=False)
class AccuracyResult:
    """Accuracy over N readable images, with what is needed to compare it image by image."""

    top1: float
    """Images whose best class is the label, percent."""
    top5: float
    """Images whose label is among the five best classes, percent."""
    loss: float
    """Cross-entropy, mean over the images, nats."""
    logits: np.ndarray
    """(N, K) float32."""
    labels: np.ndarray
    """(N,) int64."""
    indices: np.ndarray
    """(N,) position of every image in the set."""
    skipped: list[str]
    """Names of images that could not be read."""
    classes: list[ClassAccuracy]
    """Accuracy of each class."""
    images_sha256: str | None = None
    """Of the set and of images in it, as `images_sha256` gives it."""

    @property
    def n(self) -> int:
        """Images evaluated."""
        return len(self.labels)

    @property
    def right(self) -> np.ndarray:
        """(N,) bool: is the best class the label?"""
        return ranks(self.logits, self.labels) < 1

    @property
    def top1_interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of top-1, percent."""
        low, high = wilson(int(self.right.sum()), self.n)
        return 100 * low, 100 * high

    @property
    def balanced(self) -> float | None:
        """Balanced accuracy: the mean over the classes that have images, percent."""
        return balanced_percent(each.percent for each in self.classes)


@dataclass(frozen=True, eq=False)
class Answers:
    """What a network said to each image, to be compared with what another says; each (N,)."""

    indices: np.ndarray
    """Position of the image in the set."""
    labels: np.ndarray
    classes: np.ndarray
    """The best one."""
    right: np.ndarray
    """bool."""
    images_sha256: str | None = None
    """Of what was asked about; None where that was not kept."""

    @classmethod
    def of(cls, result: AccuracyResult) -> Answers:
        """Those of a result."""
        classes = result.logits.argmax(1)
        return cls(result.indices, result.labels, classes, result.right, result.images_sha256)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Answers:
        """Those that `to_dict` gave."""
        indices, labels, classes, right = (np.array(values[name], np.int64) for name in ANSWERS)
        identity = values.get("images_sha256")
        return cls(indices, labels, classes, right > 0, identity if isinstance(identity, str) else None)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        lists = {name: getattr(self, name).astype(int).tolist() for name in ANSWERS}
        return lists | {"images_sha256": self.images_sha256}

    def same_images(self, other: Answers) -> bool:
        """Were both asked about the same images, with the same labels? Where one does not tell what it was
        asked about, positions and labels have to do.
        """
        told = (self.images_sha256, other.images_sha256)
        return (
            np.array_equal(self.indices, other.indices)
            and np.array_equal(self.labels, other.labels)
            and (None in told or told[0] == told[1])
        )


def evaluate(
    predictor: Predictor,
    images: ImageSet,
    batch: int = 64,
    *,
    limit: int | None = None,
    skip_bad: bool = False,
    split: str = "val",
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> AccuracyResult:
    """Accuracy of `predictor` on `images`, in batches of `batch` or as near to it as the file takes
    (`Predictor.fit`). The classes of the result are in the order of `images`, so that results of artifacts
    whose classes are in other orders can be compared.

    progress is called with the number of images done so far. Raises ArtifactError when
    preprocessing is unknown, the classes are others than the data's, or logits are not finite; DataError
    naming an unreadable image, unless skip_bad, and when no image is readable.
    """
    preprocess = require_preprocess(predictor)
    given = images
    images = in_order_of(predictor.class_names, str(predictor.path), given, split)
    if skip_bad:
        require_readable_classes(images, split)
    at_once, chosen = predictor.fit(batch), spread(len(images), limit)
    logits, kept, skipped = [], [], []
    with ThreadPoolExecutor(workers or env.usable_cores()) as pool:
        for some in np.array_split(chosen, range(at_once, len(chosen), at_once)):
            pixels = list(pool.map(lambda index: _pixels(preprocess, images, int(index), skip_bad), some))
            good = [p for p in pixels if p is not None]
            skipped += [images.item_name(int(i)) for i, p in zip(some, pixels, strict=True) if p is None]
            kept += [int(i) for i, p in zip(some, pixels, strict=True) if p is not None]
            if good:
                logits.append(
                    predictor.logits_in_batches(preprocess.normalize(np.stack(good)), at_once, finite=False)
                )
                require_usable(logits[-1], predictor, images, kept[-len(good) :])
            if progress:
                progress(len(kept) + len(skipped))
    if not logits:
        raise DataError(f"{images.name}: none of {len(chosen)} images can be read, such as {skipped[0]}")
    order = set_order(images.class_names, given.class_names)
    scores, labels = np.concatenate(logits)[:, order], np.argsort(order)[images.labels[kept]]
    if predictor.gives == "probabilities":  # whose logarithm is as good as logits
        scores = np.log(np.maximum(scores, np.finfo(np.float32).tiny))
    place = ranks(scores, labels)
    return AccuracyResult(
        100 * float(np.mean(place < 1)),
        100 * float(np.mean(place < 5)),
        cross_entropy(scores, labels),
        scores,
        labels,
        np.array(kept),
        skipped,
        class_accuracies(labels, place < 1, [images.class_names[index] for index in order]),
        images_sha256(given, split, np.array(kept)),
    )


def images_sha256(images: ImageSet, split: str, indices: np.ndarray) -> str:
    """Tells sets apart: SHA-256 over the split, names, labels and classes of the whole set, and the content
    of `LOOKED_AT` of these images. Not over the name of the set, which changes where it is moved.
    """
    digest = hashlib.sha256(f"{split}:{images.fingerprint()}".encode())
    for index in indices[spread(len(indices), LOOKED_AT)]:
        digest.update(images.item_sha256(int(index)).encode())
    return digest.hexdigest()


def set_order(known: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """The indices of the classes `known` to a network, in the order that a set names them in."""
    place = {same_name(name): index for index, name in enumerate(names)}
    return np.argsort([place.get(same_name(name), len(names)) for name in known], kind="stable")


def spread(n: int, limit: int | None) -> np.ndarray:
    """`limit` positions out of n, evenly spaced: folders are sorted by class, so the first ones would be one
    class.
    """
    return np.arange(n) if limit is None or limit >= n else np.arange(limit) * n // limit


def ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N,) place of the label among the classes, 0 is best; of equal scores the lower class comes first, as
    in `classify`.
    """
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    lower_class = np.arange(logits.shape[1]) < labels[:, None]
    places: np.ndarray = np.sum((logits > own) | ((logits == own) & lower_class), axis=1)
    return places


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean of log(sum(exp(logits))) - logit of the label, nats, in float64."""
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), labels]))


@dataclass(frozen=True)
class Comparison:
    """Two results on the same images. The names are the keys of the JSON result."""

    reference_top1_percent: float
    top1_difference_points: float
    """Of this artifact minus the reference."""
    difference_low_points: float
    """Newcombe's 95 % interval for pairs."""
    difference_high_points: float
    only_this_right: int
    """Images."""
    only_reference_right: int
    agreement_percent: float
    """Images with the same best class."""
    agreement_low_percent: float
    """Wilson's 95 % interval."""
    agreement_high_percent: float
    max_abs_logit_difference: float
    """Largest difference of any logit."""


def compare(result: AccuracyResult, reference: AccuracyResult) -> Comparison:
    """How far two results agree. Raises ValueError when they are of different images."""
    gained, lost, below, above = difference(result, reference)
    same = result.logits.argmax(axis=1) == reference.logits.argmax(axis=1)
    low, high = wilson(int(same.sum()), result.n)
    return Comparison(
        reference_top1_percent=reference.top1,
        top1_difference_points=result.top1 - reference.top1,
        difference_low_points=below,
        difference_high_points=above,
        only_this_right=gained,
        only_reference_right=lost,
        agreement_percent=100 * float(np.mean(same)),
        agreement_low_percent=100 * low,
        agreement_high_percent=100 * high,
        max_abs_logit_difference=float(
            np.max(np.abs(result.logits.astype(np.float64) - reference.logits)),
        ),
    )


def difference(this: AccuracyResult, reference: AccuracyResult) -> tuple[int, int, float, float]:
    """(images that only this one gets right, that only the reference does, low, high); the last two are
    Newcombe's 95 % interval of the difference of top-1, points. Raises ValueError when they are of different
    images.
    """
    if not np.array_equal(this.indices, reference.indices):
        raise ValueError("the two results are of different images")
    right, other = this.right, reference.right
    gained, lost = int((right & ~other).sum()), int((other & ~right).sum())
    low, high = newcombe(int((right & other).sum()), gained, lost, this.n)
    return gained, lost, 100 * low, 100 * high


@dataclass(frozen=True, eq=False)
class AccuracyReport:
    """The accuracy of one artifact, with the conditions and what it was compared with."""

    subject: Description
    data: str
    split: str
    result: AccuracyResult
    reference: Description | None
    comparison: Comparison | None
    """None without a reference."""
    fingerprint: dict[str, Any]
    """Of the machine, as runtime.env gives it."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; None where there is no reference."""
        compared = asdict(self.comparison) if self.comparison else {}
        low, high = self.result.top1_interval
        return {
            **self.subject.to_dict(),
            "data": self.data,
            "split": self.split,
            "n": self.result.n,
            "skipped": len(self.result.skipped),
            "skipped_images": self.result.skipped[:NAMED],
            "top1_percent": self.result.top1,
            "top1_low_percent": low,
            "top1_high_percent": high,
            "top5_percent": self.result.top5,
            "balanced_percent": self.result.balanced,
            "loss_nats": self.result.loss,
            "reference": self.reference.to_dict() if self.reference else None,
            **{each.name: compared.get(each.name) for each in fields(Comparison)},
            "classes": [each.to_dict() for each in self.result.classes],
            "fingerprint": self.fingerprint,
        }


def _pixels(preprocess: Preprocess, images: ImageSet, index: int, skip_bad: bool) -> np.ndarray | None:
    try:
        return preprocess.pixels(images.image(index))
    except DataError:
        if skip_bad:
            return None
        raise


def require_usable(scores: np.ndarray, predictor: Predictor, images: ImageSet, indices: list[int]) -> None:
    """Raise ArtifactError for another number of classes and for nan, which would rank first
    without a word.
    """
    if scores.ndim != 2 or scores.shape[1] != len(images.class_names):
        raise ArtifactError(
            f"{predictor.path}: gives {'x'.join(map(str, scores.shape[1:]))} scores per image, {images.name} "
            f"has {len(images.class_names)} classes. Use the data set the model was trained on"
        )
    finite = np.isfinite(scores).all(axis=1)
    if not finite.all():
        name = images.item_name(indices[int(np.argmin(finite))])
        raise ArtifactError(f"{predictor.path}: logits of {name} are not finite. Export it again")
