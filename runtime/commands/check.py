"""`distill check`: read every image of a data set once, and say what a training would meet.

In:  data, and validation data or the share to set apart.
Out: lines or JSON; exit code 1 when something would stop a training.
Elsewhere: finding images (runtime.images), the numbers (runtime.images.summary), training (distill.run).
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Annotated, Any

import numpy as np

from .. import files
from ..cli import settings
from ..cli.settings import Flag
from ..cli.terminal import loading, printable, progress_bar
from ..errors import DataError, UsageError
from ..images import ImageSet, Overlap, Summary, has_own_split, open_images, split
from ..images.classes import differences
from ..images.decode import FORMATS, orientation
from ..images.lists import with_columns
from ..images.sets import Subset
from ..images.summary import shown

SUMMARY = "read every image of a data set once and say what is wrong with it"
DESCRIPTION = """Folders, lists (FILE.csv), npz:FILE and digits are checked, without torch.

examples:
  {prog} photos
  {prog} photos --val-split 0.2
  {prog} photos/train --val-data photos/val --json"""
IMBALANCED = 10
"""Largest class for one image of the smallest, from which on a warning is given."""
TIMM = ("torch/", "hfds/", "wds/", "tfds/", "hfids/")


@dataclass(frozen=True)
class Options:
    """Flags of `distill check`."""

    data: Annotated[str, Flag("DATA", positional=True)]
    """Data to check: a folder of class folders or of train/ and val/, a list FILE.csv, npz:FILE or digits."""
    val_data: Annotated[str, Flag("DATA")] = ""
    """Validation images when DATA does not hold them."""
    val_split: Annotated[float, Flag("SHARE", least=0, below=1)] = 0.0
    """Share of each class to set apart for validation, as in training."""
    csv_image: Annotated[str, Flag("COLUMN")] = ""
    """Column of a list that holds the paths; by default guessed from the header."""
    csv_label: Annotated[str, Flag("COLUMN")] = ""
    """Column of a list that holds the labels; by default guessed from the header."""
    seed: int = 0
    """Seed of --val-split."""
    json: bool = False
    """Print one JSON object and nothing else."""

    def __post_init__(self) -> None:
        settings.check(self)
        for spec in (self.data, self.val_data):
            if spec.startswith(TIMM) or spec.endswith(".tar"):
                raise UsageError(f"{spec}: is read by timm, not by check. Expected DIR, FILE.csv or npz:FILE")


@dataclass(frozen=True)
class Read:
    """What reading every image of one set has shown."""

    summary: Summary
    unreadable: tuple[str, ...]
    smallest: tuple[int, int]
    """(width, height) in pixels of the image with the fewest pixels; (0, 0) where none can be read."""
    median: tuple[int, int]
    """Median width and median height, pixels."""
    largest: tuple[int, int]
    modes: dict[str, int]
    """Pillow's mode (RGB, L, I;16, CMYK, RGBA, ...) -> images."""
    orientations: dict[int, int]
    """EXIF orientation other than upright -> images."""
    doubles: Overlap
    """Images whose content is in the set before."""
    lost_classes: tuple[str, ...]
    """Classes whose images can all not be read."""


@dataclass(frozen=True)
class Report:
    """What was found in all sets."""

    sets: dict[str, Read]
    """train and val -> what is in them."""
    overlap: Overlap
    """Validation images that are training images, too."""
    problems: tuple[str, ...]
    """What would stop a training."""
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        sets = {name: asdict(read) | {"summary": read.summary.to_dict()} for name, read in self.sets.items()}
        return {
            "sets": sets,
            "overlap": asdict(self.overlap),
            "problems": list(self.problems),
            "warnings": list(self.warnings),
        }


def run(options: Options) -> int:
    """Print what was found; 1 where something would stop a training."""
    report = do(options)
    if options.json:
        print(files.json_text(report.to_dict()))
    else:
        for line in _lines(report):
            print(printable(line))
    return 1 if report.problems else 0


def do(options: Options) -> Report:
    """Read every image of both sets once. Raises DataError where a set cannot be opened."""
    with loading(f"looking for the images of {options.data}"):
        sets, problems = _open(options)
    with progress_bar("reading", sum(map(len, sets.values()))) as advance:
        done = 0
        found = {}
        for name, images in sets.items():
            found[name] = _read(images, advance, done)
            done += len(images)
    with loading("comparing training and validation images"):
        overlap = sets["train"].overlap(sets["val"]) if "val" in sets else Overlap(0, ())
    for name, read in found.items():
        problems += _unreadable(name, read)
    warnings = [overlap.line()] if overlap.count else []
    for name, read in found.items():
        warnings += _warnings(name, read)
    return Report(found, overlap, tuple(problems), tuple(warnings))


def _unreadable(name: str, read: Read) -> list[str]:
    """What unreadable images would stop, and what --skip-bad-images would not help against."""
    if not read.unreadable:
        return []
    lost = shown(read.lost_classes)
    way_out = "Mend or remove them" + ("" if lost else ", or train with --skip-bad-images")
    found = [f"{name}: {len(read.unreadable)} unreadable images: {shown(read.unreadable)}. {way_out}"]
    return found + ([f"{name}: no image of {lost} can be read"] if lost else [])


