"""Images: decoding them, and sets of labeled ones by name."""

from .by_name import has_own_split, open_images
from .folder import EXTENSIONS, SPLIT_FOLDERS, FolderSet
from .sets import ArraySet, ImageSet

__all__ = ["EXTENSIONS", "SPLIT_FOLDERS", "ArraySet", "FolderSet", "ImageSet", "has_own_split", "open_images"]
