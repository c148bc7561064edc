"""An image in any form a user has it -> a PIL image in mode RGB: the only decoder.

In:  a path, encoded bytes, a PIL image or a uint8 array (H, W, 3) or (H, W).
Out: a PIL image, mode RGB, and how EXIF says it is to be turned; DataError names one that cannot be read.
Elsewhere: whether it is turned, resize, crop and scale (runtime.preprocess), lists of images
(runtime.images.sets).
"""

from __future__ import annotations

import contextlib
import contextvars
import io
import os
import stat
import struct
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import DataError, UsageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""What is decoded, whatever a file is called. Pillow knows some 40 formats more, and for one of them (EPS) it
starts another program."""

MOST_PIXELS = 2**26
"""Of an image as it is stored, and resized; Pillow alone takes images whose pixels need gigabytes."""
MOST_ROWS = 2**22
"""Of an image as it is stored: Pillow keeps some 20 bytes for each, however narrow."""
MOST_BYTES = 2**30
"""Of an image file: so many pixels need no more."""

ORIENTATION = 274
"""Tag of EXIF that says how the rows and columns that are stored are to be shown."""
EXIF_MARK = b"Exif\0\0"
"""What EXIF begins with in a JPEG file."""
TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""Orientation -> Pillow's name for what makes the image upright; 1 is upright."""

warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")
# TIFF is not decoded, so this is Pillow looking for dots per inch in damaged EXIF, which no image needs
warnings.filterwarnings("ignore", r"Image size \(", RuntimeWarning, r"PIL\.Image")
# said from half the size on at which Pillow refuses an image; here `require_size` does

Image = Any  # a path (str, os.PathLike), encoded bytes, a PIL.Image.Image, or a uint8 array


def open_rgb(image: Image) -> Any:
    """A PIL image in mode RGB from any accepted form, as it is stored: for an image that stands upright see
    `upright`. Its EXIF stays in `info`.

    Raises DataError naming the file when it is missing or broken, UsageError for an array of another dtype or
    shape.
    """
    from PIL import Image as pil  # here, so that `import runtime` does not pay for it

    if isinstance(image, pil.Image):
        name = str(getattr(image, "filename", "") or "a PIL image")
        require_size(image.size, name)
        return _loaded(image, name)
    if isinstance(image, np.ndarray):
        if (
            image.dtype != np.uint8
            or image.ndim not in (2, 3)
            or not image.size  # which older Pillows do not take
            or (image.ndim == 3 and image.shape[2] not in (1, 3, 4))
        ):
            raise UsageError(
                f"array of {image.dtype} {image.shape}: expected uint8 (height, width, 3). "
                "For preprocessed float batches use logits()"
            )
        require_size((image.shape[1], image.shape[0]), "array")
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


def orientation(image: Any) -> int:
    """EXIF orientation of a PIL image, 1 to 8; 1, which is upright, where there is none or it is damaged.

    Only EXIF counts, not XMP: what is read here a program in another language must read as well.
    """
    exif = _exif_of(image)
    return _orientation_of(exif) if exif else 1


def exif_of(orientation: int) -> bytes:
    """EXIF that says this orientation, 1 to 8, and nothing else."""
    return struct.pack("<2sHIHHHIIH2x", b"II", 42, 8, 1, ORIENTATION, 3, 1, orientation, 0)


def upright(image: Any) -> Any:
    """The PIL image turned and mirrored as its EXIF orientation says. The result carries no EXIF, so that
    nobody turns it once more.
    """
    number = orientation(image)
    if number == 1:
        return image
    from PIL import Image as pil

    turned = image.transpose(getattr(pil.Transpose, TURNS[number]))
    del turned.info["exif"]
    return turned


def stored_orientation(path: str | os.PathLike[str]) -> int:
    """EXIF orientation of an image file, from its header alone; 1 for a file that cannot be read, too."""
    from PIL import Image as pil

    try:
        require_file(path)
        with open(path, "rb") as file:
            with pil.open(file, formats=FORMATS) as opened:
                found, kind = _exif_of(opened), opened.format
            if kind == "PNG":
                found = _png_exif(file)  # Pillow finds one behind the pixels only when it decodes them
        return _orientation_of(found) if found else 1
    except Exception:  # damaged files, and what each decoder raises at them: named when the pixels are read
        return 1


def _exif_of(image: Any) -> bytes | None:
    """EXIF of a PIL image; Pillow puts EXIF_MARK before that of a PNG, also where one is there."""
    exif = image.info.get("exif")
    if not isinstance(exif, bytes):
        return None
    return exif.removeprefix(EXIF_MARK) if image.format == "PNG" else exif


def _png_exif(file: Any) -> bytes | None:
    """Content of the last whole eXIf chunk before IEND."""
    found: bytes | None = None
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IEND":
            break
        if kind == b"eXIf":
            content = file.read(length)
            found = content if len(content) == length else found
            length = 0
        file.seek(length + 4, os.SEEK_CUR)  # the checksum of 4 bytes as well
    return found


def _orientation_of(exif: bytes) -> int:
    """The value of ORIENTATION in the first directory of a TIFF header, if it is one whole number 1 to 8."""
    tiff = exif.removeprefix(EXIF_MARK)
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        forty_two, place = struct.unpack_from(f"{order}HI", tiff, 2)
        (entries,) = struct.unpack_from(f"{order}H", tiff, place)
        for start in range(place + 2, place + 2 + 12 * entries, 12):
            tag, kind, count = struct.unpack_from(f"{order}HHI", tiff, start)
            if tag == ORIENTATION:
                (value,) = struct.unpack_from(f"{order}{'I' if kind == 4 else 'H'}", tiff, start + 8)
                whole = forty_two == 42 and kind in (3, 4) and count == 1
                return int(value) if whole and value in TURNS else 1
    except struct.error:
        return 1
    return 1


