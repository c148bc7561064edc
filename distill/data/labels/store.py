"""A folder of stored answers: labels.json, and a file of rows for each epoch.

In:  a folder; a `Header` of what the answers are for.
Out: `Writer`, which goes on where an interrupted one stopped; `Labels`, which reads rows by epoch and batch.
Elsewhere: a row (distill.data.labels.rows), making the answers (distill.run.labeling), the format in words
(docs/format.md).

epoch-0001.rows holds batch after batch in the order of training; epoch-0002.rows.part is still being written.
Only whole batches count: what a killed process left behind the last whole one is cut off.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from torch import Tensor

from runtime import files
from runtime.cli.terminal import loading
from runtime.errors import ArtifactError, DataError, UsageError

from ...teacher import Origin
from .rows import Layout, checksums

SCHEMA = 1
HEADER = "labels.json"
LARGEST_HEADER = 64 * 2**20


@dataclass(frozen=True)
class Header:
    """What the answers are for. Two headers that are equal in all but `epochs` have the same rows."""

    pixels: int = field(default=1, kw_only=True)
    """Version of the augmentation (distill.data.augment.PIXELS); headers of before do not say it."""
    class_names: list[str]
    top: int
    """Classes stored for each image."""
    epochs: int
    batches: int
    """Of each epoch."""
    batch: int
    """Images in each."""
    train_sha256: str
    """Fingerprint of the training images."""
    preprocess: dict[str, Any]
    """Of the student: input size, mean, standard deviation."""
    settings: dict[str, Any]
    """Settings of the recipe that change the pixels or their order."""
    teacher: dict[str, Any]
    """Where it comes from, and how it computes (distill.teacher.Origin)."""
    teacher_top1_percent: float
    """On the validation images, when the labels were made."""
    versions: dict[str, str]
    """Of the packages that draw the augmentation."""

    @property
    def layout(self) -> Layout:
        """Of each row."""
        return Layout(len(self.class_names), self.top)

    @property
    def bytes_per_epoch(self) -> int:
        """Size of a whole file of rows."""
        return self.batches * self.batch * self.layout.dtype.itemsize

    def difference(self, other: Header, besides: tuple[str, ...] = ()) -> str | None:
        """The first thing in which two headers differ, in words: this one's value, then the other's."""
        return _difference(
            {key: value for key, value in asdict(self).items() if key not in besides},
            {key: value for key, value in asdict(other).items() if key not in besides},
        )


NAMES = {
    "pixels": "version of the augmentation",
    "class_names": "classes",
    "top": "--top",
    "batches": "batches an epoch",
    "batch": "--batch",
    "train_sha256": "fingerprint of the training images",
    "preprocess": "input",
    "teacher": "teacher",
    "teacher_top1_percent": "the teacher's top-1",
}


def _difference(one: Mapping[str, Any], other: Mapping[str, Any], within: str = "") -> str | None:
    for key in [*one, *(key for key in other if key not in one)]:
        mine, its = one.get(key), other.get(key)
        if isinstance(mine, Mapping) and isinstance(its, Mapping):
            found = _difference(mine, its, "--" if key == "settings" else f"{NAMES.get(key, key)} ")
            if found:
                return found
        elif mine != its:
            name = key.replace("_", "-") if within == "--" else NAMES.get(key, key.replace("_", " "))
            return f"{within}{name}: {_short(mine)}, and {_short(its)} here"
    return None


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    text = text or "nothing"
    return text if len(text) <= 60 else f"{text[:57]}..."


class Writer:
    """Writes rows batch by batch: `start` says where to go on, `append` adds one, `finish` ends an epoch."""

    def __init__(self, folder: Path, header: Header) -> None:
        """Begin in a new folder, or go on in one of the same header. Raises UsageError for another one, or a
        folder of something else.
        """
        self.folder, self.header = folder, header
        if (folder / HEADER).is_file():
            before = read_header(folder)
            different = before.difference(header, besides=("epochs", "teacher_top1_percent"))
            if different:
                raise UsageError(
                    f"{folder}: its labels are for something else ({different}). Give another --output"
                )
        elif folder.is_dir() and any(folder.iterdir()):
            raise UsageError(f"{folder}: is not empty and holds no labels. Give another --output")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise files.explained(error, folder) from error
        files.write_text(
            folder / HEADER, files.json_text({"schema": SCHEMA, **asdict(header)}, indent=2) + "\n"
        )
        self._file: Any = None

    def start(self) -> tuple[int, int]:
        """(epoch, batch) of the first batch that is missing, from 0; (epochs, 0) when none is."""
        for epoch in range(self.header.epochs):
            if rows_of(self.folder, epoch).is_file():
                continue
            part = _part_of(self.folder, epoch)
            size = part.stat().st_size if part.is_file() else 0
            batch = min(size // self._batch_bytes, self.header.batches)
            if size > batch * self._batch_bytes:
                os.truncate(part, batch * self._batch_bytes)
            return epoch, batch
        return self.header.epochs, 0

    def append(self, epoch: int, rows: np.ndarray) -> None:
        """Add the rows of one batch. Raises MissingError when the disk is full."""
        try:
            if self._file is None:
                self._file = _part_of(self.folder, epoch).open("ab")
            self._file.write(rows.tobytes())
            self._file.flush()
        except OSError as error:
            with contextlib.suppress(OSError):  # it would write the same rows once more, and fail once more
                self.close()
            raise files.explained(error, self.folder) from error

    def finish(self, epoch: int) -> None:
        """The epoch is whole. Raises MissingError when the disk is full, which some disks say only now."""
        try:
            self.close()
        except OSError as error:
            raise files.explained(error, self.folder) from error
        part = _part_of(self.folder, epoch)
        if part.is_file():
            part.replace(rows_of(self.folder, epoch))

    def close(self) -> None:
        """Close the file of the epoch."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _batch_bytes(self) -> int:
        return self.header.batch * self.header.layout.dtype.itemsize


