"""Labeled images in a list: a text file with a path and a label in each row (CSV, TSV, or apart by blanks).

In:  `FILE` or `csv:FILE`, where needed with `#image=COLUMN&label=COLUMN` behind it, and the split; a folder
     that holds a list for each split (train.csv, val.csv).
Out: a `FileSet`, or a `Subset` of an npz file that the rows name; DataError with the line that is wrong.
Elsewhere: folders (runtime.images.folder), making a list of a split (runtime.images.split).
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode

import numpy as np

from ..errors import DataError
from ..files import open_regular, read_small
from ..recorded import found_again, joined, parts_of
from .folder import SPLIT_FOLDERS, FileSet, has_class_folders
from .npz import open_npz
from .order import ordered_classes, same_name
from .scan import EXTENSIONS, files_below, is_system
from .sets import ImageSet, Subset
from .summary import LeftOut

SUFFIXES = (".csv", ".tsv", ".txt")
IMAGE_COLUMNS = (
    *("path", "image", "image_path", "filepath", "file_path", "filename", "file_name", "file", "img"),
    *("img_path", "image_name", "image_file", "image_id", "img_name"),
)
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target", "species", "class_id")
SPLIT_COLUMNS = ("split", "set", "subset", "partition")
FIRST_ROWS = 20
"""Rows whose images are looked for, to know which folder a list's paths start from."""
MOST_OF_A_LIST = 2**16
"""Characters of a file that are read to see whether it is a list."""
MOST_OF_LISTS = 2**30
"""Bytes of a list."""
IN_NPZ = re.compile(r"npz:(.+)\[([0-9]{1,18})\]")
"""An image of an npz file, as a split's list names it; 18 digits fit 64 bits."""
DIGITS_OF_A_CLASS = 9
"""Of its number, at most."""


class Row(NamedTuple):
    """One image of a list."""

    path: str
    """Absolute."""
    label: str
    split: str = ""
    class_index: str = ""
    place: str = ""


def is_list(spec: str) -> bool:
    """Whether `spec` names a list of images."""
    return spec.startswith("csv:") or (spec.lower().endswith(SUFFIXES) and not os.path.isdir(spec))


def with_columns(spec: str, image: str, label: str) -> str:
    """The spec of a list, or of a folder of lists, with the names of the columns, as --csv-image and
    --csv-label give them; other specs as they are.
    """
    named = {key: value for key, value in (("image", image), ("label", label)) if value}
    if not named or not (is_list(spec) or _lists_of_splits(Path(spec))):
        return spec
    return joined("csv:", file_of(spec), urlencode(named))


def file_of(spec: str) -> Path:
    """The list's own file, or the folder of lists."""
    return Path(parts_of(spec)[1])


def list_in(folder: Path, split: str, columns: str = "") -> Path | None:
    """The list of `split` in a folder, named as a folder of that split would be (train.csv, val.txt).

    None where class folders of the split are there as well, for a single file that is not clearly a list of
    images, and for files that name no image beside class folders. Raises DataError for two lists of a split.
    """
    found = _lists_of_splits(folder)
    if split not in found or has_class_folders(folder, split):
        return None
    if not columns and _is_classes(folder) and not any(map(_names_images, found.values())):
        return None  # a note or a table about the photos
    return found[split] if len(found) > 1 or _is_clear(joined("csv:", found[split], columns)) else None


def holds_lists(folder: Path) -> bool:
    """Whether a folder holds the list of a split."""
    return any(list_in(folder, split) for split in SPLIT_FOLDERS)


def _lists_of_splits(folder: Path) -> dict[str, Path]:
    try:
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror or error})") from error
    by_word: dict[str, list[Path]] = {}
    for name in names:
        stem, suffix = os.path.splitext(name.lower())
        if suffix in SUFFIXES and not is_system(name) and _has_columns(folder / name):
            by_word.setdefault(stem, []).append(folder / name)
    found = {}
    for split, words in SPLIT_FOLDERS.items():
        places = next((by_word[word] for word in words if word in by_word), [])
        if len(places) > 1:
            raise DataError(f"{places[0]} and {places[1]}: two lists for {split}. Rename one of them")
        if places:
            found[split] = places[0]
    return found


