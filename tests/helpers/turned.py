"""Images that a camera stored turned or mirrored, and how they look upright, written by hand.

In:  an orientation, 1 to 8.
Out: EXIF, a file's bytes.
"""

import io
import struct
import zlib

import numpy as np
from PIL import Image

A, B, C, D, E, F = (np.array(color, np.uint8) for color in np.random.default_rng(5).integers(0, 256, (6, 3)))
STORED = np.array([[A, B, C], [D, E, F]])
UPRIGHT = {
    1: [[A, B, C], [D, E, F]],
    2: [[C, B, A], [F, E, D]],  # the first column is on the right
    3: [[F, E, D], [C, B, A]],  # the first row is at the bottom, the first column on the right
    4: [[D, E, F], [A, B, C]],  # the first row is at the bottom
    5: [[A, D], [B, E], [C, F]],  # the first row is the left column, from the top
    6: [[D, A], [E, B], [F, C]],  # the first row is the right column, from the top
    7: [[F, C], [E, B], [D, A]],  # the first row is the right column, from the bottom
    8: [[C, F], [B, E], [A, D]],  # the first row is the left column, from the bottom
}
"""How EXIF 2.32 (CIPA DC-008, tag Orientation) says that STORED is to be shown."""


def tiff(orientation: int, order: str = "<", kind: int = 3, count: int = 1, before: int = 0) -> bytes:
    """A TIFF header with one directory; before: how many other tags stand before the orientation."""
    entries = [struct.pack(f"{order}HHII", 256 + n, 4, 1, 7) for n in range(before)]
    value = struct.pack(f"{order}I" if kind == 4 else f"{order}Hxx", orientation)
    entries.append(struct.pack(f"{order}HHI", 274, kind, count) + value)
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    return head + struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4)


def png(pixels: np.ndarray, exif: bytes, is_last: bool = False) -> bytes:
    """A PNG file with an eXIf chunk before its pixels, or behind them; pixels: uint8 or uint16."""
    return png_with(pixels, *((b"", exif) if is_last else (exif, b"")))


def png_with(pixels: np.ndarray, before: bytes = b"", behind: bytes = b"", after_end: bytes = b"") -> bytes:
    """A PNG file with eXIf chunks before and behind its pixels and after its end; empty: none there."""
    before, behind, after_end = (each and _chunk(b"eXIf", each) for each in (before, behind, after_end))
    whole = _saved(pixels, "PNG")
    first, last = (whole.index(kind) - 4 for kind in (b"IDAT", b"IEND"))
    return whole[:first] + before + whole[first:last] + behind + whole[last:] + after_end


def jpeg(pixels: np.ndarray, exif: bytes) -> bytes:
    """A JPEG file with EXIF in its first segment."""
    whole = _saved(pixels, "JPEG", quality=95, subsampling=0)
    segment = b"Exif\0\0" + exif
    return whole[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + whole[2:]


def webp(pixels: np.ndarray, exif: bytes) -> bytes:
    """A lossless WebP file."""
    return _saved(pixels, "WEBP", lossless=True, exif=exif)


FILES = {"png": png, "jpg": jpeg, "webp": webp}


def _saved(pixels: np.ndarray, kind: str, **settings: object) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind, **settings)
    return content.getvalue()


def png_of_16_bits(pixels: np.ndarray, kind: int, transparent: bytes = b"") -> bytes:
    """A PNG file of uint16 (h, w, bands), which Pillow does not write. kind: its color type; transparent: the
    value that is, as a tRNS chunk has it.
    """
    height, width, _ = pixels.shape
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    key = _chunk(b"tRNS", transparent) if transparent else b""
    parts = _chunk(b"IHDR", head) + key + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def png_header(width: int, height: int) -> bytes:
    """A PNG file that says how large it is, and holds next to nothing."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(bytes(9))) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
