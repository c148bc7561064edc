"""The labeled images that an export is judged on, and what each network says about them.

In:  labeled images, the torch student, artifacts as bytes.
Out: logits (N, K) of any artifact on the same images; how an artifact compares with the student.
Elsewhere: which images (export.checks.samples), the statistics (export.checks.verify), what follows from them
(export.int8.budget).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from runtime.images import ImageSet
from runtime.preprocess import Preprocess
from runtime.records import Judged

from . import samples, verify
from .rounding import torch_logits


class Evaluation:
    """Accuracy of artifacts against one fp32 student, on the same images in the same order."""

    def __init__(
        self,
        images: ImageSet,
        size: int,
        preprocess: Preprocess,
        student: torch.nn.Module,
        fp32: bytes,
        folder: Path,
        seed: int,
    ) -> None:
        self.images, self.preprocess, self.student, self.fp32, self.folder = (
            images,
            preprocess,
            student,
            fp32,
            folder,
        )
        self.chosen = samples.choose(images.labels, size, seed)
        self.labels = images.labels[self.chosen]

    def batches(self, about: str = "") -> Iterator[np.ndarray]:
        """The images, preprocessed, (n, C, H, W) float32."""
        return (batch for batch, _ in samples.batches(self.images, self.chosen, self.preprocess, about=about))

    @cached_property
    def student_logits(self) -> np.ndarray:
        """(N, K) of the torch network."""
        return np.concatenate(
            [torch_logits(self.student, batch) for batch in self.batches("accuracy of the student")]
        )

    @cached_property
    def fp32_logits(self) -> np.ndarray:
        """(N, K) of the fp32 artifact."""
        return self.logits(self.fp32, "accuracy of fp32")

    def logits(
        self, content: bytes, about: str, batches: Callable[[str], Iterator[np.ndarray]] | None = None
    ) -> np.ndarray:
        """(N, K) of an artifact, on these images or on other `batches(about)`."""
        return verify.logits_of(content, self.folder / "candidate.onnx", (batches or self.batches)(about))

    def compare(self, logits: np.ndarray) -> verify.Accuracy:
        """An artifact's logits (N, K) on these images against the torch student's."""
        return verify.accuracy(self.student_logits, logits, self.labels)

    def judged(self, logits: np.ndarray) -> Judged:
        """What is recorded about the accuracy of the artifact that is written."""
        return verify.judged(
            self.student_logits, self.fp32_logits, logits, self.labels, self.images.class_names
        )

    def some(self) -> np.ndarray:
        """The first few images, for checks of one batch."""
        count = max(verify.BATCH_SIZES)
        return next(iter(samples.batches(self.images, self.chosen[:count], self.preprocess, count)))[0]