class Labels:
    """Stored answers, read by epoch and batch."""

    def __init__(self, folder: Path) -> None:
        """Raises ArtifactError where the folder holds no labels, or fewer than its header says."""
        self.folder, self.header = folder, read_header(folder)
        missing = [e for e in range(self.header.epochs) if not rows_of(folder, e).is_file()]
        if missing:
            raise ArtifactError(
                f"{folder}: epoch {missing[0] + 1} of {self.header.epochs} is missing. Go on with the"
                " distill label that made it, or give --epochs of what is there to it"
            )
        shape = (self.header.batches, self.header.batch)
        for epoch in range(self.header.epochs):
            size = rows_of(folder, epoch).stat().st_size
            if size != self.header.bytes_per_epoch:
                raise ArtifactError(
                    f"{rows_of(folder, epoch)}: {size} bytes, expected {self.header.bytes_per_epoch}. It is"
                    " damaged: delete it, and go on with the distill label that made it"
                )
        self._rows = [
            np.memmap(rows_of(folder, epoch), self.header.layout.dtype, "r", shape=shape)
            for epoch in range(self.header.epochs)
        ]

    @property
    def origin(self) -> Origin:
        """The teacher that gave the answers."""
        known = {each.name for each in fields(Origin)}
        said = {key: value for key, value in self.header.teacher.items() if key in known}
        if not isinstance(said.get("model"), str):
            raise ArtifactError(
                f"{self.folder / HEADER}: damaged header (it names no teacher). Make it again"
            )
        return Origin(**said)

    @loading("hashing the labels")
    def fingerprint(self) -> str:
        """SHA-256 over header and rows."""
        digest = hashlib.sha256()
        for path in [self.folder / HEADER, *(rows_of(self.folder, e) for e in range(self.header.epochs))]:
            digest.update(files.sha256(path).encode())
        return digest.hexdigest()

    def epoch_of(self, epoch: int) -> int:
        """The stored epoch that a training's epoch, from 0, replays."""
        return epoch % self.header.epochs

    def logits(self, epoch: int, batch: int, places: Sequence[int] | None = None) -> Tensor:
        """(N, K) float32 of one batch, both from 0. places: of which of its images, by default all. Raises
        ArtifactError for NaN and for classes that the header does not have.
        """
        layout, rows = self.header.layout, np.asarray(self._rows[self.epoch_of(epoch)][batch])
        rows = rows if places is None else rows[list(places)]
        unknown = layout.unknown_class(rows)
        if unknown is not None:
            raise self._damaged(epoch, batch, f"names class {unknown} of {layout.classes} (from 0)")
        logits = layout.unpack(rows)
        if not logits.isfinite().all():
            raise self._damaged(epoch, batch, "holds NaN or inf")
        return logits

    def _damaged(self, epoch: int, batch: int, what: str) -> ArtifactError:
        return ArtifactError(
            f"{rows_of(self.folder, self.epoch_of(epoch))}: batch {batch + 1} {what}. It is damaged: delete"
            " it, and go on with the distill label that made it"
        )

    def require_replayed(
        self, epoch: int, batch: int, pixels: Tensor, places: Sequence[int] | None = None
    ) -> None:
        """Raise DataError where these images (N, C, H, W) are not the ones that were labeled, bit for bit.
        places: where in the batch they are, by default the first N.
        """
        stored = self._rows[self.epoch_of(epoch)][batch]["checksum"]
        stored = stored[list(range(len(pixels)) if places is None else places[: len(pixels)])]
        different = np.flatnonzero(stored != checksums(pixels))
        if len(different):
            raise DataError(
                f"{self.folder}: {len(different)} of {len(pixels)} images of epoch {epoch + 1}, batch"
                f" {batch + 1} are not the ones that the teacher labeled, bit for bit. The labels were made"
                f" with {_versions(self.header)}; install these, or make labels here"
            )


