"""What a data set holds in a few numbers, for a person to look at before a training; and class by class, what
a network gets right of it.

In:  class names, labels (N,), what was left out of the set; which images a network is right about.
Out: a `Summary` of one set; an `Overlap` of two; a `ClassAccuracy` for each class.
Elsewhere: finding the images (runtime.images.scan), the sets (runtime.images.sets), the command that
reads every image (runtime.commands.check).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class LeftOut:
    """Files or folders that are not in the set, for one reason."""

    reason: str
    """For example `hidden or system files`, `.tif files`, `broken links`."""
    count: int
    example: str
    """Path of the first."""

    def line(self) -> str:
        """One line for a person."""
        return f"{self.count} {self.reason} left out, for example {self.example}"


@dataclass(frozen=True)
class Summary:
    """One set of labeled images."""

    name: str
    images: int
    class_names: tuple[str, ...]
    counts: tuple[int, ...]
    """Images of each class, in the order of class_names."""
    left_out: tuple[LeftOut, ...] = ()

    @property
    def smallest(self) -> tuple[str, int]:
        """(class, images) of the first class with the fewest images."""
        return min(zip(self.class_names, self.counts, strict=True), key=lambda pair: pair[1])

    @property
    def largest(self) -> tuple[str, int]:
        """(class, images) of the first class with the most images."""
        return max(zip(self.class_names, self.counts, strict=True), key=lambda pair: pair[1])

    @property
    def empty_classes(self) -> list[str]:
        """Classes without an image."""
        return [name for name, count in zip(self.class_names, self.counts, strict=True) if not count]

    @property
    def imbalance(self) -> float:
        """Images of the largest class for one of the smallest; infinite where a class has none."""
        least = self.smallest[1]
        return self.largest[1] / least if least else float("inf")

    def lines(self) -> list[str]:
        """A few lines for a person: size, classes, what was left out."""
        (small, few), (large, many) = self.smallest, self.largest
        size = f"{self.images} images of {len(self.class_names)} classes, {small} {few} to {large} {many}"
        return [size, *(each.line() for each in self.left_out)]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"imbalance": self.imbalance if self.smallest[1] else None}


@dataclass(frozen=True)
class Overlap:
    """Images of one set whose content is in the other one, too."""

    count: int
    """Images of the second set."""
    pairs: tuple[tuple[str, str], ...]
    """(name in the first set, name in the second) of the first few."""

    def line(self, first: str = "training", second: str = "validation") -> str:
        """One line for a person."""
        names = "; ".join(f"{a} = {b}" for a, b in self.pairs)
        return f"{self.count} {second} images are {first} images as well ({names})"


@dataclass(frozen=True)
class ClassAccuracy:
    """One class of an evaluation."""

    name: str
    images: int
    right: int

    @property
    def percent(self) -> float | None:
        """Share of its images that are right; None without images."""
        return 100 * self.right / self.images if self.images else None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"percent": self.percent}


def class_accuracies(labels: np.ndarray, right: np.ndarray, names: Sequence[str]) -> list[ClassAccuracy]:
    """labels (N,) integer, right (N,) bool -> accuracy of each class, in the order of the names."""
    images = np.bincount(labels, minlength=len(names)).tolist()
    hits = np.bincount(labels[right], minlength=len(names)).tolist()
    return [ClassAccuracy(*each) for each in zip(names, images, hits, strict=True)]


def balanced_percent(percents: Iterable[float | None]) -> float | None:
    """Balanced accuracy: the mean over the classes, of which those without images (None) are left out; None
    where all are.
    """
    known = [percent for percent in percents if percent is not None]
    return sum(known) / len(known) if known else None


def balanced_line(classes: Sequence[ClassAccuracy], most: int = 5) -> str:
    """Balanced accuracy in one line, with the classes that have the lowest accuracy."""
    known = [(each.percent, each) for each in classes if each.percent is not None]
    balanced = balanced_percent(each.percent for each in classes)
    if balanced is None:
        return "balanced accuracy not known"
    worst = sorted(known, key=lambda pair: pair[0])[:most]
    named = ", ".join(f"{each.name} {percent:.2f} % of {each.images}" for percent, each in worst)
    return f"balanced accuracy {balanced:.2f} % (mean of {len(known)} classes); worst: {named}"


def shown(names: Sequence[str], most: int = 5) -> str:
    """Names in one line, the first few of many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
