"""Look through a folder of class folders, without taking anything for a class that is not one.

The first level is the class. Hidden and system files are left out and counted. Where a tree can be read in
two ways, it is refused with a path of each.

In:  a folder.
Out: a `Tree`: (class, path) of every image; what was left out.
Elsewhere: order (runtime.images.order), the set made from it (runtime.images.folder).
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError
from ..recorded import is_plain
from .order import class_key, file_key
from .summary import LeftOut, shown

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
OTHER_IMAGES = {
    *(".tif", ".tiff", ".gif", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".jfif", ".ppm", ".pgm", ".pbm"),
    *(".tga", ".psd", ".dng", ".cr2", ".nef", ".arw", ".raw", ".exr", ".hdr", ".dcm", ".svg", ".ico"),
}
"""Suffixes of images that are not read: a class that only has these is not passed over in silence."""
ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"}
"""Suffixes of files that may hold images and are not opened: the same goes for these."""
SYSTEM_NAMES = {
    *("@eadir", "__macosx", "$recycle.bin", "system volume information", "lost+found", "#recycle"),
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__pycache__"),
}
"""What systems put beside people's images, in lower case; names that begin with a dot are hidden anyway."""
WAY_OUT = "Give a list of path,label instead (--data FILE.csv), or put the images of a class in one folder"


@dataclass
class Tree:
    """What is in a folder of class folders."""

    root: str
    images: list[tuple[str, str]] = field(default_factory=list)
    """(class, path below the root), in timm's order."""
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)
    """Folder below the root -> its first image."""
    unread: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """First level -> suffixes of images that are not read."""
    first_level: list[str] = field(default_factory=list)

    def leave_out(self, reason: str, path: str, count: int = 1) -> None:
        """Count what is not in the set."""
        self.reasons[reason] += count
        self.examples.setdefault(reason, os.path.join(self.root, path))

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """The most frequent reason first."""
        ordered = sorted(self.reasons.items(), key=lambda pair: (-pair[1], pair[0]))
        return tuple(LeftOut(reason, count, self.examples[reason]) for reason, count in ordered)


