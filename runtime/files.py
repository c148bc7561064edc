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
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from .errors import ArtifactError, MissingError, UsageError

try:
    import fcntl
except ImportError:  # Windows, where nobody can remove a file that is open
    fcntl = None  # type: ignore[assignment]  # a module elsewhere

TEMPORARY_MARK = ".tmp-"
OWNER = r"\d+(-[0-9a-f]{12})?(-old)?"
"""What temporary names end with: the process, and what nobody can foresee, which older versions left out."""
BEST = "best.pth"
"""The checkpoint in the folder of a run."""
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Of a disk, of what a user may take of it, of one file."""
NOT_WRITABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOENT),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EXDEV, errno.EBUSY, errno.ETXTBSY, errno.EINVAL),
)
MOST_OF_A_NAME = 200
"""Bytes of a file's name that its temporary name begins with; a name has 255 at most."""
MOST_SMALL = 2**24
"""Bytes of a file that only says something: settings, what is beside a plan."""
DEEPEST = 64
"""Lists and objects inside one another, in JSON that is read."""
MOST_NUMBER = 2**63
"""What whole numbers in it are below."""
AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Of Linux, in <fcntl.h> and <linux/fs.h>."""
QUERY_LIMITED, NO_SUCH_PROCESS = 0x1000, 87
"""Of Windows, in <winnt.h> and <winerror.h>: the least right on a process, the error where there is none."""
SCRATCH = "large2small"
"""What folders for intermediate files are called."""


def write_bytes(path: str | Path, content: bytes) -> None:
    """Replace `path` by `content`: temporary file beside it, fsync, rename, fsync of the folder.

    A crash at any moment leaves either the old file or the new one. Raises MissingError when the disk is
    full.
    """
    with replacing(path) as file:
        file.write(content)


def write_text(path: str | Path, content: str) -> None:
    """`write_bytes` for UTF-8 text; of names that the disk holds in another encoding their bytes."""
    write_bytes(path, content.encode("utf-8", "surrogateescape"))


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
def replacing(path: str | Path) -> Iterator[IO[bytes]]:
    """Yield a file to write in the same folder; on success it becomes `path`, on any failure it is removed.

    What was there keeps its mode. One's own link is followed, another user's is replaced. What processes that
    have ended left behind is removed first.
    """
    path = Path(path)
    try:
        target = _through_own_link(path)
        _require_not_removed(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        _require_replaceable(target)
        remove_leftovers(target.parent, target.name)
        temporary, file = _created(target)
    except OSError as error:
        raise explained(error, path) from error
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if os.name == "nt":  # where an open file cannot be renamed
                file.close()
            os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise explained(error, path) from error
    finally:
        with contextlib.suppress(OSError):  # a folder that is not there or not ours has its own error above
            temporary.unlink()


def _created(target: Path) -> tuple[Path, IO[bytes]]:
    """A new file beside `target` with its mode, open, and locked until it is closed."""
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    while True:
        temporary = temporary_beside(target)
        file = os.fdopen(os.open(temporary, flags, 0o666 if mode is None else 0o600), "w+b")
        try:
            if mode is not None:
                os.chmod(file.fileno() if os.chmod in os.supports_fd else temporary, mode)
            if _keep(file.fileno()):
                return temporary, file
        except BaseException:  # a disk without modes, for one
            file.close()
            temporary.unlink(missing_ok=True)
            raise
        file.close()


@contextlib.contextmanager
def scratch_folder(place: Path | None = None) -> Iterator[Path]:
    """An empty folder that only this user can read and that is gone afterwards: in `place`, or where the
    system keeps temporary files. What processes that have ended left there is removed first.

    Raises MissingError where there is no such place.
    """
    import tempfile  # here, so that `import runtime` does not pay for it

    try:
        parent = Path(tempfile.gettempdir()) if place is None else place
    except OSError as error:
        raise MissingError(
            "no folder for temporary files can be written. Set TMPDIR to one, or free space"
        ) from error
    remove_leftovers(parent, SCRATCH)
    with temporary_folder(parent / SCRATCH, 0o700) as folder:
        yield folder


@contextlib.contextmanager
def temporary_folder(beside: Path, mode: int = 0o777) -> Iterator[Path]:
    """A new folder beside a path, locked, and gone afterwards unless it has another name by then."""
    try:
        folder, handle = _created_folder(beside, mode)
    except OSError as error:
        raise explained(error, beside.parent) from error
    try:
        yield folder
    finally:
        import shutil  # here, so that `import runtime` does not pay for it

        shutil.rmtree(folder, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def _created_folder(beside: Path, mode: int) -> tuple[Path, int | None]:
    while True:
        folder = temporary_beside(beside)
        folder.mkdir(mode)
        if fcntl is None:
            return folder, None
        try:
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # removed before it was locked
            continue
        except OSError:
            folder.rmdir()
            raise
        if _keep(handle):
            return folder, handle
        os.close(handle)


def put_in_place(folder: Path, target: Path) -> None:
    """Give `folder` the name `target`. A folder that has it is exchanged with it, in one step where the
    system can do that, and has the name `folder` afterwards. Raises OSError.
    """
    if not target.exists():
        os.rename(folder, target)
    elif not _exchanged(folder, target):
        aside = folder.with_name(f"{folder.name}-old")
        os.rename(target, aside)  # the target's name is free for a moment
        try:
            os.rename(folder, target)
        except OSError:
            os.rename(aside, target)
            raise
        os.rename(aside, folder)


def _exchanged(one: Path, other: Path) -> bool:
    """Whether the system has exchanged two names (Linux, on most disks)."""
    import ctypes

    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    done = rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), ctypes.c_uint(RENAME_EXCHANGE))
    return bool(done == 0)


def temporary_beside(path: Path) -> Path:
    """A name in the same folder that nobody can foresee and `remove_leftovers` knows."""
    return path.with_name(f"{_prefix(path.name)}{os.getpid()}-{os.urandom(6).hex()}")


def _prefix(name: str) -> str:
    """What temporary names of `name` begin with; together they are no longer than a name may be."""
    return f".{os.fsencode(name)[:MOST_OF_A_NAME].decode(errors='ignore')}{TEMPORARY_MARK}"


def _keep(handle: int) -> bool:
    """Lock what was just made, so that `remove_leftovers` of another process leaves it alone; False when it
    has removed it already. The lock ends with this process, however it ends.
    """
    if fcntl is None:
        return True
    with contextlib.suppress(OSError):  # a disk without locks: nobody else gets one either
        fcntl.flock(handle, fcntl.LOCK_EX)
    return os.fstat(handle).st_nlink > 0


_held: dict[Path, int] = {}
"""Folders of `only_one`, and the open handle of each."""


@contextlib.contextmanager
def only_one(folder: Path, what: str) -> Iterator[None]:
    """Nobody else may do `what` in `folder` meanwhile: UsageError where another process is at it.

    The lock is on the folder itself, which is made where it is not there, and removed where it is still empty
    at the end: nothing stays of a process that has ended. Writing into a folder that was removed meanwhile
    is an error.
    """
    if fcntl is None:
        yield
        return
    folder = Path(os.path.abspath(folder))
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise explained(error, folder) from error
    try:
        _lock(handle, folder, what)
        _held[folder] = handle
        try:
            yield
        finally:
            del _held[folder]
            with contextlib.suppress(OSError):  # what holds something by now
                for each in made:
                    each.rmdir()
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path, what: str) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(
            f"{folder}: another process {what} there. Wait for it, or choose another folder"
        ) from None
    except OSError:  # a disk without locks
        return


def _require_not_removed(target: Path) -> None:
    for folder, handle in _held.items():
        if not target.absolute().is_relative_to(folder):
            continue
        if not folder.exists() or not os.path.samestat(os.stat(folder), os.fstat(handle)):
            raise UsageError(f"{folder}: was removed or renamed meanwhile, so {target.name} is not written")


def _through_own_link(path: Path) -> Path:
    """What a link of this user's leads to; `path` itself otherwise, as another's link in a shared folder
    could lead anywhere.
    """
    try:
        is_own = stat.S_ISLNK(path.lstat().st_mode) and path.lstat().st_uid == _user()
    except OSError:  # nothing there, or what the caller's next step says
        return path
    return Path(os.path.realpath(path)) if is_own else path


def _user() -> int:
    return os.geteuid() if hasattr(os, "geteuid") else 0


def _require_replaceable(target: Path) -> None:
    """Raise OSError for what is there and is not a file: a folder, or a device, which would be lost."""
    if target.exists() and not target.is_file():
        code = errno.EISDIR if target.is_dir() else errno.EEXIST
        reason = os.strerror(code) if target.is_dir() else "it is not a regular file"
        raise OSError(code, reason, str(target))


def require_writable(path: str | Path) -> None:
    """Raise now what writing `path` would raise later, before the work whose result goes there; leaves
    nothing behind.
    """
    path = Path(path)
    try:
        target = _through_own_link(path)
        _require_replaceable(target)
        probe, file = _created(existing(target.parent) / target.name)
        file.close()
        probe.unlink()
    except OSError as error:
        raise explained(error, path) from error


def existing(folder: Path) -> Path:
    """What there is of a path: itself or the nearest one above, on whose disk it will be."""
    return next(each for each in (folder, *folder.resolve().parents) if each.exists())


def explained(error: OSError, path: Path) -> Exception:
    if error.errno in NO_SPACE:
        return MissingError(
            f"{path}: no space left to write it ({error.strerror}). Free space or choose another place"
        )
    if error.errno in NOT_WRITABLE:
        return UsageError(f"{path}: cannot be written ({error.strerror}). Choose another name")
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


def remove_leftovers(folder: Path, name: str = "") -> list[Path]:
    """Delete what processes that have ended left in `folder` under temporary names (of the file `name` only);
    returns what was deleted. What a living process holds, and what is another user's, stays.
    """
    pattern = re.compile(rf"{re.escape(_prefix(name)) if name else r'[.].+[.]tmp-'}{OWNER}")
    try:
        names = sorted(each for each in os.listdir(folder) if pattern.fullmatch(each))
    except OSError:  # not there or not ours: there is nothing to remove
        return []
    return [folder / each for each in names if _removed(folder / each)]


def _removed(leftover: Path) -> bool:
    if fcntl is None:
        return _removed_without_locks(leftover)
    try:
        handle = os.open(leftover, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:  # gone by now, or a link
        return False
    try:
        found = os.fstat(handle)
        if hasattr(os, "geteuid") and found.st_uid != os.geteuid():
            return False
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _deleted(leftover, found.st_mode)
    except OSError:  # held by a living process
        return False
    finally:
        os.close(handle)


def _removed_without_locks(leftover: Path) -> bool:
    """The same on Windows, where nothing that is open can be deleted and no folder can be opened: the name
    tells whose it is.
    """
    owner = leftover.name.rpartition(TEMPORARY_MARK)[2].partition("-")[0]
    try:
        return not _lives(int(owner)) and _deleted(leftover, leftover.lstat().st_mode)
    except OSError:  # gone by now, or open after all
        return False


def _lives(process: int) -> bool:
    """Whether Windows has a process of this number, which may have ended since."""
    import ctypes

    kernel = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined]  # on Windows
    kernel.OpenProcess.restype = ctypes.c_void_p
    handle = kernel.OpenProcess(QUERY_LIMITED, False, process)
    if not handle:
        return bool(ctypes.get_last_error() != NO_SUCH_PROCESS)  # type: ignore[attr-defined]  # too
    kernel.CloseHandle(ctypes.c_void_p(handle))
    return True


def _deleted(leftover: Path, mode: int) -> bool:
    if stat.S_ISDIR(mode):
        import shutil

        shutil.rmtree(leftover)
    elif stat.S_ISREG(mode):
        leftover.unlink()
    return not leftover.exists()


def open_regular(path: str | Path) -> IO[bytes]:
    """A file, open to be read: never a pipe or a device, which would be read without end.

    Raises FileNotFoundError where there is none, UsageError for what is not a regular file or cannot be
    opened.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UsageError(f"{short(path)}: cannot be opened ({error.strerror})") from error
    except ValueError as error:  # a null byte, or letters that no name has
        raise UsageError(f"{short(path)}: is not the name of a file") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UsageError(f"{short(path)}: is not a regular file. Expected a file that can be read to its end")
    return open(handle, "rb")


