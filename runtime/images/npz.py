"""Labeled images in an npz file: x uint8 (N, H, W, 3), y integer (N,), and class_names if there are any.

In:  the path of a file, with {split} in it, or of a folder of train.npz and val.npz.
Out: an `ArraySet`; DataError says what is wrong with the arrays. Nothing pickled is read.
Elsewhere: folders of images (runtime.images.folder).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import DataError
from .folder import SPLIT_FOLDERS
from .sets import ArraySet


def open_npz(location: str, split: str) -> ArraySet:
    path = _npz_file(location, split)
    if path.exists() and not path.is_file():
        raise DataError(f"npz:{path}: not a regular file. Expected arrays x (N, H, W, 3) uint8 and y (N,)")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise DataError(
            f"npz:{path}: no such file. Expected arrays x (N, H, W, 3) uint8 and y (N,)"
        ) from None
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise DataError(f"npz:{path}: cannot be read ({error})") from error
    except Exception as error:  # zipfile.BadZipFile and zlib.error have no common base
        raise DataError(f"npz:{path}: not an npz file ({error})") from error
    if "x" not in arrays or "y" not in arrays:
        raise DataError(f"npz:{path}: has arrays {sorted(arrays)}; expected x (N, H, W, 3) uint8 and y (N,)")
    x, y = arrays["x"], arrays["y"]
    if x.ndim == 4 and x.shape[3] not in (1, 3, 4):
        first = x.shape[1] in (1, 3, 4)
        raise DataError(
            f"npz:{path}: x is {x.dtype} {x.shape}; expected channels last, uint8 (N, H, W, 3)"
            + (". Save x.transpose(0, 2, 3, 1)" if first else "")
        )
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or y.shape != x.shape[:1] or y.dtype.kind not in "iu":
        raise DataError(
            f"npz:{path}: x is {x.dtype} {x.shape}, y is {y.dtype} {y.shape}; "
            "expected x uint8 (N, H, W, 3) and y integer (N,)"
        )
    if not len(x):
        raise DataError(f"npz:{path}: holds no images")
    names = (
        arrays["class_names"].tolist()
        if "class_names" in arrays
        else [str(i) for i in range(int(y.max()) + 1)]
    )
    if y.min() < 0 or y.max() >= len(names):
        raise DataError(f"npz:{path}: labels run from {y.min()} to {y.max()}, class_names has {len(names)}")
    return ArraySet(f"npz:{path}", x, y, names)


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
