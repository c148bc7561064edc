"""The order of classes and files: the same in every process and on every machine.

In:  names.
Out: sort keys, total: names that are equal for a person still have one order.
Elsewhere: finding the names (runtime.images.scan).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from ..errors import DataError

DIGITS = re.compile(r"(\d{1,500})")
"""A number in a name; Python refuses to read one of thousands of digits."""


def natural_key(text: str) -> list[Any]:
    """Sort key that reads runs of decimal digits as numbers: class2 before class10."""
    return [int(part) if part.isdecimal() else part for part in DIGITS.split(text.lower())]


def file_key(path: str) -> tuple[list[Any], str]:
    """`natural_key`, and for paths that it takes for equal (A.png, a.png; 1.png, 01.png) the path itself."""
    return natural_key(path), path


def class_key(name: str) -> tuple[list[Any], str]:
    """`file_key` of the name in Unicode's composed form, so that one class has one place however its
    accents were stored.
    """
    return file_key(same_name(name))


def same_name(name: str) -> str:
    """The name in Unicode's composed form (NFC): macOS stores accents apart from their letters."""
    return unicodedata.normalize("NFC", name)


def ordered_classes(names: Iterable[str], where: str) -> list[str]:
    """Class names in order. Raises DataError for two that only differ in how accents are stored."""
    found: dict[str, str] = {}
    for name in set(names):
        other = found.setdefault(same_name(name), name)
        if other != name:
            raise DataError(
                f"{where}: two classes are called {same_name(name)!r}, one with accents stored apart"
                " from their letters (Unicode NFD). Put their images in one folder"
            )
    return sorted(found.values(), key=class_key)


def as_bytes(text: str) -> bytes:
    """UTF-8, also of names that the disk holds in another encoding."""
    return text.encode("utf-8", "surrogatepass")
