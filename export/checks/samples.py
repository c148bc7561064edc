"""Which real images an export looks at: a stratified, seeded choice, and proof that calibration and
evaluation are apart.

In:  an `ImageSet`, a size, a seed.
Out: indices; preprocessed batches, streamed; the list of [name, SHA-256] for the metadata.
Elsewhere: opening images (runtime.images), pixels to floats (runtime.preprocess).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from runtime.cli.terminal import progress_bar
from runtime.errors import UsageError
from runtime.images import ImageSet
from runtime.preprocess import Preprocess

PIXELS_PER_BATCH = 2**18
"""A batch holds about so many pixels: 5 images of 224 x 224, at most 32; bounds the memory for
activations."""
FEWEST_SELECTED = 128
"""Images below which choosing between settings by their accuracy is a lottery."""


class Subset(ImageSet):
    """Some images of another set, in its order."""

    def __init__(self, images: ImageSet, indices: np.ndarray) -> None:
        super().__init__(images.name, images.class_names, images.labels[indices])
        self.images, self.indices = images, indices

    def image(self, index: int) -> Any:
        return self.images.image(int(self.indices[index]))

    def item_name(self, index: int) -> str:
        return self.images.item_name(int(self.indices[index]))

    def item_bytes(self, index: int) -> bytes:
        return self.images.item_bytes(int(self.indices[index]))


def choose(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Indices of `size` images (all, if there are fewer), as many of each class as possible, by chance but
    reproducible.

    labels (N,) int. A class with too few images gives what it has, the others fill up.
    """
    return np.sort(_order(labels, seed)[:size])


def split(labels: np.ndarray, size: int, selection: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two disjoint choices of indices: `size` images to use as `choose` gives them, and up to `selection`
    others to judge by.

    Where fewer than FEWEST_SELECTED would be left over, the last quarter of the stratified order is held
    back from use.
    """
    order = _order(labels, seed)
    if len(order) - size < min(selection, FEWEST_SELECTED):
        size = min(size, len(order) - min(selection, len(order) // 4))
    return np.sort(order[:size]), np.sort(order[size : size + selection])


def _order(labels: np.ndarray, seed: int) -> np.ndarray:
    """All indices by chance, the first of every class first, then the second of every class, and so on."""
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    turn = np.empty(len(labels), dtype=np.int64)  # how many of its class come before it
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        turn[members] = np.arange(len(members))
    return shuffled[np.argsort(turn[shuffled], kind="stable")]


def batches(
    images: ImageSet,
    indices: Sequence[int] | np.ndarray,
    preprocess: Preprocess,
    size: int | None = None,
    about: str = "",
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Preprocessed (n, C, H, W) float32 and labels (n,) of the chosen images, `size` at a time, one batch in
    memory.

    A progress bar titled `about` is drawn on a terminal. Raises DataError naming an image that cannot be
    read.
    """
    _, height, width = preprocess.input_size
    size = size or max(1, min(32, PIXELS_PER_BATCH // (height * width)))
    starts = range(0, len(indices), size)
    for start in progress(starts, about) if about else starts:
        chosen = [int(i) for i in indices[start : start + size]]
        yield preprocess.batch(images.image(i) for i in chosen), images.labels[chosen]


def progress(steps: Sequence[int], about: str) -> Iterator[int]:
    """`steps` with a progress bar on stderr when that is a terminal."""
    with progress_bar(about, len(steps)) as advance:
        for done, step in enumerate(steps, start=1):
            yield step
            advance(done)


def listing(images: ImageSet, indices: Sequence[int] | np.ndarray) -> list[list[str]]:
    """[name, SHA-256] of the chosen images; names start at the data set's own folder, not at the root of this
    disk.
    """
    folder = PurePath(images.name).name
    return [
        [folder + images.item_name(int(i)).removeprefix(images.name), images.item_sha256(int(i))]
        for i in indices
    ]


def content(images: ImageSet, indices: Sequence[int] | np.ndarray) -> str:
    """SHA-256 over the names, labels and bytes of the chosen images, in their order."""
    digest = hashlib.sha256()
    for index in map(int, indices):
        name = images.item_name(index).removeprefix(images.name)
        digest.update(f"{name}\0{images.labels[index]}\0{images.item_sha256(index)}\n".encode())
    return digest.hexdigest()


def judged_on(images: ImageSet, size: int, seed: int) -> dict[str, Any]:
    """What an artifact records of the images it was compared on: how many, by which draw, and the hash of
    their content.
    """
    chosen = choose(images.labels, size, seed)
    return {"images": len(chosen), "seed": seed, "sha256": content(images, chosen)}


def require_apart(calibration: ImageSet, indices: Sequence[int] | np.ndarray, evaluation: ImageSet) -> None:
    """Raise UsageError naming an image that is in both: accuracy on it would be flattered.

    All of evaluation is compared with the chosen calibration images, by content.
    """
    chosen = {calibration.item_sha256(int(i)): int(i) for i in indices}
    for index in progress(range(len(evaluation)), "comparing calibration and evaluation images"):
        same = chosen.get(evaluation.item_sha256(index))
        if same is not None:
            raise UsageError(
                f"{calibration.item_name(same)} is a calibration image and also in --data"
                f" ({evaluation.item_name(index)}). Calibrate on training images that are not evaluated:"
                " --calib DIR"
            )
