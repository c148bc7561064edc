"""Classes of unequal size made equal: in what an epoch draws, or in what an image counts.

In:  the labels (N,) and class names of the training images; what --sampler and --class-weights say.
Out: the order of a balanced epoch; one weight for each class.
Elsewhere: batches (distill.data.loaders), the loss that is weighted (distill.training.trainer), what is said
of them before a training (distill.run.header).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from runtime.cli.nearest import nearest
from runtime.errors import UsageError
from runtime.images import ImageSet
from runtime.images.summary import shown
from runtime.recorded import is_plain

from ..recipe.reader import is_weight

MOST_BYTES = 2**22
"""Bytes of a file of weights that are read."""
FORMS = "none, balanced, a number for each class, CLASS=WEIGHT, or a file of lines `class,weight`"


def require_labels(images: ImageSet, flag: str) -> None:
    """Raise UsageError for a set that does not know the labels of its images before they are read."""
    if not len(images.labels):
        raise UsageError(
            f"{flag}: {images.name} is a stream, which does not know its labels beforehand. Give an image"
            " folder, a list or npz:FILE, or leave the flag out"
        )


class BalancedDraw:
    """As many numbers as there are images, of each class equally many (one more of a few, other ones each
    time).

    A class goes through all its images before one comes again, so that in an epoch an image of a rare class
    comes several times, and one of a common class once or not at all. `number % size` is the image; a number
    comes once only, so that an image which comes again can be augmented in another way.
    """

    def __init__(self, labels: np.ndarray) -> None:
        ends = np.cumsum(np.bincount(labels))[:-1]
        groups = np.split(np.argsort(labels, kind="stable"), ends)
        self.size = len(labels)
        self.groups = [torch.from_numpy(group) for group in groups if len(group)]

    def __call__(self, generator: torch.Generator) -> list[int]:
        """The numbers of an epoch, in its order."""
        share, rest = divmod(self.size, len(self.groups))
        one_more = set(torch.randperm(len(self.groups), generator=generator)[:rest].tolist())
        drawn = [
            self._of_class(group, share + (place in one_more), generator)
            for place, group in enumerate(self.groups)
        ]
        numbers = torch.cat(drawn)[torch.randperm(self.size, generator=generator)]
        return [int(number) for number in numbers]

    def _of_class(self, group: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
        turns = math.ceil(count / len(group))
        shuffled = [group[torch.randperm(len(group), generator=generator)] for _ in range(turns)]
        return torch.cat([images + turn * self.size for turn, images in enumerate(shuffled)])[:count]


def class_weights(words: Sequence[str], images: ImageSet) -> np.ndarray | None:
    """(K,) float64: what an image of each class counts in the labels' loss, with mean 1 over the training
    images; None where all count alike. `balanced` gives a class without images 0.

    words: of --class-weights, with a file's content in place of its name (`settled`). Raises UsageError for a
    stream, and for words that do not fit the classes.
    """
    if not words or tuple(words) == ("none",):
        return None
    require_labels(images, "--class-weights")
    counts = np.bincount(images.labels, minlength=len(images.class_names))
    if tuple(words) == ("balanced",):
        weights = np.where(counts, counts.sum() / np.maximum(counts, 1), 0.0)
    else:
        weights = np.array(_given(words, images.class_names))
    weights = weights / (weights.max() or 1)  # so that their sum is finite, whatever they are
    mean = float((weights * counts).sum() / counts.sum())
    if not mean:
        raise UsageError(
            "--class-weights: 0 for every class that has images. Give one of them a weight above 0"
        )
    found: np.ndarray = weights / mean
    return found


def settled(words: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """The words of --class-weights; the name of a file is replaced by what it holds, which a resumed run then
    does not need. names: of the data's classes. Raises UsageError where there is no such file, or no weights
    in it, or such that can be read in two ways.
    """
    if len(words) != 1 or words[0] in ("none", "balanced") or is_weight(words[0]):
        return tuple(words)
    path = Path(words[0])
    if not os.path.isfile(path) or not is_plain(path):
        raise UsageError(f"--class-weights {words[0]}: no such file. Expected {FORMS}")
    if path.stat().st_size > MOST_BYTES:
        raise UsageError(f"--class-weights {path}: too large for a list of weights. Expected {FORMS}")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UsageError(f"--class-weights {path}: not a text file. Expected lines `class,weight`") from error
    found = [_word(line) for line in lines]
    has_header = len(found) > 1 and _is_header(found[0], names)
    if not (has_header and "=" in found[0]):
        _require_no_decimal_commas(lines[has_header:], path, names)
    found = found[has_header:]
    wrong = next((word for word in found if not is_weight(word)), None)
    if wrong is not None or not found:
        what = f"a line is {wrong[:60]!r}" if wrong is not None else "it is empty"
        raise UsageError(
            f"--class-weights {path}: {what}. Expected lines `class,weight`, or one weight a line"
        )
    return tuple(found)


def _word(line: str) -> str:
    """`cat,2` of a file as `cat=2`; a lone number stays."""
    for mark in (",", ";", "\t"):
        name, found, weight = line.rpartition(mark)
        if found:
            return f"{name.strip().strip(chr(34))}={weight.strip()}"
    return line


def _is_header(word: str, names: Sequence[str]) -> bool:
    """Whether a first line is one, and not a weight with a typing error."""
    name, _, weight = word.rpartition("=")
    return not is_weight(word) and name not in names and not any(map(str.isdigit, weight))


def _require_no_decimal_commas(lines: Sequence[str], path: Path, names: Sequence[str]) -> None:
    """Raise UsageError where every line is like `0,5`, which may be class 0 with weight 5, or 0.5."""
    if not lines or not all(re.fullmatch(r"[0-9]+,[0-9]+", line) for line in lines):
        return
    unknown = next((line for line in lines if line.partition(",")[0] not in names), None)
    if unknown is not None:
        raise UsageError(
            f"--class-weights {path}: a line is {unknown[:60]!r}, and the data has no such class. Expected"
            f" names of its classes ({shown(names)}), or numbers with a point, as {_with_point(unknown)}"
        )
    raise UsageError(
        f"--class-weights {path}: a line is {lines[0][:60]!r}, which may be a class with its weight, or"
        f" {_with_point(lines[0])}. Begin with a line `class,weight`, or write numbers with a point"
    )


def _with_point(line: str) -> str:
    return line[:60].replace(",", ".")


def _given(words: Sequence[str], names: Sequence[str]) -> list[float]:
    """A weight for each class from numbers in their order, or from CLASS=WEIGHT, where others have 1."""
    if not any("=" in word for word in words):
        if len(words) != len(names):
            raise UsageError(
                f"--class-weights: {len(words)} of {len(names)} numbers for the classes ({shown(names)})."
                " Give one for each class, in this order, or CLASS=WEIGHT"
            )
        return [_number(word, word) for word in words]
    weights = dict.fromkeys(names, 1.0)
    seen: set[str] = set()
    for word in words:
        name, mark, number = word.rpartition("=")
        if not mark:
            raise UsageError(
                f"--class-weights {word!r} among CLASS=WEIGHT: expected the name of its class, too"
            )
        if name not in weights:
            raise UsageError(
                f"--class-weights {word!r}: no such class{nearest(name, set(names))} Classes: {shown(names)}"
            )
        if name in seen:
            raise UsageError(f"--class-weights: class {name!r} has two weights. Give one")
        seen.add(name)
        weights[name] = _number(number, word)
    return list(weights.values())


def _number(text: str, word: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise UsageError(f"--class-weights {word!r}: expected a finite number, 0 or more, or {FORMS}")
    return number
