"""`distill predict`: which classes an exported network sees in images, without torch.

In:  an artifact; image files, folders and patterns.
Out: the best classes of every image as they are found: a table on a terminal, else lines with tabs, CSV or
     JSON lines. Exit code 1 when an image could not be read; it is named, and the others are done.
Elsewhere: opening and running the file (runtime.predictor), which files are meant (runtime.images.named).
"""

from __future__ import annotations

import csv
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np

from .. import files
from ..backends import registry
from ..backends.asked import CHECKPOINTS
from ..cli import settings, terminal
from ..cli.settings import Flag
from ..cli.terminal import loading, printable
from ..errors import ArtifactError, DataError, UsageError
from ..images.named import image_files
from ..predictor import Prediction, Predictor, load

if TYPE_CHECKING:
    from ..preprocess import Preprocess

SUMMARY = "classify images with an exported file, without torch"
DESCRIPTION = """An image that cannot be read is named and left out; the exit code is then 1.

examples:
  {prog} student.int8.onnx cat.jpg
  {prog} student.int8.onnx photos 'more/*.png' --top 3
  {prog} student.int8.onnx photos --csv > guesses.csv"""


@dataclass(frozen=True)
class Options:
    """Flags of `distill predict`."""

    file: Annotated[Path, Flag("FILE", positional=True)]
    """Exported network: an .onnx file, or a .plan file with its .plan.json beside it."""
    images: Annotated[tuple[str, ...], Flag("IMAGES", positional=True)]
    """Images to classify: files, folders (with what is in their folders) or patterns such as 'DIR/*.jpg'."""
    top: Annotated[int, Flag("N", aliases=("-k",), least=1)] = 5
    """Classes to give for each image, the most probable first."""
    json: bool = False
    """Print one JSON object for each image, a line each."""
    csv: bool = False
    """Print CSV: a line for each image and class."""
    batch: Annotated[int, Flag("N", aliases=("-b", "--batch-size"), least=1)] = 16
    """Images per call of the network."""
    backend: Annotated[str | None, Flag("NAME", aliases=("--engine-backend",), choices=registry.names())] = (
        None
    )
    """Engine to run on; by default onnxruntime for .onnx files and tensorrt for .plan files."""
    device: Annotated[str | None, Flag("DEVICE")] = None
    """Device: cpu, cuda or cuda:INDEX; by default cpu for .onnx and cuda for .plan."""
    threads: Annotated[int | None, Flag("N", least=1)] = None
    """CPU threads of the engine; by default all usable cores."""

    def __post_init__(self) -> None:
        settings.check(self)
        if self.json and self.csv:
            raise UsageError("--json and --csv: two forms of the output. Give one")
        if not self.images:
            raise UsageError("no images given. Add one or more files or folders behind the exported file")


class Found(NamedTuple):
    """What was found in one image: its best classes, or why it could not be read."""

    image: str
    guesses: Sequence[Prediction]
    error: str = ""


def run(options: Options) -> int:
    """Print the best classes of every image; 1 when one could not be read."""
    require_exported(options.file)
    paths = image_files(options.images)
    unreadable = 0
    with _open(options) as predictor, loading(f"classifying {len(paths)} images"):
        show = _printer(options, paths)
        for found in predictions(predictor, paths, options.top, options.batch):
            show(found)
            for each in found:
                if each.error:
                    unreadable += 1
                    print(f"error: {printable(each.error)}", file=sys.stderr, flush=True)
    if unreadable:
        print(f"error: {unreadable} of {len(paths)} images could not be read", file=sys.stderr)
    return 1 if unreadable else 0


def do(options: Options) -> list[Found]:
    """The best classes of every image, or why it could not be read."""
    require_exported(options.file)
    paths = image_files(options.images)
    with _open(options) as predictor:
        batches = predictions(predictor, paths, options.top, options.batch)
        return [found for batch in batches for found in batch]


def require_exported(path: Path) -> None:
    """Raise UsageError, with the command that exports it, for a checkpoint or a run folder."""
    checkpoint: Path | None = path if path.suffix in CHECKPOINTS else None
    if path.is_dir():
        checkpoint = path / "best.pth"
        if not checkpoint.is_file():
            raise UsageError(f"{path}: a folder. Expected an exported file: an .onnx or .plan file")
    if checkpoint is not None and checkpoint.is_file():
        what = "a run folder" if path.is_dir() else "a checkpoint"
        raise UsageError(
            f"{path}: is {what}, and predict runs exported files. Export it: distill export onnx"
            f" {checkpoint}; then: distill predict {checkpoint.with_suffix('.onnx')} IMAGES"
        )


