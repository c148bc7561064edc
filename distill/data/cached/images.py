"""A set of images that decodes each of them once.

In:  an `ImageSet`, and --cache, --cache-limit, --cache-folder.
Out: an `ImageSet` that gives the same pixels.
Elsewhere: the files (distill.data.cached.store), images on the device (distill.data.cached.on_device).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import weakref
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from runtime import files
from runtime.errors import MissingError, UsageError
from runtime.images import ImageSet
from runtime.images.decode import exif_of, orientation
from runtime.images.order import as_bytes
from runtime.images.sets import Within
from runtime.preprocess import Preprocess

from ...recipe import Recipe
from ..augment import side_needed
from ..sets import StreamSet
from .store import Store

SHARED_MEMORY = Path("/dev/shm")
"""Where Linux has a folder in memory."""
FREE = 0.5
"""Share of the free room that is taken where --cache-limit says nothing."""
DECODED = 1
"""Version of what is kept: another one decodes to other pixels."""


def cached(images: ImageSet, recipe: Recipe, preprocess: Preprocess) -> ImageSet:
    """The training images, kept as --cache says once they are decoded. Those that are in memory already are
    given back.

    Raises UsageError for images that cannot be kept so, MissingError where there is no place for them.
    """
    if recipe.cache not in ("ram", "disk"):
        return images
    if isinstance(images, StreamSet):
        raise UsageError(f"--cache {recipe.cache}: {images.name} is a stream. Unpack it into a folder")
    if images.is_decoded:
        return images
    if recipe.cache == "ram":
        return CachedSet(images, *_in_memory(images, recipe.cache_limit))
    if images.stamp(0) is None:
        raise UsageError(
            f"--cache disk: the images of {images.name} are not files of their own, so that nobody could see"
            " when one changes. Give --cache ram"
        )
    folder = _folder(images, recipe, side_needed(recipe, preprocess))
    return CachedSet(images, Store(folder, len(images), _limit(folder, recipe.cache_limit)))


def _in_memory(images: ImageSet, limit: float) -> tuple[Store, ExitStack]:
    """A store in a folder that goes with what is given back beside it."""
    if not SHARED_MEMORY.is_dir() or not os.access(SHARED_MEMORY, os.W_OK):
        raise MissingError(
            f"--cache ram keeps images in {SHARED_MEMORY}, which this system lacks. Give --cache disk"
        )
    stack = ExitStack()
    folder = stack.enter_context(files.scratch_folder(SHARED_MEMORY))
    return Store(folder, len(images), _limit(folder, limit)), stack


def _folder(images: ImageSet, recipe: Recipe, side: int) -> Path:
    """A folder of these images at this size; one that holds others has another name."""
    root = Path(recipe.cache_folder) if recipe.cache_folder else default_root()
    digest = hashlib.sha256(as_bytes(f"{DECODED} {PIL.__version__} {side} {len(images)} "))
    digest.update(images.fingerprint().encode())
    for index in range(len(images)):  # the fingerprint has the names alone, and two folders may share them
        digest.update(as_bytes(os.path.abspath(images.item_name(index))))
    folder = root / digest.hexdigest()[:20]
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise files.explained(error, folder) from error
    return folder


def default_root() -> Path:
    """Where images are kept on the disk where --cache-folder says nothing."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "large2small" / "images"


def _limit(folder: Path, asked: float) -> int:
    """Bytes that the images may take. asked: GB, 0 for a share of what is free."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise files.explained(error, folder) from error
    return int(asked * 1e9) if asked else int(free * FREE)


class CachedSet(Within):
    """Another set's images, each decoded once."""

    def __init__(self, images: ImageSet, store: Store, place: ExitStack | None = None) -> None:
        """place: what removes the store's files, called when this set goes in the process that made it."""
        super().__init__(images)
        self.store = store
        if place is not None:
            _places[store.folder] = place
            weakref.finalize(self, _close, store.folder, os.getpid())

    def image(self, index: int) -> Any:
        stamp = self.images.stamp(index)
        kept = self.store.read(index, stamp)
        if kept is None:
            image = self.images.image(index)
            self.store.write(index, np.asarray(image), orientation(image), stamp)
            return image
        found = Image.fromarray(kept.pixels)
        if kept.orientation != 1:
            found.info["exif"] = exif_of(kept.orientation)
        return found


_places: dict[Path, ExitStack] = {}
"""Folders in memory and what removes them; not kept by the sets, because it removes them when it goes."""


def _close(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked process has the set, too, and goes first
        _places.pop(folder).close()
