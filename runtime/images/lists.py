"""Labeled images in a list: a text file with a path and a label in each row (CSV, TSV, or apart by blanks).

In:  `FILE` or `csv:FILE`, where needed with `#image=COLUMN&label=COLUMN` behind it, and the split.
Out: a `FileSet`, or a `Subset` of an npz file that the rows name; DataError with the line that is wrong.
Elsewhere: folders (runtime.images.folder), making a list of a split (runtime.images.split).
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode

import numpy as np

from ..errors import DataError
from .folder import SPLIT_FOLDERS, FileSet
from .npz import open_npz
from .order import ordered_classes, same_name
from .sets import ImageSet, Subset
from .summary import LeftOut

SUFFIXES = (".csv", ".tsv", ".txt")
IMAGE_COLUMNS = (
    "path",
    "image",
    "image_path",
    "filepath",
    "file_path",
    "filename",
    "file_name",
    "file",
    "img",
)
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target", "species")
SPLIT_COLUMNS = ("split", "set", "subset", "partition")
IN_NPZ = re.compile(r"npz:(.+)\[(\d+)\]")


class Row(NamedTuple):
    """One image of a list."""

    path: str
    """As written, or made absolute where it is relative to the list."""
    label: str
    split: str = ""
    class_index: str = ""
    place: str = ""


def is_list(spec: str) -> bool:
    """Whether `spec` names a list of images."""
    return spec.startswith("csv:") or (spec.lower().endswith(SUFFIXES) and not os.path.isdir(spec))


def with_columns(spec: str, image: str, label: str) -> str:
    """The spec of a list with the names of its columns, as --csv-image and --csv-label give them."""
    named = {key: value for key, value in (("image", image), ("label", label)) if value}
    return f"csv:{spec.removeprefix('csv:').partition('#')[0]}#{urlencode(named)}" if named else spec


def file_of(spec: str) -> Path:
    """The list's own file."""
    return Path(spec.removeprefix("csv:").partition("#")[0])


def open_list(spec: str, split: str) -> ImageSet:
    """The images of `split` where a column names splits, otherwise all of the list."""
    rows = read(spec)
    names = _class_names(rows, spec)
    chosen = _of_split(rows, split, spec)
    index = {same_name(name): i for i, name in enumerate(names)}
    labels = np.array([index[same_name(row.label)] for row in chosen])
    if IN_NPZ.fullmatch(chosen[0].path):
        return _in_npz(chosen, names, spec)
    files, double = _once(chosen, spec)
    gone = [row.path for row in files if not os.path.exists(row.path)]
    if len(gone) == len(files):
        raise DataError(
            f"{file_of(spec)}: not a folder, and not a list of images: none of its {len(files)} paths is"
            f" there, the first is {gone[0]}"
        )
    if gone:
        raise DataError(f"{spec}: {len(gone)} of {len(files)} images are not there, the first is {gone[0]}")
    labels = np.array([index[same_name(row.label)] for row in files])
    images = FileSet(str(file_of(spec)), names, labels, [Path(row.path) for row in files])
    images.left_out = (LeftOut("rows of a file listed before", len(double), double[0]),) if double else ()
    return images


def has_splits(spec: str) -> bool:
    """Whether the list has a column of splits with validation images in it."""
    return any(row.split.lower() in SPLIT_FOLDERS["val"] for row in read(spec))


