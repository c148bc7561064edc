"""Labeled images in an npz file: x uint8 (N, H, W, 3), y integer (N,), and class_names if there are any.

In:  the path of a file, with {split} in it, or of a folder of train.npz and val.npz.
Out: an `ArraySet`; DataError says what is wrong with the arrays. Nothing pickled is read and no other array;
     types and sizes are checked before anything is unpacked.
Elsewhere: folders of images (runtime.images.folder).
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from ..errors import DataError
from .decode import require_size
from .folder import SPLIT_FOLDERS
from .sets import ArraySet, most_classes, numbered

EXPECTED = "expected x uint8 (N, H, W, 3) and y integer (N,)"
MOST_UNPACKED = 2**27
"""Bytes that the arrays may have together in any case."""
MOST_PACKED = 100
"""A file that unpacks to more may have so many times its own size: photographs hardly shrink."""


class _Header(NamedTuple):
    """What an array's own header says, and where the array is."""

    part: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def line(self) -> str:
        return f"{self.dtype} {self.shape}"


def open_npz(location: str, split: str) -> ArraySet:
    """The images of `split`."""
    path = _npz_file(location, split)
    if path.exists() and not path.is_file():
        raise DataError(f"npz:{path}: not a regular file. Expected arrays x (N, H, W, 3) uint8 and y (N,)")
    try:
        arrays = _arrays(path)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(
            f"npz:{path}: no such file. Expected arrays x (N, H, W, 3) uint8 and y (N,)"
        ) from None
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise DataError(f"npz:{path}: cannot be read ({error})") from error
    except MemoryError:
        raise
    except Exception as error:  # zipfile.BadZipFile and zlib.error have no common base
        raise DataError(f"npz:{path}: not an npz file ({error})") from error
    x, y = arrays["x"], arrays["y"]
    names = arrays["class_names"].tolist() if "class_names" in arrays else numbered(y, f"npz:{path}")
    if y.min() < 0 or y.max() >= len(names):
        raise DataError(f"npz:{path}: labels run from {y.min()} to {y.max()}, class_names has {len(names)}")
    return ArraySet(f"npz:{path}", x, y, names)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        headers = _headers(archive, path)
        _require_images(headers["x"], headers["y"], path)
        if "class_names" in headers:
            _require_names(headers["class_names"], most_classes(headers["x"].shape[0]), path)
        _require_bounded(headers, path)
        found = {}
        for name, header in headers.items():
            with archive.open(header.part) as file:
                found[name] = np.lib.format.read_array(file, allow_pickle=False)
        return found


def _headers(archive: zipfile.ZipFile, path: Path) -> dict[str, _Header]:
    parts = {part.filename.removesuffix(".npy"): part for part in archive.infolist()}
    if "x" not in parts or "y" not in parts:
        shown = sorted(parts)[:10]
        raise DataError(f"npz:{path}: has arrays {shown}; expected x (N, H, W, 3) uint8 and y (N,)")
    found: dict[str, _Header] = {}
    for name in ("x", "y", "class_names"):
        if name in parts:
            with archive.open(parts[name]) as file:
                found[name] = _Header(parts[name], *_read_header(file))
    return found


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:  # only arrays with named fields need another
        raise ValueError(f"an array in version {version} of its format; expected (1, 0) or (2, 0)")
    shape, _, dtype = readers[version](file)
    return shape, dtype


def _require_images(x: _Header, y: _Header, path: Path) -> None:
    if len(x.shape) == 4 and x.shape[3] not in (1, 3, 4):
        advice = ". Save x.transpose(0, 2, 3, 1)" if x.shape[1] in (1, 3, 4) else ""
        raise DataError(f"npz:{path}: x is {x.line}; expected channels last, uint8 (N, H, W, 3)" + advice)
    is_fit = x.dtype == np.uint8 and len(x.shape) in (3, 4) and y.shape == x.shape[:1]
    if not is_fit or y.dtype.kind not in "iu":
        raise DataError(f"npz:{path}: x is {x.line}, y is {y.line}; {EXPECTED}")
    if not x.shape[0]:
        raise DataError(f"npz:{path}: holds no images")
    require_size((x.shape[2], x.shape[1]), f"npz:{path}")
    if 0 in x.shape:
        raise DataError(f"npz:{path}: x is {x.line}, images without a pixel; {EXPECTED}")


def _require_names(names: _Header, most: int, path: Path) -> None:
    if len(names.shape) != 1 or names.dtype.kind not in "SUiufb" or names.shape[0] > most:
        raise DataError(
            f"npz:{path}: class_names is {names.line}; expected the names of the classes, text (K,) with K"
            f" at most {most:,}"
        )


def _require_bounded(headers: dict[str, _Header], path: Path) -> None:
    """Raise DataError for arrays that are far larger than the file, or than the part of it they are in."""
    for name, header in headers.items():
        size = header.dtype.itemsize * math.prod(header.shape)
        if size > header.part.file_size:
            raise DataError(f"npz:{path}: {name} is cut: {header.line} needs {size:,} bytes. Copy it again")
    size = sum(header.part.file_size for header in headers.values())
    packed = path.stat().st_size
    if size > max(MOST_UNPACKED, MOST_PACKED * packed):
        raise DataError(
            f"npz:{path}: {packed:,} bytes that unpack to {size:,}, which images never do. If they are right,"
            " save them with numpy.savez, which does not pack"
        )


def _npz_file(location: str, split: str) -> Path:
    path = Path(location)
    names = SPLIT_FOLDERS[split]
    if "{split}" in location:
        candidates = [Path(location.replace("{split}", name)) for name in names]
    elif path.is_dir():
        candidates = [path / f"{name}.npz" for name in names]
    else:
        return path
    found = next((candidate for candidate in candidates if candidate.exists()), None)
    if found is None:
        raise DataError(
            f"npz:{location}: no {split} split. Expected one of {', '.join(map(str, candidates))}"
        )
    return found