def _versions(header: Header) -> str:
    return ", ".join(f"{name} {version}" for name, version in header.versions.items()) or "unknown versions"


def rows_of(folder: Path, epoch: int) -> Path:
    """The file of an epoch, from 0."""
    return folder / f"epoch-{epoch + 1:04d}.rows"


def _part_of(folder: Path, epoch: int) -> Path:
    return rows_of(folder, epoch).with_suffix(".rows.part")


def read_header(folder: Path) -> Header:
    """What the labels in `folder` are for. Raises ArtifactError for a folder without labels, or a header that
    is damaged or of another schema.
    """
    path = folder / HEADER
    if not path.is_file():
        raise ArtifactError(f"{folder}: holds no {HEADER}. Expected a folder that distill label made")
    if path.stat().st_size > LARGEST_HEADER:
        raise ArtifactError(f"{path}: is too large to be a header of labels")
    try:
        values = files.from_json(files.read_small(path, LARGEST_HEADER), str(path))
        if values.pop("schema") != SCHEMA:
            raise ArtifactError(
                f"{path}: made by another version (its schema is not {SCHEMA}). Make it again"
            )
        header = Header(**values)
        _require_types(header)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ArtifactError(
            f"{path}: damaged header ({type(error).__name__}). Make the labels again"
        ) from error
    return header


def _require_types(header: Header) -> None:
    """Raise TypeError or ValueError for values that no writer of ours writes."""
    numbers = (header.pixels, header.top, header.epochs, header.batches, header.batch)
    if not all(isinstance(number, int) and not isinstance(number, bool) and number > 0 for number in numbers):
        raise TypeError("a count is not a number above 0")
    if not isinstance(header.teacher_top1_percent, (int, float)) or not (
        0 <= header.teacher_top1_percent <= 100
    ):
        raise TypeError("an accuracy is not a number of percent")
    names = header.class_names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError("class names are not names")
    if not 1 <= header.top <= len(names):
        raise ValueError("more classes stored than there are")
    for part in (header.preprocess, header.settings, header.teacher, header.versions):
        if not isinstance(part, dict):
            raise TypeError("a part is not an object")
