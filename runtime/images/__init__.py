"""Images: decoding them, and sets of labeled ones by name."""

from .by_name import has_own_split, open_images
from .folder import EXTENSIONS, SPLIT_FOLDERS, FileSet, FolderSet
from .sets import ArraySet, ImageSet
from .summary import LeftOut, Overlap, Summary

__all__ = [
    "EXTENSIONS",
    "SPLIT_FOLDERS",
    "ArraySet",
    "FileSet",
    "FolderSet",
    "ImageSet",
    "LeftOut",
    "Overlap",
    "Summary",
    "has_own_split",
    "open_images",
]
