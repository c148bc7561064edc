"""Words that a file recorded, and what they may open here: a file's author is not the person at the keyboard.

In:  a data spec or the name of a network out of a checkpoint, recipe, run folder or artifact; the file it
     stands in.
Out: the same data as a spec that opens nothing but local folders, .npz and .tar files and the digits; the
     same name where it leads nowhere; or UsageError.
Elsewhere: what opens specs (runtime.images, distill.data), what names mean (distill.models.names), the
     arguments of networks (distill.models).
"""

from __future__ import annotations

import os
import stat
from functools import lru_cache
from pathlib import Path

from . import files
from .errors import Large2SmallError, UsageError

SYSTEM_FOLDERS = ("/proc", "/sys", "/dev")
"""Their files are not data: reading them may never end, or tell what this machine is doing."""
MEMORY_DISK = "/dev/shm"
"""The folder below them where people do keep data."""
REMOTE = ("hf-hub:", "local-dir:")
"""What a network's name begins with when it leads to a hub or a folder."""


HEADER = "header.json"
"""A run's file that says under "run" where the run's folder is."""
SPLIT_LIST = "val-split.csv"
"""A run's list of the images it set apart for validation."""
START = "start.pth"
"""Where a run keeps weights that came from a hub or a folder: resumed, it follows no name."""
LOGGER_IDS = "loggers.json"
"""A run's file: logger -> id of the run there."""
UNREADABLE = "unreadable-images.txt"
"""A run's list of what --skip-bad-images left out."""


def parts_of(spec: str) -> tuple[str, str, str]:
    """(`npz:`, `csv:` or empty; path; names of a list's columns as `image=A&label=B`, or empty) of a spec.

    A path may hold a # as well: columns are what is behind the last one, if it looks like them and there is
    no file of the whole name.
    """
    kind = next((each for each in ("npz:", "csv:") if spec.startswith(each)), "")
    whole = spec[len(kind) :]
    path, mark, columns = whole.rpartition("#")
    if kind == "csv:" and mark and columns.startswith(("image=", "label=")) and not os.path.exists(whole):
        return kind, path, columns
    return kind, whole, ""


def joined(kind: str, path: str | Path, columns: str) -> str:
    """The spec of these parts, as `parts_of` takes it apart."""
    return f"{kind}{path}#{columns}" if columns else f"{kind}{path}"


def local_data(spec: str, source: str, flag: str) -> str:
    """`spec` in a form that no reader of timm is chosen by: "", digits, npz:PATH, csv:PATH or an absolute
    path.

    source: the file that says it; flag: where a user may type it, and with it any spec there is. Raises
    UsageError for everything else (wds/, hfds/, torch/, URLs, pipes), and for what is neither folder nor
    regular file.
    """
    if spec in ("", "digits"):
        return spec
    kind, path, columns = parts_of(spec)
    if os.path.exists(path):
        if not is_plain(path):
            raise UsageError(
                f"{source}: names {spec!r} as its data, which is neither a folder nor a regular file of data."
                f" Give the data: {flag} DIR"
            )
        return joined(kind, os.path.abspath(path), columns)
    if kind or os.path.isabs(path):
        return spec  # what opens it says what is missing
    raise UsageError(
        f"{source}: names {spec!r} as its data. What a file names must be a folder, a .tar, npz:FILE,"
        f" csv:FILE or digits on this disk; all else is only opened when typed. If you trust"
        f" it: {flag} {_typed(spec)}"
    )


def found_again(spec: str, folder: Path) -> str:
    """`spec`, which a file in a run's folder recorded, with the path it has now.

    A path that is still there stays. Otherwise, where the run was is read from its header.json, and what is
    in the same place relative to where it is now is taken: files of the run itself, data that moved along.
    """
    kind, path, columns = parts_of(spec)
    if not os.path.isabs(path) or os.path.exists(path):
        return spec
    for now in (folder, folder.parent):
        before = _place_of_run(now)
        moved = os.path.normpath(os.path.join(os.path.abspath(now), os.path.relpath(path, before or now)))
        if before and is_plain(moved):
            return joined(kind, moved, columns)
    own = next((each / SPLIT_LIST for each in (folder, folder.parent) if (each / SPLIT_LIST).is_file()), None)
    if os.path.basename(path) == SPLIT_LIST and own:  # a run of an earlier version does not say where it was
        return joined(kind, own.absolute(), columns)
    return spec


def _place_of_run(folder: Path) -> str:
    """Where the run in `folder` was when it wrote its header; empty where it does not say."""
    path = folder / HEADER
    try:
        now = path.stat()
        return _place_in(path, (now.st_ino, now.st_size, now.st_mtime_ns))
    except OSError:
        return ""


@lru_cache(maxsize=16)
def _place_in(path: Path, version: tuple[int, int, int]) -> str:
    """What this version of a header.json says: read once, while every row of a list asks."""
    try:
        values = files.from_json(files.read_small(path), path.name)
    except Large2SmallError:
        return ""
    place = values.get("run") if isinstance(values, dict) else None
    return place if isinstance(place, str) and os.path.isabs(place) else ""


def known_network(name: str, source: str, flag: str) -> str:
    """`name`, where a file may name it: architectures and weights of timm's and this project's own lists.

    Raises UsageError for what leads to a hub or a folder of the file's author's choice: only a user may type
    that.
    """
    if not any(mark in name for mark in ":/\\"):
        return name
    raise UsageError(
        f"{source}: names {name!r} as its network. What a file names must be in timm's lists or this"
        f" project's; all else is only followed when typed. If you trust it: {flag} {_typed(name)}"
    )


def is_plain(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a folder or a regular file (followed through links), outside of SYSTEM_FOLDERS."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    real = os.path.realpath(path)
    is_system = any(_is_in(real, folder) for folder in SYSTEM_FOLDERS) and not _is_in(real, MEMORY_DISK)
    return (stat.S_ISDIR(mode) or stat.S_ISREG(mode)) and not is_system


def _is_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _typed(spec: str) -> str:
    """`spec` as an example to type; nothing that a shell or a reader could run is offered for that."""
    is_harmless = "pipe:" not in spec and all(letter.isalnum() or letter in "/._-:{}" for letter in spec)
    return spec if is_harmless else "SPEC"