def read(spec: str) -> list[Row]:
    """All rows. Raises DataError for what is not a list of images."""
    path = file_of(spec)
    asked = dict(parse_qsl(spec.partition("#")[2])) if spec.startswith("csv:") else {}
    if not path.is_file():
        raise DataError(f"{path}: no such list. Expected a text file with path,label in each row")
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
        cells = [(n, row) for n, row in enumerate(_cells(text), 1) if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise DataError(f"{path}: not a list of images ({error}). Expected path,label in each row") from error
    if not cells:
        raise DataError(f"{path}: an empty list. Expected path,label in each row")
    columns = _columns(cells[0][1], asked, path)
    body = cells[1:] if columns.has_header else cells
    if not body:
        raise DataError(f"{path}: a header and no images. Expected path,label in each row below it")
    return [_row(row, number, columns, path) for number, row in body]


class _Columns(NamedTuple):
    image: int
    label: int
    split: int | None
    class_index: int | None
    place: int | None
    has_header: bool


def _cells(text: str) -> list[list[str]]:
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = next((each for each in "\t,;" if each in first), None)
    if delimiter is None:  # path label, as many text lists are written; a path may hold blanks
        return [line.rsplit(None, 1) for line in text.splitlines()]
    return list(csv.reader(text.splitlines(), delimiter=delimiter, skipinitialspace=True))


def _columns(first: Sequence[str], asked: dict[str, str], path: Path) -> _Columns:
    header = [cell.strip().lower() for cell in first]

    def find(known: Sequence[str], wanted: str = "") -> int | None:
        if wanted and wanted.lower() not in header:
            raise DataError(f"{path}: no column {wanted!r}. Its header has: {', '.join(first)}")
        return next(
            (header.index(name) for name in ([wanted.lower()] if wanted else known) if name in header), None
        )

    image, label = find(IMAGE_COLUMNS, asked.get("image", "")), find(LABEL_COLUMNS, asked.get("label", ""))
    if image is None and label is None and len(header) == 2:
        return _Columns(0, 1, None, None, None, False)
    if len(header) == 2:
        image = 1 - label if image is None and label is not None else image
        label = 1 - image if label is None and image is not None else label
    if image is None or label is None:
        raise DataError(
            f"{path}: which columns hold path and label is not clear from its first row ({', '.join(first)})."
            " Name them: --csv-image COLUMN --csv-label COLUMN"
        )
    return _Columns(image, label, find(SPLIT_COLUMNS), find(("class_index",)), find(("place",)), True)


def _row(cells: Sequence[str], number: int, columns: _Columns, path: Path) -> Row:
    values = [
        cells[column].strip() if column is not None and column < len(cells) else "" for column in columns[:5]
    ]
    if not values[0] or not values[1]:
        raise DataError(f"{path}, line {number}: expected a path and a label, found {','.join(cells)!r}")
    if "://" in values[0]:
        raise DataError(f"{path}, line {number}: {values[0]}: images are read from this disk, not from a URL")
    if not IN_NPZ.fullmatch(values[0]):
        values[0] = os.path.normpath(os.path.join(os.path.abspath(path.parent), values[0]))
    return Row(*values)


def _of_split(rows: list[Row], split: str, spec: str) -> list[Row]:
    if not any(row.split for row in rows):
        return rows
    present = {row.split.lower() for row in rows}
    word = next((word for word in SPLIT_FOLDERS[split] if word in present), None)
    if word is None:
        raise DataError(
            f"{spec}: its column of splits has {', '.join(sorted(present))} and nothing for {split}. Expected"
            f" one of {', '.join(SPLIT_FOLDERS[split])}"
        )
    return [row for row in rows if row.split.lower() == word]


def _class_names(rows: list[Row], spec: str) -> list[str]:
    if not all(row.class_index.isdecimal() for row in rows):
        return ordered_classes((row.label for row in rows), spec)
    order = {int(row.class_index): row.label for row in rows}
    if sorted(order) != list(range(len(order))) or len({(row.class_index, row.label) for row in rows}) != len(
        order
    ):
        raise DataError(f"{spec}: class_index must number the classes from 0 on, each with one label")
    return [order[i] for i in range(len(order))]


def _once(rows: list[Row], spec: str) -> tuple[list[Row], list[str]]:
    """Rows of distinct files, and the files that are listed again. Raises DataError for two labels."""
    found: dict[str, Row] = {}
    double = []
    for row in rows:
        other = found.setdefault(row.path, row)
        if other is not row:
            double.append(row.path)
            if same_name(other.label) != same_name(row.label):
                raise DataError(
                    f"{spec}: {row.path} has two labels, {other.label!r} and {row.label!r}. Several labels"
                    " for an image are not supported: keep one"
                )
    return list(found.values()), double


def _in_npz(rows: list[Row], names: list[str], spec: str) -> ImageSet:
    found = [IN_NPZ.fullmatch(row.path) for row in rows]
    files = {match[1] for match in found if match}
    if len(files) != 1 or None in found:
        raise DataError(
            f"{spec}: rows of more than one npz file, or of npz and image files. Expected one file"
        )
    images = open_npz(files.pop(), "train")
    chosen = np.array([int(match[2]) for match in found if match])
    own = [images.class_names[label] for label in images.labels[chosen[chosen < len(images)]]]
    if own != [row.label for row in rows] or images.class_names != names:
        raise DataError(f"{spec}: does not belong to {images.name}, whose labels are others")
    return Subset(images, chosen)
