"""Image files as a person names them: a file, a folder, or a pattern with * in it.

In:  words of a command line.
Out: the paths of image files, each once, in natural order inside of a folder; UsageError for a word that
     names none.
Elsewhere: sets of labeled images (runtime.images.folder), decoding (runtime.images.decode).
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator

from ..errors import UsageError
from .order import file_key
from .scan import EXTENSIONS, files_below, is_system

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def image_files(words: Iterable[str]) -> list[str]:
    """The image files that `words` name. A file that is named itself is taken whatever its ending.

    Raises UsageError for a URL, for what is not there, and for a folder or pattern without an image.
    """
    return list(dict.fromkeys(path for word in words for path in _named_by(word)))


def _named_by(word: str) -> list[str]:
    if os.path.isdir(word):
        found = _inside(word)
        what = f"no images in this folder ({', '.join(EXTENSIONS)})"
    elif os.path.lexists(word):
        return [word]
    elif URL.match(word):
        raise UsageError(f"{word}: images are read from this disk, not from a URL. Download it first")
    elif glob.has_magic(word):
        matches = sorted(_without_repeats(_matching(word)), key=file_key)
        found = [path for match in matches for path in (_inside(match) if os.path.isdir(match) else [match])]
        what = "matches no image"
    else:
        raise UsageError(
            f"{word}: no such file or folder. Expected an image, a folder or a pattern such as 'DIR/*.jpg'"
        )
    if not found:
        raise UsageError(
            f"{word}: {what}. Expected an image, a folder of images or a pattern such as 'DIR/*.jpg'"
        )
    return found


def _matching(pattern: str) -> list[str]:
    try:
        return glob.glob(pattern, recursive=True)
    except RecursionError as error:  # glob calls itself for each level of **
        raise UsageError(f"{pattern}: folders in one another are too many for **. Give a folder") from error


def _without_repeats(matches: Iterable[str]) -> Iterable[str]:
    """Each file once, by its shortest path: `**` goes through links, those that lead back up as well."""
    return {os.path.realpath(path): path for path in sorted(matches, key=len, reverse=True)}.values()


def _inside(folder: str) -> list[str]:
    return sorted(_walk(folder), key=file_key)


def _walk(folder: str) -> Iterator[str]:
    """Every image below a folder; hidden files and folders are left out, links to folders not followed."""
    for path in files_below(folder, lambda name: not is_system(name)):
        name = os.path.basename(path)
        if not is_system(name) and os.path.splitext(name)[1].lower() in EXTENSIONS:
            yield path