def _open(options: Options) -> tuple[dict[str, ImageSet], list[str]]:
    """train, and val where there is one; what is wrong with the two together."""
    spec, val_spec = (
        with_columns(each, options.csv_image, options.csv_label) if each else each
        for each in (options.data, options.val_data)
    )
    train = open_images(spec, "train")
    has_val = has_own_split(spec, "val")
    if options.val_split and not val_spec and not has_val:
        is_val = split.choose(train, options.val_split, options.seed)
        return {
            "train": Subset(train, np.flatnonzero(~is_val)),
            "val": Subset(train, np.flatnonzero(is_val)),
        }, []
    if not val_spec and not has_val:
        return {"train": train}, ["no validation images. Set some apart: --val-split 0.2; or give --val-data"]
    val = open_images(val_spec or spec, "val")
    problems = [
        f"{where} has no image of {shown(missing)}"
        for where, missing in (
            ("val", differences(train.class_names, val)[0] or val.summary().empty_classes),
            ("train", differences(val.class_names, train)[0] or train.summary().empty_classes),
        )
        if missing
    ]
    return {"train": train, "val": val}, problems


def _read(images: ImageSet, advance: Callable[[int], None], before: int) -> Read:
    sizes: list[tuple[int, int]] = []
    modes: Counter[str] = Counter()
    orientations: Counter[int] = Counter()
    unreadable, doubles = [], []
    readable = np.zeros(len(images.class_names), np.int64)
    seen: dict[str, str] = {}
    for index in range(len(images)):
        name = images.item_name(index)
        try:
            size, mode, turn, sha256 = _facts(images, index)
        except (DataError, OSError):
            unreadable.append(name)
            continue
        finally:
            advance(before + index + 1)
        sizes.append(size)
        readable[images.labels[index]] += 1
        modes[mode] += 1
        if turn > 1:
            orientations[turn] += 1
        if seen.setdefault(sha256, name) != name:
            doubles.append((seen[sha256], name))
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size)) or [(0, 0)]
    middle = (int(median(width for width, _ in ordered)), int(median(height for _, height in ordered)))
    about = images.summary()
    return Read(
        about,
        tuple(unreadable),
        ordered[0],
        middle,
        ordered[-1],
        dict(modes.most_common()),
        dict(orientations),
        Overlap(len(doubles), tuple(doubles[:3])),
        tuple(
            name
            for name, all_images, good in zip(about.class_names, about.counts, readable, strict=True)
            if all_images and not good
        ),
    )


def _facts(images: ImageSet, index: int) -> tuple[tuple[int, int], str, int, str]:
    """Size, mode and orientation as stored, SHA-256 of the content; the image is decoded as in training."""
    from PIL import Image as pil

    decoded = images.image(index)
    mode = decoded.mode
    content = images.item_bytes(index)
    if (len(content) >= 4 and content[:4] in (b"\x89PNG", b"RIFF")) or content[:2] in (b"\xff\xd8", b"BM"):
        # pixels of an array may begin like a file
        with (
            contextlib.suppress(OSError, ValueError, SyntaxError, TypeError),
            pil.open(io.BytesIO(content), formats=FORMATS) as stored,
        ):
            mode = stored.mode
    return decoded.size, mode, orientation(decoded), images.item_sha256(index)


def _warnings(name: str, read: Read) -> list[str]:
    found = []
    imbalance = read.summary.imbalance
    if imbalance >= IMBALANCED and imbalance != float("inf"):
        (small, few), (large, many) = read.summary.smallest, read.summary.largest
        help_ = (
            "" if name == "val" else "; distill train --sampler balanced or --class-weights balanced helps"
        )
        found.append(f"{name}: imbalanced {imbalance:.0f} to 1 ({large} {many}, {small} {few}){help_}")
    if read.orientations:
        count = sum(read.orientations.values())
        found.append(
            f"{name}: {count} images are turned or mirrored by their EXIF orientation, which training ignores"
            " without --exif apply"
        )
    deep = sum(count for mode, count in read.modes.items() if mode.startswith(("I", "F")))
    if deep:
        found.append(f"{name}: {deep} images have more than 8 bits a pixel")
    if read.doubles.count:
        found.append(f"{name}: {read.doubles.line('earlier', 'later')}")
    return found


def _lines(report: Report) -> list[str]:
    lines = []
    for name, read in report.sets.items():
        first, *more = read.summary.lines()
        lines += [f"{name}: {first}", *(f"  {line}" for line in more)]
        sizes = (f"{width} x {height}" for width, height in (read.smallest, read.median, read.largest))
        lines.append("  pixels: smallest {}, median {}, largest {}".format(*sizes))
        lines.append("  modes: " + ", ".join(f"{mode} {count}" for mode, count in read.modes.items()))
        if read.orientations:
            turned = (f"{tag}: {count}" for tag, count in sorted(read.orientations.items()))
            lines.append("  EXIF orientations: " + ", ".join(turned))
    lines += [f"warning: {each}" for each in report.warnings]
    lines += [f"problem: {each}" for each in report.problems]
    return lines if report.problems else [*lines, "nothing here would stop a training"]