def _has_columns(path: Path) -> bool:
    """Whether the first line has more than one cell: a list without labels has no labeled images."""
    if not path.is_file():
        return False
    try:
        with open_regular(path) as file:
            begin = file.read(MOST_OF_A_LIST).decode("utf-8-sig", errors="surrogateescape")
            return any(len(row) > 1 for row in _cells(begin.strip().partition("\n")[0]))
    except (OSError, csv.Error):
        return False


def _is_classes(folder: Path) -> bool:
    """Whether two or more folders of images are in it whose names do not say that they belong to a list."""
    words = "|".join(
        ("image", "images", "img", *(word for words in SPLIT_FOLDERS.values() for word in words))
    )
    inside = (each for each in folder.iterdir() if each.is_dir() and not is_system(each.name))
    classes = (each for each in inside if not re.match(rf"({words})([^a-z]|$)", each.name.lower()))
    return sum(any(_names_an_image(path) for path in files_below(str(each))) for each in classes) > 1


def _names_images(path: Path) -> bool:
    """Whether one of the first rows of a list names an image: by its suffix, in an npz file, or a file."""
    try:
        first = read(f"csv:{path}", FIRST_ROWS)
    except DataError:
        return False
    return any(
        _names_an_image(row.path) or IN_NPZ.fullmatch(row.path) or os.path.isfile(row.path) for row in first
    )


def _is_clear(spec: str) -> bool:
    try:
        return bool(read(spec))
    except DataError:
        return False


def open_list(spec: str, split: str) -> ImageSet:
    """The images of `split` where a column names splits, otherwise all of the list; of a folder its list."""
    spec = _list_of(spec, split)
    rows = read(spec)
    names = _class_names(rows, spec)
    chosen = _of_split(rows, split, spec)
    index = {same_name(name): i for i, name in enumerate(names)}
    if IN_NPZ.fullmatch(chosen[0].path):
        return _in_npz(chosen, names, spec)
    files, double = _once(chosen, spec)
    gone = [row.path for row in files if not os.path.exists(row.path)]
    if len(gone) == len(files) and files[0].place:
        raise DataError(
            f"{file_of(spec)}: none of its {len(files)} images is there, the first is {gone[0]}. If they"
            " moved, say where they are: --data DIR (train --resume RUN --data DIR writes this list anew)"
        )
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
    """Whether the list has a column of splits with validation images in it, or the folder a list of them."""
    if file_of(spec).is_dir():
        return list_in(file_of(spec), "val", parts_of(spec)[2]) is not None
    return any(row.split.lower() in SPLIT_FOLDERS["val"] for row in read(spec))


def _list_of(spec: str, split: str) -> str:
    """The spec of the list itself where it names a folder of lists."""
    folder, columns = file_of(spec), parts_of(spec)[2]
    if not folder.is_dir():
        return spec
    found = list_in(folder, split, columns)
    if found is None:
        raise DataError(
            f"{folder}: holds a list of images, but none for {split}. Expected one of"
            f" {', '.join(f'{word}.csv' for word in SPLIT_FOLDERS[split])} in it, or class folders"
        )
    return joined("csv:", found, columns)


def read(spec: str, most: int | None = None) -> list[Row]:
    """All rows, or the first `most`. Raises DataError for what is not a list of images."""
    path = file_of(spec)
    asked = dict(parse_qsl(parts_of(spec)[2]))
    if not path.is_file():
        raise DataError(f"{path}: no such list. Expected a text file with path,label in each row")
    try:
        text = read_small(path, MOST_OF_LISTS).decode("utf-8-sig", errors="surrogateescape")
        cells = [(n, row) for n, row in enumerate(_cells(text), 1) if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise DataError(f"{path}: not a list of images ({error}). Expected path,label in each row") from error
    if not cells:
        raise DataError(f"{path}: an empty list. Expected path,label in each row")
    columns = _columns(cells[0][1], cells[-1][1], asked, path)
    body = cells[1:] if columns.has_header else cells
    if not body:
        raise DataError(f"{path}: a header and no images. Expected path,label in each row below it")
    first = [row[columns.image].strip() for _, row in body[:FIRST_ROWS] if len(row) > columns.image]
    home = _home(first, path)
    rows = [_row(row, number, columns, path, home) for number, row in body[:most]]
    if found_again(rows[0].path, path.parent) == rows[0].path:
        return rows
    return [row._replace(path=found_again(row.path, path.parent)) for row in rows]


def _home(first: Sequence[str], path: Path) -> Path:
    """The folder that a list's paths start from: its own, or one folder in it (images/, train_images/), or
    the one above, whichever has one of the `first`.
    """
    own = Path(os.path.abspath(path.parent))

    def has_one(folder: Path) -> bool:
        return any(os.path.exists(folder / name) for name in first if not IN_NPZ.fullmatch(name))

    if has_one(own):
        return own
    inside = [each for each in own.iterdir() if each.is_dir() and not is_system(each.name) and has_one(each)]
    chosen = [each for each in inside if each.name.lower().startswith(path.stem.lower())] or inside
    if len(chosen) > 1:
        one, two, *_ = sorted(chosen)
        raise DataError(
            f"{path}: its images are in {one} and in {two}. Write the folder into the paths of the list"
        )
    return chosen[0] if chosen else own.parent if has_one(own.parent) else own


class _Columns(NamedTuple):
    image: int
    label: int
    split: int | None
    class_index: int | None
    place: int | None
    has_header: bool


def _cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines()[: 2 * FIRST_ROWS] if line.strip()][:FIRST_ROWS]
    delimiter = next((each for each in "\t,;" if _is_table(lines, each)), None) or next(
        (each for each in "\t,;" if lines and each in lines[0]), None
    )
    if delimiter is None:  # path label, as many text lists are written; a path may hold blanks
        return [line.rsplit(None, 1) for line in text.splitlines()]
    rows = io.StringIO(text, newline="")  # the name of a file may hold a line break
    return list(csv.reader(rows, delimiter=delimiter, skipinitialspace=True))


