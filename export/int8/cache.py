"""Keep the statistics of a calibration run, so that another method or placement need not read the images
again.

In:  fp32 ONNX bytes, tensor names, SHA-256 of every image in order, the preprocessing: what statistics depend
on.
Out: a key; {tensor: Histogram} from FOLDER/KEY.npz, or None, which is never an error: they can be counted
again.
Elsewhere: counting (export.int8.calibrate), ranges from the counts (export.int8.ranges).

A file is never trusted by its name: it holds its key and a SHA-256 of its contents, and both must fit. No
pickle is read.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runtime import files
from runtime.backends.telemetry import onnxruntime
from runtime.errors import Large2SmallError

from .histogram import BINS, Histogram

VERSION = 1
"""Of the counting and of the file: raise it when either changes, and no old file fits any more."""
KEPT = 64
"""Files in the folder; the oldest go. One is about 1 MB."""
ARRAYS = ("checksum", "key", "names", "lows", "highs", "limits", "counts")


def default_folder() -> Path:
    """$XDG_CACHE_HOME/large2small/calibration, below ~/.cache when that is not set to an absolute path, as
    freedesktop.org's Base Directory Specification says.
    """
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".cache") / "large2small" / "calibration"


def key(model: bytes, tensors: Iterable[str], images: Iterable[str], preprocess: Mapping[str, Any]) -> str:
    """64 hex digits that differ when the weights, the tensors, an image or their order, the preprocessing,
    the engine that runs the network or the way of counting differ. images: SHA-256 of each image; preprocess:
    JSON values.

    The method is not in it: every method reads the same counts.
    """
    parts = {
        "version": VERSION,
        "bins": BINS,
        "engine": onnxruntime.__version__,
        "model": hashlib.sha256(model).hexdigest(),
        "tensors": sorted(set(tensors)),
        "images": list(images),
        "preprocess": dict(preprocess),
    }
    return hashlib.sha256(files.json_text(parts, sort_keys=True).encode()).hexdigest()


def read(
    folder: str | Path, key: str, note: Callable[[str], None] = lambda line: None
) -> dict[str, Histogram] | None:
    """The histograms stored under `key`, or None. When a file is there but does not fit, `note` gets a line
    that says why; nothing in the folder makes this raise.
    """
    path = file_of(folder, key)
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            stored = {name: file[name] for name in ARRAYS}
        damage = (
            "its contents do not have the checksum it carries"
            if str(stored["checksum"]) != checksum(stored)
            else "it was written for something else"
            if str(stored["key"]) != key
            else ""
        )
    except Exception as error:  # whatever numpy and zipfile make of bytes that no one wrote like this
        damage = f"it cannot be read ({type(error).__name__}: {error})"
    if damage:
        note(f"{path}: {damage}; not used, the images are read again")
        return None
    return {
        str(name): _histogram(*values)
        for name, *values in zip(
            *(stored[part] for part in ("names", "lows", "highs", "limits", "counts")), strict=True
        )
    }


def write(
    folder: str | Path,
    key: str,
    histograms: Mapping[str, Histogram],
    note: Callable[[str], None] = lambda line: None,
) -> None:
    """Store the histograms under `key`, whole or not at all, and delete the oldest files beyond KEPT.

    A folder that cannot be written costs the cache, not the calibration: `note` gets a line.
    """
    seen = list(histograms.values())
    stored: dict[str, Any] = {
        "key": np.array(key),
        "names": np.array(list(histograms)),
        "lows": np.array([each.low for each in seen]),
        "highs": np.array([each.high for each in seen]),
        "limits": np.array([each.limit for each in seen]),
        "counts": np.array([each.counts for each in seen]),
    }
    content = io.BytesIO()
    np.savez_compressed(content, checksum=np.array(checksum(stored)), **stored)
    try:
        files.write_bytes(file_of(folder, key), content.getvalue())
        for old in sorted(Path(folder).glob("[0-9a-f]" * 64 + ".npz"), key=lambda file: file.stat().st_mtime)[
            :-KEPT
        ]:
            old.unlink(missing_ok=True)
    except (Large2SmallError, OSError) as error:
        note(f"the statistics of this calibration are not kept: {error}")


def file_of(folder: str | Path, key: str) -> Path:
    """Where the statistics of `key` are."""
    return Path(folder) / f"{key}.npz"


def checksum(stored: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, types, shapes and bytes of everything but the checksum itself."""
    digest = hashlib.sha256()
    for name in sorted(set(stored) - {"checksum"}):
        array = np.ascontiguousarray(stored[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _histogram(low: float, high: float, limit: float, counts: np.ndarray) -> Histogram:
    made = Histogram()
    made.low, made.high, made.limit, made.counts = float(low), float(high), float(limit), counts
    return made