def read_small(path: str | Path, most: int = MOST_SMALL) -> bytes:
    """The content of a file that is at most `most` bytes. Raises as `open_regular` does, ArtifactError for a
    larger one.
    """
    with open_regular(path) as file:
        content = file.read(min(os.fstat(file.fileno()).st_size, most) + 1)
    if len(content) > most:
        raise ArtifactError(f"{path}: larger than {most:,} bytes, which such a file never is. Give another")
    return content


def read_text(path: str | Path, most: int = MOST_SMALL) -> str:
    """`read_small` as UTF-8 text. Raises ArtifactError for bytes that are none."""
    try:
        return read_small(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path}: is not text in UTF-8 ({error})") from error


def from_json(text: str | bytes, name: str) -> Any:
    """The value that JSON stands for; NaN and Infinity, which Python alone writes, are None.

    name is used in messages. Raises ArtifactError for what is not JSON, is nested more than DEEPEST, or holds
    a number that no float or 64 bits hold.
    """
    try:
        value = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{name}: is not JSON ({' '.join(str(error).split())[:160]})") from error
    _require_held(value, (), name)
    return value


def _require_held(value: Any, place: tuple[Any, ...], name: str) -> None:
    """Raise ArtifactError for a number that is too large and for what is too deep; place: keys on the way."""
    too_large = isinstance(value, int) and not -MOST_NUMBER <= value < MOST_NUMBER
    if too_large or (isinstance(value, float) and math.isinf(value)):
        where = ".".join(map(str, place))
        raise ArtifactError(f"{name}: {where} is a number that is too large ({short(str(value))})")
    if len(place) > DEEPEST:
        raise ArtifactError(f"{name}: {place[0]} holds lists and objects more than {DEEPEST} deep")
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inside in pairs:
        _require_held(inside, (*place, key), name)


def short(text: str | Path) -> str:
    """A name or value for a message: its beginning and end where it is long."""
    text = os.fsdecode(text)
    return text if len(text) <= 200 else f"{text[:120]}...{text[-60:]}"


def sha256(path: str | Path) -> str:
    """SHA-256 of a file as 64 hex digits, read in 1 MiB blocks up to the size it has at first."""
    import hashlib  # here, so that `import runtime` does not pay for it

    digest = hashlib.sha256()
    with open_regular(path) as file:
        left = os.fstat(file.fileno()).st_size
        while block := file.read(min(left, 1 << 20)):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def refuse_existing(path: str | Path, overwrite: bool) -> None:
    """Raise UsageError when `path` exists and `overwrite` is False."""
    if Path(path).exists() and not overwrite:
        raise UsageError(f"{path} exists already. Add --overwrite to replace it, or choose another name")
