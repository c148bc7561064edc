"""What a data set holds in a few numbers, for a person to look at before a training.

In:  class names, labels (N,), what was left out of the set.
Out: a `Summary` of one set; an `Overlap` of two.
Elsewhere: finding the images (runtime.images.scan), the sets (runtime.images.sets), the command that
reads every image (runtime.commands.check).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


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


def shown(names: Sequence[str], most: int = 5) -> str:
    """Names in one line, the first few of many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
