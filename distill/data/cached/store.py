"""Pixels of images in two files that several processes fill and read at once.

In:  a folder, the number of images, the bytes that it may take.
Out: the pixels of image i as they were put in, or nothing: where they are not there, belong to another state
     of the image's file, or were damaged.
Elsewhere: which images, and where the folder is (distill.data.cached.images).

`pixels` holds images one behind the other in the order in which they came. `index` holds one RECORD for each
image, written after its pixels, so that whatever stops a process leaves an image there or not there.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from runtime.errors import MissingError, UsageError
from runtime.images.decode import MOST_PIXELS
from runtime.images.sets import Stamp

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

RECORD = struct.Struct("<QIIIIQq")
"""1 + where the pixels begin (0: not there), height, width, EXIF orientation, CRC-32 of the pixels that
begins with the orientation; the stamp of the image's file."""
NO_STAMP: Stamp = (0, 0)


class Kept(NamedTuple):
    """An image in the store."""

    pixels: np.ndarray
    """(H, W, 3) uint8, read-only."""
    orientation: int
    """EXIF orientation, 1 to 8."""


class Store:
    """The pixels of `count` images, at most `limit` bytes of them."""

    def __init__(self, folder: Path, count: int, limit: int) -> None:
        """Raises MissingError on a system without file locks, UsageError where no file can be made."""
        if fcntl is None:
            raise MissingError("--cache ram and disk need file locks, which this system lacks. Leave it out")
        self.folder, self.limit, self.is_full = folder, limit, False
        self._handles: tuple[int, int, int] | None = None
        try:
            os.truncate(self._files()[1], count * RECORD.size)
        except OSError as error:
            raise UsageError(
                f"--cache-folder {folder}: cannot be used ({error.strerror}). Give one that can be written"
            ) from error

    def __getstate__(self) -> dict[str, object]:
        return vars(self) | {"_handles": None}

    def read(self, index: int, stamp: Stamp | None) -> Kept | None:
        """Image `index`, if it is there for this state of its file."""
        pixels, records = self._files()
        found = os.pread(records, RECORD.size, index * RECORD.size)
        if len(found) < RECORD.size:
            return None
        begin, height, width, orientation, checksum, *then = RECORD.unpack(found)
        if not begin or tuple(then) != (stamp or NO_STAMP) or height * width > MOST_PIXELS:
            return None
        content = os.pread(pixels, height * width * 3, begin - 1)
        if len(content) != height * width * 3 or zlib.crc32(content, orientation) != checksum:
            return None
        return Kept(np.frombuffer(content, np.uint8).reshape(height, width, 3), orientation)

    def write(self, index: int, pixels: np.ndarray, orientation: int, stamp: Stamp | None) -> None:
        """Put image `index` in, (H, W, 3) uint8, unless the store is full."""
        content = pixels.tobytes()
        begin = self._room(len(content))
        if begin is None:
            return
        checksum = zlib.crc32(content, orientation)
        record = (begin + 1, *pixels.shape[:2], orientation, checksum, *(stamp or NO_STAMP))
        try:
            _write(self._files()[0], content, begin)
            _write(self._files()[1], RECORD.pack(*record), index * RECORD.size)
        except OSError:  # no space on the disk: what is there stays of use
            self.is_full = True

    def _room(self, size: int) -> int | None:
        """Where `size` more bytes go, which nobody else gets; None where there is no room for them."""
        if self.is_full:
            return None
        handle = self._files()[0]
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            begin = os.fstat(handle).st_size
            if begin + size > self.limit:
                self.is_full = True
                return None
            os.truncate(handle, begin + size)
            return begin
        except OSError:
            self.is_full = True
            return None
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)

    def _files(self) -> tuple[int, int]:
        """Handles of both files, of this process's own: a lock holds between open files, and a process that
        was forked shares those of its parent.
        """
        if self._handles is None or self._handles[0] != os.getpid():
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            pixels, records = (os.open(self.folder / name, flags, 0o600) for name in ("pixels", "index"))
            self._handles = (os.getpid(), pixels, records)
        return self._handles[1:]


def _write(handle: int, content: bytes, place: int) -> None:
    """All of the content, however the system cuts it."""
    rest = memoryview(content)
    while rest:
        count = os.pwrite(handle, rest, place)
        rest, place = rest[count:], place + count