def require_file(path: str | os.PathLike[str]) -> None:
    """Raise DataError when there is something at `path` that is not a regular file, as a pipe or a device
    would be read without end, or one that is too large for an image.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{os.fspath(path)}: not a regular file, so not a readable image. Leave it out")
    if found.st_size > MOST_BYTES:
        raise DataError(
            f"{os.fspath(path)}: {found.st_size:,} bytes; expected an image of at most {MOST_BYTES:,}. Make"
            " it smaller, or leave it out"
        )


def require_size(size: tuple[int, int], name: str) -> None:
    """Raise DataError for (width, height), known before a pixel is decoded, of more than MOST_PIXELS or
    MOST_ROWS.
    """
    if size[0] * size[1] > MOST_PIXELS or size[1] > MOST_ROWS:
        raise _too_large(f"{name}: {size[0]} x {size[1]} pixels")


def _too_large(found: str) -> DataError:
    return DataError(
        f"{found}; expected an image of at most {MOST_PIXELS:,} pixels in {MOST_ROWS:,} rows. Make it"
        " smaller, or leave it out"
    )


@contextlib.contextmanager
def only_formats() -> Iterator[None]:
    """Where a library opens images itself: meanwhile Pillow knows FORMATS alone, and refuses images of more
    than MOST_PIXELS, in this whole process.
    """
    from PIL import Image as pil

    pil.init()
    known, most = list(pil.ID), pil.MAX_IMAGE_PIXELS
    pil.ID[:] = FORMATS
    pil.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # it warns there, and refuses from twice as many on
    try:
        yield
    finally:
        pil.ID[:] = known
        pil.MAX_IMAGE_PIXELS = most


_side: contextvars.ContextVar[int] = contextvars.ContextVar("side", default=0)
"""What `reduced_to` asks for; 0: nothing."""


@contextlib.contextmanager
def reduced_to(side: int) -> Iterator[None]:
    """Meanwhile a JPEG image whose shorter side is at least twice `side` pixels is decoded at a half, a
    quarter or an eighth of its size, as long as its shorter side stays at least `side`. 0: as it is.

    For training alone: evaluation sees every pixel.
    """
    before = _side.set(side)
    try:
        yield
    finally:
        _side.reset(before)


def _reduce(image: Any) -> None:
    """Have an image that is not decoded yet decoded smaller, as `reduced_to` says."""
    side = _side.get()
    if not side or image.format != "JPEG":
        return
    width, height = image.size
    part = next((part for part in (8, 4, 2) if min(width, height) // part >= side), 1)
    if part > 1:
        image.draft(None, (width // part, height // part))


def _decode(pil: Any, source: Any, name: str) -> Any:
    try:
        if isinstance(source, (str, os.PathLike)):
            require_file(source)
            if not os.path.getsize(source):  # as files of /proc say, which may never end
                raise DataError(f"{name}: not a readable image (it is empty)")
        with pil.open(source, formats=FORMATS) as opened:
            require_size(opened.size, name)
            _reduce(opened)
            return _rgb(opened, name)
    except FileNotFoundError:
        raise DataError(f"{name}: no such image") from None
    except DataError:
        raise
    except pil.DecompressionBombError as error:  # Pillow's own limit, which is higher
        raise _too_large(f"{name}: more than {pil.MAX_IMAGE_PIXELS * 2:,} pixels") from error
    except pil.UnidentifiedImageError as error:
        raise DataError(f"{name}: not a readable image (expected {', '.join(FORMATS)})") from error
    except Exception as error:
        raise _unreadable(name, error) from error


def _loaded(image: Any, name: str) -> Any:
    try:
        _reduce(image)
        image.load()  # Pillow decodes now what it has only opened
        return image if image.mode == "RGB" else _rgb(image, name)
    except DataError:
        raise
    except Exception as error:
        raise _unreadable(name, error) from error


def _rgb(image: Any, name: str) -> Any:
    """The image in mode RGB; its EXIF as `_exif_of` has it, as the result does not say its format."""
    rgb = _converted(image, name)
    if (exif := _exif_of(image)) is not None:  # of a PNG after the conversion, which reads to the file's end
        rgb.info["exif"] = exif
    return rgb


def _converted(image: Any, name: str) -> Any:
    """The image in mode RGB. Gray of 16 bits is scaled from 0..65535 to 0..255; Pillow itself would cut it
    off at 255. Raises DataError for other numbers, whose range nobody knows.

    Mode I is 32 bits, but older Pillows also give it to a PNG file of 16.
    """
    if not image.mode.startswith(("I", "F")):
        # Pillow warns of a palette with transparency that it converts in one step
        keyed = image.mode == "P" and "transparency" in image.info
        return (image.convert("RGBA") if keyed else image).convert("RGB")
    if not image.mode.startswith("I;16") and (image.mode != "I" or image.format != "PNG"):
        raise DataError(
            f"{name}: gray of {'floating point' if image.mode == 'F' else '32 bits'}, whose black and"
            " white are not known. Convert it to 8 or 16 bits"
        )
    from PIL import Image as pil

    scaled = (np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535
    rgb = pil.fromarray(scaled.astype(np.uint8)).convert("RGB")
    rgb.info = dict(image.info)
    return rgb


def _unreadable(name: str, error: Exception) -> DataError:
    """For whatever a decoder raises at a damaged file: every format has errors of its own."""
    return DataError(f"{name}: not a readable image ({' '.join(str(error).split()) or type(error).__name__})")
