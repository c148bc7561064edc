"""Write a file whole or not at all, and hash it; the one way to JSON.

In:  a path and bytes; plain values.
Out: the file, or the old one untouched; SHA-256 hex digests; JSON that every reader takes.
Elsewhere: what is inside the files (runtime.artifact, distill.checkpoint).
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import MissingError, UsageError

TEMPORARY_MARK = ".tmp-"
BEST = "best.pth"
"""The checkpoint in the folder of a run."""
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Of a disk, of what a user may take of it, of one file."""


def write_bytes(path: str | Path, content: bytes) -> None:
    """Replace `path` by `content`: temporary file beside it, fsync, rename, fsync of the folder.

    A crash at any moment leaves either the old file or the new one. Raises MissingError when the disk is
    full.
    """
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(content)


def write_text(path: str | Path, content: str) -> None:
    """`write_bytes` for UTF-8 text."""
    write_bytes(path, content.encode())


def json_text(value: Any, indent: int | None = None, sort_keys: bool = False) -> str:
    """The value as JSON text, with null for a number that is NaN or infinite: JSON has none, and Python alone
    reads what it writes for them.
    """
    return json.dumps(_finite(value), indent=indent, sort_keys=sort_keys, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, (list, tuple)) else value


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it becomes `path`, on any failure it
    is removed.
    """
    path = Path(path)
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise explained(error, path) from error
    finally:
        with contextlib.suppress(OSError):  # a folder that is not there or not ours has its own error above
            temporary.unlink()


def temporary_beside(path: Path) -> Path:
    """A name in the same folder that `remove_leftovers` knows."""
    return path.with_name(f".{path.name}{TEMPORARY_MARK}{os.getpid()}")


def require_writable(path: str | Path) -> None:
    """Raise now what writing `path` would raise later, before the work whose result goes there; leaves
    nothing behind.
    """
    path = Path(path)
    try:
        probe = temporary_beside(existing(path.parent) / path.name)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise explained(error, path) from error


def existing(folder: Path) -> Path:
    """What there is of a path: itself or the nearest one above, on whose disk it will be."""
    return next(each for each in (folder, *folder.resolve().parents) if each.exists())


def explained(error: OSError, path: Path) -> Exception:
    if error.errno in NO_SPACE:
        return MissingError(
            f"{path}: no space left to write it ({error.strerror}). Free space or choose another --output"
        )
    if error.errno in (
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.EISDIR,
        errno.ENOENT,
    ):
        return UsageError(f"{path}: cannot be written ({error.strerror}). Choose another --output")
    return error


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder to sync it
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def no_checkpoint(path: str | Path) -> UsageError:
    """What to raise for a path that should be a checkpoint and is not a file."""
    path = Path(path)
    if path.is_dir():
        return UsageError(f"{path}: is a folder without a {BEST}. Expected a checkpoint, or a run's folder")
    return UsageError(f"{path}: {'is not a regular file' if path.exists() else 'no such checkpoint'}")


def no_artifact(path: str | Path) -> UsageError:
    """What to raise for a path that should be an exported file and is not a file."""
    path = Path(path)
    if (path / BEST).is_file():
        return UsageError(f"{path}: is the folder of a run. Export its network: distill export onnx {path}")
    if path.is_dir():
        return UsageError(f"{path}: is a folder. Expected an .onnx or .plan file")
    return UsageError(f"{path}: {'is not a regular file' if path.exists() else 'no such file'}")


def remove_leftovers(folder: Path) -> list[Path]:
    """Delete temporary files that a killed process left in `folder`; returns what was deleted."""
    leftovers = sorted(folder.glob(f".*{TEMPORARY_MARK}*"))
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return leftovers


def sha256(path: str | Path) -> str:
    """SHA-256 of a file as 64 hex digits, read in 1 MiB blocks."""
    import hashlib  # here, so that `import runtime` does not pay for it

    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def refuse_existing(path: str | Path, overwrite: bool) -> None:
    """Raise UsageError when `path` exists and `overwrite` is False."""
    if Path(path).exists() and not overwrite:
        raise UsageError(f"{path} exists already. Add --overwrite to replace it, or choose another --output")