def predictions(predictor: Predictor, paths: Sequence[str], top: int, batch: int) -> Iterator[list[Found]]:
    """The findings of `batch` images at a time, in the order of `paths`."""
    spec = predictor.preprocess
    if spec is None:
        raise ArtifactError(
            f"{predictor.path}: does not say how images are preprocessed. Export it with distill export onnx,"
            " or use runtime.load(preprocess=...) from Python"
        )
    for start in range(0, len(paths), batch):
        read = [(path, *_read(spec, path)) for path in paths[start : start + batch]]
        pixels = [image for _, image, _ in read if image is not None]
        guesses: Iterator[Sequence[Prediction]] = iter(())
        if pixels:
            logits = predictor.logits_in_batches(np.stack(pixels), batch)
            guesses = iter(predictor.predictions(logits, top))
        yield [Found(path, () if image is None else next(guesses), error) for path, image, error in read]


def _read(spec: Preprocess, path: str) -> tuple[np.ndarray | None, str]:
    try:
        return spec(path), ""
    except DataError as error:
        return None, str(error)


def _open(options: Options) -> Predictor:
    with warnings.catch_warnings(), loading(f"opening {options.file.name}"):
        warnings.simplefilter("ignore")  # what the file does not say is said when it is needed
        return load(options.file, options.device, backend=options.backend, threads=options.threads)


Printer = Callable[[Sequence[Found]], None]


def _printer(options: Options, paths: Sequence[str]) -> Printer:
    if options.json:
        return _print_json
    if options.csv:
        return _csv_printer()
    return _table_printer(paths) if sys.stdout.isatty() else _print_lines


def _print_json(found: Sequence[Found]) -> None:
    for each in found:
        about: dict[str, Any] = {"image": each.image}
        if each.error:
            about["error"] = each.error
        else:
            about["classes"] = [guess._asdict() for guess in each.guesses]
        print(files.json_text(about), flush=True)


def _csv_printer() -> Printer:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["image", "rank", "label", "index", "probability"])

    def write(found: Sequence[Found]) -> None:
        for each in found:
            for rank, guess in enumerate(each.guesses, 1):
                label, image = _cell(guess.label), _cell(each.image)
                writer.writerow([image, rank, label, guess.index, f"{guess.probability:.6f}"])
        sys.stdout.flush()

    return write


def _cell(text: str) -> str:
    """Text that a spreadsheet shows and does not compute."""
    return f"'{printable(text)}" if text[:1] in ("=", "+", "-", "@") else printable(text)


def _print_lines(found: Sequence[Found]) -> None:
    """image, then label and probability of every class, with tabs between."""
    for each in found:
        if not each.error:
            pairs = [(printable(guess.label), f"{guess.probability:.4f}") for guess in each.guesses]
            words = [printable(each.image), *(word for pair in pairs for word in pair)]
            print("\t".join(words), flush=True)


def _table_printer(paths: Sequence[str]) -> Printer:
    """A table that goes on from batch to batch: the columns have the same width in each part."""
    from rich.table import Table
    from rich.text import Text

    screen = terminal.screen()
    widest = max(len(printable(path)) for path in paths)
    width = max(5, min(widest, screen.width // 2))
    is_first = [True]

    def show(found: Sequence[Found]) -> None:
        table = Table("image", "class", "probability", box=None, show_header=is_first[0], pad_edge=False)
        table.columns[0].width, table.columns[0].overflow = width, "fold"
        table.columns[1].ratio, table.columns[1].overflow, table.columns[2].justify = 1, "fold", "right"
        table.columns[2].width, table.expand = 11, screen.width < 100
        for each in found:
            for rank, guess in enumerate(each.guesses):
                name = Text("" if rank else printable(each.image))
                style = "" if rank else "bold"
                share = Text(f"{100 * guess.probability:.1f} %", style)
                table.add_row(name, Text(printable(guess.label), style), share)
        if table.row_count:
            screen.print(table)
            is_first[0] = False

    return show