def _is_table(lines: Sequence[str], delimiter: str) -> bool:
    """Whether all lines have the same number of cells, two or more."""
    widths = {len(row) for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True)}
    return len(widths) == 1 and widths != {1}


def _columns(first: Sequence[str], last: Sequence[str], asked: dict[str, str], path: Path) -> _Columns:
    """What the columns are: by the words of the first row, and where these are not known, by the last row."""
    header = [cell.strip().lower() for cell in first]

    def find(known: Sequence[str], wanted: str = "") -> int | None:
        if wanted and wanted.lower() not in header:
            raise DataError(f"{path}: no column {wanted!r}. Its header has: {', '.join(first)}")
        return next(
            (header.index(name) for name in ([wanted.lower()] if wanted else known) if name in header), None
        )

    image, label = find(IMAGE_COLUMNS, asked.get("image", "")), find(LABEL_COLUMNS, asked.get("label", ""))
    if image is None and label is None and len(header) == 2:
        named = [_names_an_image(cell) for cell in last]
        image = 1 if named == [False, True] else 0
        return _Columns(image, 1 - image, None, None, None, any(named) and not _names_an_image(first[image]))
    if len(header) == 2:
        image = 1 - label if image is None and label is not None else image
        label = 1 - image if label is None and image is not None else label
    if image is None or label is None:
        raise DataError(
            f"{path}: which columns hold path and label is not clear from its first row ({', '.join(first)})."
            " Name them: --csv-image COLUMN --csv-label COLUMN"
        )
    return _Columns(image, label, find(SPLIT_COLUMNS), find(("class_index",)), find(("place",)), True)


def _names_an_image(cell: str) -> bool:
    return os.path.splitext(cell.strip())[1].lower() in EXTENSIONS


def _row(cells: Sequence[str], number: int, columns: _Columns, path: Path, home: Path) -> Row:
    values = [
        cells[column].strip() if column is not None and column < len(cells) else "" for column in columns[:5]
    ]
    if not values[0] or not values[1]:
        raise DataError(f"{path}, line {number}: expected a path and a label, found {','.join(cells)!r}")
    if "://" in values[0]:
        raise DataError(f"{path}, line {number}: {values[0]}: images are read from this disk, not from a URL")
    if not IN_NPZ.fullmatch(values[0]):
        values[0] = os.path.normpath(os.path.join(home, values[0]))
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
    labels = {(row.class_index, row.label) for row in rows}
    order = {int(number): label for number, label in labels if len(number) <= DIGITS_OF_A_CLASS}
    if sorted(order) != list(range(len(labels))):
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
    images = open_npz(found_again(files.pop(), file_of(spec).parent), "train")
    chosen = np.array([int(match[2]) for match in found if match])
    own = [images.class_names[label] for label in images.labels[chosen[chosen < len(images)]]]
    if own != [row.label for row in rows] or images.class_names != names:
        raise DataError(f"{spec}: does not belong to {images.name}, whose labels are others")
    return Subset(images, chosen)
