"""An image in any form a user has it -> a PIL image in mode RGB: the only decoder.

In:  a path, encoded bytes, a PIL image or a uint8 array (H, W, 3) or (H, W).
Out: a PIL image, mode RGB; DataError names one that cannot be read.
Elsewhere: resize, crop and scale (runtime.preprocess), lists of images (runtime.images.sets).
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import DataError, UsageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""What is decoded, whatever a file is called. Pillow knows some 40 formats more, and for one of them (EPS) it
starts another program."""

Image = Any  # a path (str, os.PathLike), encoded bytes, a PIL.Image.Image, or a uint8 array


def open_rgb(image: Image) -> Any:
    """A PIL image in mode RGB from any accepted form. Orientation tags are not applied, as timm and
    torchvision do not.

    Raises DataError naming the file when it is missing or broken, UsageError for an array of another dtype or
    shape.
    """
    from PIL import Image as pil  # here, so that `import runtime` does not pay for it

    if isinstance(image, pil.Image):
        return _loaded(image, getattr(image, "filename", "") or "a PIL image")
    if isinstance(image, np.ndarray):
        if (
            image.dtype != np.uint8
            or image.ndim not in (2, 3)
            or (image.ndim == 3 and image.shape[2] not in (1, 3, 4))
        ):
            raise UsageError(
                f"array of {image.dtype} {image.shape}: expected uint8 (height, width, 3). "
                "For preprocessed float batches use logits()"
            )
        return pil.fromarray(image.squeeze(2) if image.ndim == 3 and image.shape[2] == 1 else image).convert(
            "RGB"
        )
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _decode(pil, io.BytesIO(image), f"{len(image)} bytes")
    if isinstance(image, (str, os.PathLike)):
        return _decode(pil, image, os.fspath(image))
    raise UsageError(
        f"image of type {type(image).__name__}: expected a path, bytes, a PIL image or a uint8 array"
    )


def require_file(path: str | os.PathLike[str]) -> None:
    """Raise DataError when there is something at `path` that is not a regular file: a pipe or a device would
    be read without end.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise DataError(f"{os.fspath(path)}: not a regular file, so not a readable image. Leave it out")


@contextlib.contextmanager
def only_formats() -> Iterator[None]:
    """Where a library opens images itself: meanwhile Pillow knows FORMATS alone, in this whole process."""
    from PIL import Image as pil

    pil.init()
    known = list(pil.ID)
    pil.ID[:] = FORMATS
    try:
        yield
    finally:
        pil.ID[:] = known


def _decode(pil: Any, source: Any, name: str) -> Any:
    try:
        if isinstance(source, (str, os.PathLike)):
            require_file(source)
        with pil.open(source, formats=FORMATS) as opened:
            return _rgb(opened, name)
    except FileNotFoundError:
        raise DataError(f"{name}: no such image") from None
    except DataError:
        raise
    except pil.UnidentifiedImageError as error:
        raise DataError(f"{name}: not a readable image (expected {', '.join(FORMATS)})") from error
    except Exception as error:
        raise _unreadable(name, error) from error


def _loaded(image: Any, name: str) -> Any:
    try:
        image.load()  # Pillow decodes now what it has only opened
        return image if image.mode == "RGB" else _rgb(image, name)
    except DataError:
        raise
    except Exception as error:
        raise _unreadable(name, error) from error


def _rgb(image: Any, name: str) -> Any:
    """The image in mode RGB. Gray of 16 bits is scaled from 0..65535 to 0..255; Pillow itself would cut it
    off at 255. Raises DataError for other numbers, whose range nobody knows.
    """
    if not image.mode.startswith(("I", "F")):
        return image.convert("RGB")
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise DataError(
            f"{name}: gray of {'floating point' if image.mode == 'F' else '32 bits'}, whose black and"
            " white are"
            " not known. Convert it to 8 or 16 bits"
        )
    from PIL import Image as pil

    scaled = (values.astype(np.int64) * 255 + 32767) // 65535
    return pil.fromarray(scaled.astype(np.uint8)).convert("RGB")


def _unreadable(name: str, error: Exception) -> DataError:
    """For whatever a decoder raises at a damaged file: every format has errors of its own."""
    return DataError(f"{name}: not a readable image ({' '.join(str(error).split()) or type(error).__name__})")
