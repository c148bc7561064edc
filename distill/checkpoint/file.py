"""Read a file of weights as it is: .pth, .pt, .th or .safetensors, and nothing in it runs.

In:  a path.
Out: the dictionary in the file; ArtifactError for one that was changed, is cut, holds code, or unpacks to far
     more than its size.
Elsewhere: what the entries of ours are (distill.checkpoint.typed), where another project's weights stand
(distill.checkpoint.foreign).
"""

from __future__ import annotations

import argparse
import importlib
import pathlib
import pickle
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from runtime import files
from runtime.errors import ArtifactError

CODE = ("GLOBAL", "call reduce", "create new object", "Can only build")
"""Words of torch's weights-only reader when it meets a function or class it will not call."""
FIT, BROKEN = "checksums fit", "broken: "
"""What `checksums` says, or begins with."""
DOS_FOLDER = 0x10
"""The attribute of a part of a zip that is a folder."""
MOST_UNPACKED = 2**26
"""Bytes that the parts of a file may have together in any case."""
MOST_PACKED = 20
"""A file that unpacks to more may have so many times its own size: weights hardly shrink when packed."""


def read_file(path: str | Path, checked: bool = True) -> dict[str, Any]:
    """The raw dict in a .pth, .pt, .th or .safetensors file; pickled code is refused, never run.

    checked: refuse a file that was changed since it was written, for which it is read once more.
    """
    path = Path(path)
    if not path.is_file():
        raise files.no_checkpoint(path)
    _require_bounded(path)
    found = checksums(path) if checked else None
    if found and found.startswith(BROKEN):
        raise ArtifactError(f"{path}: {found.removeprefix(BROKEN)}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        with torch.serialization.safe_globals(_plain_types()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong with a file is an error here
            values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if any(words in str(error) for words in CODE):  # torch's text names weights_only for a cut file too
            raise ArtifactError(
                f"{path}: contains pickled code, which is never run. Save only the weights: "
                "torch.save(model.state_dict(), FILE)"
            ) from error
        raise ArtifactError(f"{path}: truncated or not a checkpoint ({_short(error)})") from error
    except Exception as error:  # zip, unicode, index and runtime errors, according to where the file is cut
        if "TorchScript" in str(error):
            raise ArtifactError(
                f"{path}: a TorchScript archive, whose code is never run. Save only the weights:"
                " torch.save(torch.jit.load(FILE).state_dict(), OTHER)"
            ) from error
        raise ArtifactError(f"{path}: truncated or not a checkpoint ({_short(error)})") from error
    if not isinstance(values, dict):
        raise ArtifactError(f"{path}: holds a {type(values).__name__}; expected a dict of weights")
    return values


def _ordinary_dict(*_default: Any) -> dict[Any, Any]:
    return {}


def _plain_types() -> list[Any]:
    """Types that many keep beside the weights, whose making runs no code of the file: settings, counters,
    NumPy's scalars and arrays of numbers.
    """
    import numpy as np

    kinds = (np.float64, np.float32, np.float16, np.int64, np.int32, np.uint8, np.bool_)
    types: list[Any] = [argparse.Namespace, list, dict, int, float, str]
    types.append((_ordinary_dict, "collections.defaultdict"))  # which torch's reader would not fill
    types += [pathlib.PurePosixPath, (pathlib.PurePosixPath, "pathlib.PosixPath"), np.dtype, np.ndarray]
    types += [type(np.dtype(kind)) for kind in kinds]
    multiarray: Any = importlib.import_module(
        "numpy._core.multiarray" if hasattr(np, "_core") else "numpy.core.multiarray"
    )
    for function in ("scalar", "_reconstruct"):
        made = getattr(multiarray, function)
        types += [(made, f"numpy.core.multiarray.{function}"), (made, f"numpy._core.multiarray.{function}")]
    return types


def checksums(path: Path) -> str | None:
    """FIT, or BROKEN and why: what the CRC-32 of each part of a torch file says; torch does not look at it.

    None where there are none: files of other formats, and those of torch with `compute_crc32` off. Raises
    ArtifactError for a file that would not be read at all (`_require_bounded`).
    """
    _require_bounded(path)
    try:
        if not zipfile.is_zipfile(path):
            return None
        with zipfile.ZipFile(path) as parts:
            if all(part.CRC == 0 for part in parts.infolist()):
                return None
            if odd := _odd_part(parts):
                return f"{BROKEN}changed since it was written ({odd}). Copy it again from its source"
            damaged = parts.testzip()
    except (zipfile.BadZipFile, RuntimeError, OSError, EOFError, ValueError, zlib.error) as error:
        reason = " ".join(str(error).split())
        return f"{BROKEN}changed since it was written ({reason}). Copy it again from its source"
    if damaged:
        return (
            f"{BROKEN}part {damaged} was changed since it was written (its CRC-32 does not fit). Copy it"
            " again from its source"
        )
    return FIT


def _odd_part(parts: zipfile.ZipFile) -> str:
    """What is wrong with the list of parts, which no CRC-32 covers; empty where nothing is. Of a part that is
    marked as a folder torch would read nothing, and of two with one name the other.
    """
    names = set()
    for part in parts.infolist():
        if part.is_dir() or part.external_attr & DOS_FOLDER:
            return f"part {part.filename} is marked as a folder"
        if part.filename in names:
            return f"two parts are called {part.filename}"
        names.add(part.filename)
    return ""


def _require_bounded(path: Path) -> None:
    """Raise ArtifactError for a zip whose parts would be far larger than the file: torch packs nothing, and
    a packed part of a few kilobytes can fill the memory.
    """
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as parts:
            size = sum(part.file_size for part in parts.infolist())
    except (zipfile.BadZipFile, RuntimeError, OSError, EOFError, ValueError):
        return  # what cannot be listed is refused by `checksums` and by torch
    if size > max(MOST_UNPACKED, MOST_PACKED * path.stat().st_size):
        raise ArtifactError(
            f"{path}: {path.stat().st_size:,} bytes that unpack to {size:,}; torch writes its files unpacked."
            " Save it again: torch.save(torch.load(FILE, weights_only=True), OTHER)"
        )


def _short(error: BaseException) -> str:
    """The reason without the advice that torch wraps around it (to load with weights_only=False)."""
    text = str(error).rpartition("WeightsUnpickler error:")[2].partition("Check the documentation")[0]
    return " ".join(text.split())[:160] or type(error).__name__
