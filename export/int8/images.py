"""Which images an int8 export looks at: some that ranges are measured on, others that choose between
settings.

In:  labeled training images, or none for noise; the evaluation images, which must be apart; sizes and a
seed.
Out: `CalibrationImages`, which streams both as preprocessed batches and tells the metadata which they were.
Elsewhere: the stratified choice itself (export.checks.samples), what is measured (export.int8.calibrate),
what is chosen (export.int8.choose, export.int8.budget).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from runtime.images import ImageSet
from runtime.preprocess import Preprocess
from runtime.records import Quantization

from ..checks import samples
from ..notes import note
from ..options import Int8Options

SELECTION_SIZE = 512
"""Selection images: labeled training images, not calibrated on, that choose a method and rank the layers."""
RANDOM_BATCHES, RANDOM_BATCH = 8, 4
"""Images of noise for --calib random."""


def _no_images() -> np.ndarray:
    return np.zeros(0, np.int64)


@dataclass(frozen=True)
class CalibrationImages:
    """Calibration images, and selection images of the same kind that none of the ranges come from."""

    preprocess: Preprocess
    images: ImageSet | None = None
    """The training images; None: noise."""
    used: np.ndarray = field(default_factory=_no_images)
    """Indices of the calibration images."""
    selection: np.ndarray = field(default_factory=_no_images)
    """Indices of the selection images."""
    seed: int = 0

    @property
    def is_random(self) -> bool:
        return self.images is None

    @property
    def selection_labels(self) -> np.ndarray | None:
        """(N,) of the selection images, or None when there are none."""
        return self.images.labels[self.selection] if self.images is not None and len(self.selection) else None

    def batches(self, about: str = "") -> Iterator[np.ndarray]:
        """The calibration images, preprocessed, (n, C, H, W) float32."""
        if self.images is None:
            noise = np.random.default_rng(self.seed)
            for _ in range(RANDOM_BATCHES):
                yield noise.normal(size=(RANDOM_BATCH, *self.preprocess.input_size)).astype(np.float32)
        else:
            yield from self._of(self.images, self.used, about)

    def selection_batches(self, about: str = "") -> Iterator[np.ndarray]:
        """The selection images, preprocessed; nothing when calibration is by noise."""
        if self.images is not None:
            yield from self._of(self.images, self.selection, about)

    def _of(self, images: ImageSet, indices: np.ndarray, about: str) -> Iterator[np.ndarray]:
        return (batch for batch, _ in samples.batches(images, indices, self.preprocess, about=about))

    def to_record(self) -> Quantization:
        """Which images these were, by name and content: for the metadata."""
        if self.images is None:
            return Quantization(images=[], data="random", not_for_accuracy=True, seed=self.seed)
        return Quantization(
            images=samples.listing(self.images, self.used),
            data_sha256=self.images.fingerprint(),
            seed=self.seed,
            selection=len(self.selection),
        )


def choose(
    options: Int8Options, images: ImageSet | None, preprocess: Preprocess, evaluation: ImageSet, seed: int
) -> CalibrationImages:
    """Stratified calibration and selection images, none of them among the evaluation images.

    Raises UsageError naming the first image that is among them; DataError for one that cannot be read.
    """
    if images is None:
        return CalibrationImages(preprocess, seed=seed)
    used, selection = samples.split(images.labels, options.calib_size, SELECTION_SIZE, seed)
    if len(used) < options.calib_size:
        note(
            f"{images.name} has {len(images)} images: {len(used)} calibrate (--calib-size asks for"
            f" {options.calib_size}), {len(selection)} others are the selection images, which rank layers"
        )
    samples.require_apart(images, np.concatenate([used, selection]), evaluation)
    return CalibrationImages(preprocess, images, used, selection, seed)
