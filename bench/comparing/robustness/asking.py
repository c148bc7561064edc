"""Show every view of every image to every artifact, and keep the best class.

In:  open artifacts, labeled images, what is asked for.
Out: an `Answers` for each artifact: the class of each image in each view, and the labels.
Elsewhere: the views (bench.comparing.robustness.views), figures (bench.comparing.robustness.figures).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from runtime import DataError, Predictor, Preprocess, env
from runtime.images import ImageSet
from runtime.images.classes import in_order_of, require_readable_classes

from ...accuracy import require_usable, set_order
from ...subject import require_preprocess
from .views import Asked, View, views


@dataclass(frozen=True, eq=False)
class Answers:
    """What one artifact says."""

    views: list[View]
    """V of them, the image itself first."""
    classes: np.ndarray
    """(V, N) the best class of each image; of equal scores the one that the set names first."""
    labels: np.ndarray
    """(N,)."""

    @property
    def right(self) -> np.ndarray:
        """(V, N) bool."""
        correct: np.ndarray = self.classes == self.labels
        return correct

    def rows(self, part: str) -> list[int]:
        """The views of a part, in order."""
        return [row for row, view in enumerate(self.views) if view.part == part]


@dataclass(frozen=True, eq=False)
class Answered:
    """What all artifacts say to the same images."""

    answers: list[Answers]
    skipped: list[str]
    """Names of images that could not be read."""


def chosen(n: int, count: int | None, seed: int) -> np.ndarray:
    """`count` of n images, drawn at random, in order; all when None."""
    if count is None or count >= n:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).permutation(n)[:count])


def ask(
    predictors: Sequence[Predictor],
    images: ImageSet,
    asked: Asked,
    *,
    count: int | None = None,
    batch: int = 64,
    skip_bad: bool = False,
    split: str = "val",
    workers: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Answered:
    """Answers of all artifacts to the same images. progress gets the number of images done so far.

    Artifacts with the same preprocessing see the same pictures. Raises what bench.accuracy.evaluate raises.
    """
    voices = [_Voice.of(each, images, asked, split) for each in predictors]
    if skip_bad:
        require_readable_classes(images, split)
    drawn, kept, skipped = chosen(len(images), count, asked.seed), [], []
    spaces = list(dict.fromkeys(voice.preprocess for voice in voices))
    with ThreadPoolExecutor(workers or env.usable_cores()) as pool:
        for start in range(0, len(drawn), batch):
            some = drawn[start : start + batch]
            seen = list(pool.map(lambda index: _pixels(spaces, images, int(index), skip_bad), some))
            good = [int(index) for index, pixels in zip(some, seen, strict=True) if pixels]
            skipped += [images.item_name(int(i)) for i, pixels in zip(some, seen, strict=True) if not pixels]
            kept += good
            for place, space in enumerate(spaces):
                pixels = [each[place] for each in seen if each]
                _show(pool, space, pixels, [v for v in voices if v.preprocess == space], images, good, batch)
            progress(len(kept) + len(skipped))
    if not kept:
        raise DataError(f"{images.name}: none of {len(drawn)} images can be read, such as {skipped[0]}")
    return Answered([voice.answers(kept) for voice in voices], skipped)


@dataclass(eq=False)
class _Voice:
    """One artifact, and what it said so far."""

    predictor: Predictor
    preprocess: Preprocess
    views: list[View]
    order: np.ndarray
    """Its classes in the order of the set."""
    labels: np.ndarray
    """Of all images, as places in that order."""
    said: list[list[np.ndarray]]
    """For each view the classes of each batch."""

    @classmethod
    def of(cls, predictor: Predictor, images: ImageSet, asked: Asked, split: str) -> _Voice:
        preprocess = require_preprocess(predictor)
        known = in_order_of(predictor.class_names, str(predictor.path), images, split)
        made = views(asked, preprocess)
        order = set_order(known.class_names, images.class_names)
        labels = np.argsort(order)[known.labels]
        return cls(predictor, preprocess, made, order, labels, [[] for _ in made])

    def answers(self, kept: list[int]) -> Answers:
        return Answers(self.views, np.stack([np.concatenate(each) for each in self.said]), self.labels[kept])


def _pixels(
    spaces: Sequence[Preprocess], images: ImageSet, index: int, skip_bad: bool
) -> list[np.ndarray] | None:
    """The image at each input size."""
    try:
        image = images.image(index)
        return [space.pixels(image) for space in spaces]
    except DataError:
        if skip_bad:
            return None
        raise


def _show(
    pool: ThreadPoolExecutor,
    space: Preprocess,
    pixels: Sequence[np.ndarray],
    voices: Sequence[_Voice],
    images: ImageSet,
    indices: list[int],
    batch: int,
) -> None:
    """All views of some images to the artifacts of one preprocessing."""
    if not pixels:
        return
    for number, view in enumerate(voices[0].views):
        shown = space.normalize(np.stack(list(pool.map(view.of, pixels))))
        for voice in voices:
            scores = voice.predictor.logits_in_batches(shown, batch)
            require_usable(scores, voice.predictor, images, indices)
            voice.said[number].append(scores[:, voice.order].argmax(axis=1))
