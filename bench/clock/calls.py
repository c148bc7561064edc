"""The calls that are timed: one argument-free function per boundary, and what it is fed.

In:  a `Predictor`; images to feed it (real ones, or synthetic ones made here).
Out: `Calls`.
Elsewhere: the clock (bench.clock.latency), opening the artifact (bench.subject). Only the public methods of
`Predictor` are called, as an application does.

The boundaries:
    compute      Predictor.logits on a preprocessed float batch that is already in host memory
    end_to_end   Predictor.classify on encoded images: read, decode, preprocess, compute, softmax and top-5
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from runtime import Predictor, UsageError
from runtime.files import short
from runtime.images import FileSet, ImageSet
from runtime.images.decode import open_rgb
from runtime.preprocess import MOST_INPUT

BOUNDARIES = ("compute", "end_to_end")
ALIKE = ("compute",)
"""Boundaries whose calls are all the same, so that a spread of their durations is the machine's; end to end,
images differ."""

POOL = 64
"""Different images that the end-to-end calls go round, so that one small file does not stay in the nearest
cache."""

SYNTHETIC_SCALE = 1.15
"""Side of a synthetic JPEG divided by the network's input: about what remains of a photograph before the
0.875 crop."""


@dataclass(frozen=True)
class Calls:
    """What can be timed on one artifact."""

    functions: dict[str, Callable[[], Any]] = field(default_factory=dict)
    """Boundary -> one call on one batch."""
    inputs: dict[str, str] = field(default_factory=dict)
    """Boundary -> what the call is fed, in words."""
    not_measured: dict[str, str] = field(default_factory=dict)
    """Boundary -> why it cannot be timed."""
    batch: np.ndarray | None = None
    """(N, C, H, W) float32, what the calls of compute are fed."""


def parse_size(text: str) -> tuple[int, int]:
    """'224' -> (224, 224); '160x224' -> (160, 224), height first. Raises UsageError for anything else."""
    found = re.fullmatch(r"([1-9][0-9]{0,4})(?:x([1-9][0-9]{0,4}))?", text)
    height, width = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= height * width <= MOST_INPUT:
        raise UsageError(
            f"img-size {short(text)!r}: expected pixels, such as 224, or height x width, such as 160x224, at"
            f" most {MOST_INPUT:,} in all"
        )
    return height, width


def set_size(predictor: Predictor, size: tuple[int, int] | None) -> tuple[int, int]:
    """The (height, width) that the network is fed; where the file leaves it free, the preprocessing follows
    `size`.

    Raises UsageError when `size` is not what the file takes, or when nothing says what it could be.
    """
    fixed = tuple(predictor.input_shape[2:])
    if size is None:
        known = predictor.preprocess.input_size[1:] if predictor.preprocess else (None, None)
        height, width = (a or b for a, b in zip(fixed, known, strict=True))
        if height is None or width is None:
            raise UsageError(
                f"{predictor.path}: takes images of any size and does not say which. Add --img-size 224"
            )
        return height, width
    if any(has is not None and has != asked for has, asked in zip(fixed, size, strict=True)):
        raise UsageError(
            f"{predictor.path}: takes {fixed[0] or 'any'}x{fixed[1] or 'any'} images, not"
            f" {size[0]}x{size[1]}. Leave --img-size out"
        )
    if predictor.preprocess:
        predictor.preprocess = replace(predictor.preprocess, input_size=(3, *size))
    return size


def make_calls(
    predictor: Predictor,
    batch: int,
    *,
    size: tuple[int, int] | None = None,
    images: ImageSet | None = None,
    seed: int = 0,
    boundaries: Sequence[str] = BOUNDARIES,
) -> Calls:
    """The calls on `batch` images, one for each of the `boundaries`; only their images are made.

    size: (height, width) for a network of free size. images: real ones; None makes synthetic ones from
    `seed`. The batch is made for any boundary. Raises UsageError when the file is fixed to another batch size
    or image size, DataError for an unreadable image.
    """
    fixed = predictor.input_shape[0]
    if fixed is not None and fixed != batch:
        raise UsageError(f"{predictor.path}: its batch size is fixed at {fixed}. Add --batch {fixed}")
    height, width = set_size(predictor, size)
    calls = Calls()
    if predictor.preprocess is None:
        calls.not_measured["end_to_end"] = (
            "the file does not say how images are preprocessed, so there is no way from an image to its input"
        )
    elif "end_to_end" in boundaries:
        groups, words = _image_groups(images, batch, height, width, seed, POOL)
        calls.functions["end_to_end"] = _round_robin(predictor.classify, groups)
        calls.inputs["end_to_end"] = words
    if images is not None and predictor.preprocess is not None:
        groups, _ = _image_groups(images, batch, height, width, seed, batch)
        x, words = predictor.preprocess.batch(groups[0]), f"{images.name}, preprocessed"
    else:
        x = np.random.default_rng(seed).standard_normal(
            (batch, predictor.input_shape[1] or 3, height, width), np.float32
        )
        words = f"synthetic, normal distribution, seed {seed}"
    if "compute" in boundaries:
        calls.functions["compute"] = lambda: predictor.logits(x)
        calls.inputs["compute"] = f"{words}, {'x'.join(map(str, x.shape))} float32"
    return replace(calls, batch=x)


def _image_groups(
    images: ImageSet | None, batch: int, height: int, width: int, seed: int, most: int
) -> tuple[list[list[Any]], str]:
    """Batches of about `most` encoded images, one at least, and what they are in words."""
    wanted = max(most // batch, 1) * batch
    rng = np.random.default_rng(seed)
    if images is None:
        sides = round(height * SYNTHETIC_SCALE), round(width * SYNTHETIC_SCALE)
        encoded: list[Any] = [_synthetic_jpeg(*sides, rng) for _ in range(min(wanted, POOL))]
        words = f"synthetic JPEG, {sides[0]}x{sides[1]}, seed {seed}, in memory"
    else:
        chosen = rng.permutation(len(images))[:wanted]
        encoded = [_encoded(images, int(i)) for i in chosen]
        words = f"{images.name}, {'files' if isinstance(images, FileSet) else 'encoded as PNG in memory'}"
    endless = itertools.cycle(encoded)
    groups = [list(itertools.islice(endless, batch)) for _ in range(wanted // batch)]
    return groups, f"{words}, {len(encoded)} different"


def _encoded(images: ImageSet, index: int) -> Any:
    """A path where there is a file, else the image as PNG bytes."""
    return images.item_name(index) if isinstance(images, FileSet) else _encode(images.image(index), "PNG")


def _synthetic_jpeg(height: int, width: int, rng: np.random.Generator) -> bytes:
    """A JPEG that compresses like a photograph: coarse patches of color with a little noise on them."""
    coarse = (
        rng.integers(0, 256, (-(-height // 16), -(-width // 16), 3))
        .repeat(16, 0)
        .repeat(16, 1)[:height, :width]
    )
    noise = rng.normal(0, 8, (height, width, 3))
    return _encode(open_rgb(np.clip(coarse + noise, 0, 255).astype(np.uint8)), "JPEG")


def _encode(image: Any, kind: str) -> bytes:
    buffer = io.BytesIO()
    # quality is JPEG's; PNG ignores it
    image.save(buffer, kind, quality=90, exif=image.info.get("exif", b""))
    return buffer.getvalue()


def _round_robin(function: Callable[[Any], Any], arguments: list[Any]) -> Callable[[], Any]:
    following = itertools.cycle(arguments)
    return lambda: function(next(following))