def is_system(name: str) -> bool:
    """Whether a file or folder is hidden or a system's own."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def scan(root: str | Path) -> Tree:
    """Every image below `root` with its class. Raises DataError where the classes are not clear, and for a
    folder of the system (/proc, /sys, /dev); one below `root` is left out.
    """
    if os.path.isdir(root) and not is_plain(root):
        raise DataError(f"{root}: a folder of the system, which holds no images. Give a folder of images")
    tree = Tree(str(root))
    _walk(tree)
    tree.images.sort(key=lambda pair: file_key(pair[1]))
    for _, path in tree.images:
        tree.folders.setdefault(os.path.dirname(path), path)
    _require_class_folders(tree)
    _require_one_depth(tree)
    _require_one_parent(tree)
    _require_no_lost_class(tree)
    return tree


def _walk(tree: Tree) -> None:
    root = os.path.realpath(tree.root)
    above = {_identity(place) for place in (root, *map(str, Path(root).parents))}
    seen = {_identity(root): ""}
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset(above))]
    while waiting:
        below, chain = waiting.pop()
        for entry in _entries(os.path.join(tree.root, below) if below else tree.root):
            path = os.path.join(below, entry.name) if below else entry.name
            if is_system(entry.name):
                tree.leave_out("hidden or system files", path, _files_in(entry))
            elif _is_folder(entry):
                inside = _enter(tree, entry, path, chain, seen)
                if inside is not None:
                    waiting.append((path, inside))
                    if not below:
                        tree.first_level.append(path)
            else:
                _take(tree, entry, below, path)


def _enter(
    tree: Tree,
    entry: os.DirEntry[str],
    path: str,
    chain: frozenset[tuple[int, int]],
    seen: dict[tuple[int, int], str],
) -> frozenset[tuple[int, int]] | None:
    """The chain of folders down to `entry`, or None for a link that leads back up and for a folder of the
    system; each folder once.
    """
    one = _identity(entry.path)
    if not _is_ordinary(entry.path, next(iter(seen))[0]):  # the first one seen is the root
        tree.leave_out("folders of the system", path)
        return None
    if one in chain:
        tree.leave_out("links to a folder above them", path)
        return None
    if one in seen:
        raise DataError(
            f"{os.path.join(tree.root, path)} and {os.path.join(tree.root, seen[one])} are one folder (a"
            " link). Its images would count twice: remove one of them"
        )
    seen[one] = path
    return chain | {one}


def _take(tree: Tree, entry: os.DirEntry[str], below: str, path: str) -> None:
    suffix = os.path.splitext(entry.name)[1].lower()
    if entry.is_symlink() and not os.path.exists(entry.path):
        tree.leave_out("broken links", path)
    elif suffix in EXTENSIONS:
        tree.images.append((path.split(os.sep, 1)[0], path))
    else:
        convert = " (convert them to .png)" if suffix in OTHER_IMAGES else ""
        unpack = " (unpack them)" if suffix in ARCHIVES else ""
        tree.leave_out(f"{suffix or 'suffixless'} files{convert}{unpack}", path)
        if (convert or unpack) and below:
            tree.unread[path.split(os.sep, 1)[0]][suffix] += 1


def _require_class_folders(tree: Tree) -> None:
    root = tree.root
    if not tree.images:
        why = f"; left out: {'; '.join(each.line() for each in tree.left_out)}" if tree.reasons else ""
        why += f". For its arrays give npz:{root}" if tree.reasons[".npz files"] else ""
        raise DataError(
            f"{root}: no images found ({', '.join(EXTENSIONS)}). Expected {root}/CLASS/image.jpg{why}"
        )
    if "" in tree.folders:
        raise DataError(
            f"{os.path.join(root, tree.folders[''])}: is not in a class folder. Expected"
            f" {root}/CLASS/image.jpg"
        )


def _require_one_depth(tree: Tree) -> None:
    depths: dict[int, str] = {}
    for folder in sorted(tree.folders, key=file_key):
        depths.setdefault(folder.count(os.sep), tree.folders[folder])
    if len(depths) > 1:
        one, two = (os.path.join(tree.root, depths[depth]) for depth in sorted(depths)[:2])
        raise DataError(f"{one} and {two}: images at two depths, so their classes are not clear. {WAY_OUT}")


def _require_one_parent(tree: Tree) -> None:
    """A tree of YEAR/CLASS/image and one of CLASS/DAY/image look the same: one leaf name under two parents.

    Where all classes hold one folder of one name (CLASS/images), only the first level can be meant.
    """
    leaves = {os.path.basename(folder) for folder in tree.folders}
    classes = {folder.split(os.sep, 1)[0] for folder in tree.folders}
    if len(leaves) == 1 and len(classes) == len(tree.folders) > 1:
        return
    parents: dict[str, str] = {}
    for folder in sorted(tree.folders, key=file_key):
        if os.sep not in folder:
            continue
        other = parents.setdefault(os.path.basename(folder), folder)
        if other.split(os.sep, 1)[0] != folder.split(os.sep, 1)[0]:
            one, two = (os.path.join(tree.root, each) for each in (other, folder))
            raise DataError(
                f"{one} and {two}: one name under two folders. It is not clear which of the two levels is"
                f" the class. {WAY_OUT}"
            )


def _require_no_lost_class(tree: Tree) -> None:
    classes = {name for name, _ in tree.images}
    for name in sorted(set(tree.first_level) - classes, key=class_key):
        if tree.unread.get(name):
            suffixes = ", ".join(f"{count} {suffix}" for suffix, count in tree.unread[name].items())
            raise DataError(
                f"{os.path.join(tree.root, name)}: holds images that are not read ({suffixes}) and no other."
                f" Convert them to one of {', '.join(EXTENSIONS)}, unpack archives, or remove the folder"
            )
        tree.leave_out("folders without images", name)
    if len(classes) == 1:
        only = next(iter(classes))
        inner = sorted(
            {folder.split(os.sep)[1] for folder in tree.folders if os.sep in folder}, key=class_key
        )
        if len(inner) > 1:
            raise DataError(
                f"{tree.root}: one class ({only!r}) cannot be classified. If {shown(inner)} are the classes,"
                f" give the folder below: {os.path.join(tree.root, only)}"
            )


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror or error})") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _files_in(entry: os.DirEntry[str]) -> int:
    """Files in a folder that is left out; 1 for a file, a link or an empty folder."""
    if not entry.is_dir(follow_symlinks=False):
        return 1
    return max(1, sum(1 for _ in files_below(entry.path)))


def files_below(folder: str, enters: Callable[[str], bool] = lambda name: True) -> Iterator[str]:
    """Paths of what is not a folder, at any depth; links to folders are not followed, folders that cannot be
    listed or are the system's are passed over. enters: whether to look into a folder of this name.
    """
    waiting = [folder] if is_plain(folder) else []
    disk = os.stat(folder).st_dev if waiting else 0
    while waiting:
        try:
            entries = _entries(waiting.pop())
        except DataError:
            continue
        for entry in entries:
            if not _is_folder(entry):
                yield entry.path
            elif not entry.is_symlink() and enters(entry.name) and _is_ordinary(entry.path, disk):
                waiting.append(entry.path)


def _is_ordinary(folder: str, disk: int) -> bool:
    """Whether a folder is not one of the system's, each of which is a disk of its own."""
    try:
        return os.stat(folder).st_dev == disk or is_plain(folder)
    except OSError:  # gone meanwhile
        return False
