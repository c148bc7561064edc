"""Some validation images with what the student says of them, small enough to be inside of the page.

In:  the images and their `Predictions`.
Out: `Picture`s: the worst, and some by chance.
Elsewhere: how they are laid out (the template beside this file).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from runtime.cli.terminal import printable
from runtime.errors import DataError
from runtime.images import ImageSet
from runtime.preprocess import Preprocess

from .predictions import Predictions

SHOWN = 24
SIDE = 128
"""Pixels of the longer side."""


@dataclass(frozen=True)
class Picture:
    """One image as it is shown."""

    source: str
    """data: URL; empty where the image cannot be read."""
    name: str
    label: str
    predicted: str
    confidence: float
    """Of the predicted class, percent."""
    loss: float
    """Nats."""
    is_small: bool
    """Few pixels, which are to be shown as squares."""

    @property
    def is_right(self) -> bool:
        return self.label == self.predicted


def worst(found: Predictions) -> np.ndarray:
    """Places of the images with the highest loss, the highest first."""
    return np.argsort(-found.loss, kind="stable")[:SHOWN]


def by_chance(found: Predictions) -> np.ndarray:
    """Places of images drawn without looking at them; the same each time."""
    return np.random.default_rng(0).permutation(len(found.label))[:SHOWN]


def pictures(
    images: ImageSet,
    found: Predictions,
    places: Sequence[int] | np.ndarray,
    names: Sequence[str],
    preprocess: Preprocess,
) -> list[Picture]:
    """names: of the classes; preprocess: the student's, which says whether images are turned upright."""
    return [_picture(images, found, int(place), names, preprocess) for place in places]


def _picture(
    images: ImageSet, found: Predictions, place: int, names: Sequence[str], preprocess: Preprocess
) -> Picture:
    index = int(found.index[place])
    try:
        image = preprocess.rgb(images.image(index))
    except DataError:
        image = None
    return Picture(
        source=thumbnail(image) if image is not None else "",
        name=printable(PurePath(images.item_name(index)).name),
        label=names[found.label[place]],
        predicted=names[found.predicted[place]],
        confidence=100 * float(found.confidence[place]),
        loss=float(found.loss[place]),
        is_small=image is not None and max(image.size) < SIDE,
    )


def thumbnail(image: Any) -> str:
    """A PIL image as a data: URL, at most SIDE pixels wide and high: PNG when it is smaller, else JPEG."""
    kind = "PNG" if max(image.size) < SIDE else "JPEG"
    image = image.copy()
    image.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    image.save(content, kind, **({"quality": 80} if kind == "JPEG" else {}))
    return _data_url(content.getvalue(), kind.lower())


def png(content: bytes) -> str:
    """A PNG file as a data: URL."""
    return _data_url(content, "png")


def _data_url(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
