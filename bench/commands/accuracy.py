"""`distill bench accuracy`: accuracy (of each class, too) and loss of an artifact, and its agreement with
another one.

In:  `Options`: an artifact and labeled images.
Out: the result on stdout, with --json as one JSON object, with --csv the classes as lines.
Elsewhere: the measurement (bench.accuracy), the table for a person (bench.tables).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from runtime import env
from runtime.cli import settings
from runtime.cli.settings import Flag
from runtime.cli.terminal import loading, progress_bar
from runtime.errors import UsageError
from runtime.images import ImageSet, open_images

from .. import accuracy, report, tables
from ..results import saved
from ..subject import Description, RunOptions, describe, open_artifact

SUMMARY = "measure accuracy, balanced accuracy and agreement of an artifact on labeled images"
DESCRIPTION = """examples:
  {prog} student.onnx photos
  {prog} --engine student_int8.onnx --data photos --reference student.onnx --json
  {prog} --engine student.plan --data photos --reference student.onnx"""


@dataclass(frozen=True)
class Options(RunOptions):
    """Evaluation."""

    engine: Annotated[Path, Flag("FILE", bare=True)]
    """Artifact to evaluate: an .onnx file, or a .plan file with its .plan.json beside it; the word
    --engine may be left out."""
    data: Annotated[str, Flag("DATA", bare=True)]
    """Labeled images: DIR, npz:FILE or digits; the word --data may be left out."""
    split: Literal["train", "val"] = "val"
    """Part of --data to read."""
    reference: Path | None = None
    """Artifact to compare with, such as the teacher or the fp32 student."""
    batch: Annotated[int, Flag("N", aliases=("-b", "--batch-size"), least=1)] = 64
    """Images per call, 1 or more; a file that does not take so many gets what it takes."""
    limit: Annotated[int | None, Flag("N", least=1)] = None
    """Largest number of images to evaluate, spread evenly over the set, 1 or more."""
    skip_bad_images: bool = False
    """Leave out and count images that cannot be read, instead of stopping at the first."""
    workers: Annotated[int | None, Flag("N", aliases=("-j",), least=1)] = None
    """Threads that decode images, 1 or more; by default all usable cores."""
    save: Annotated[Path | None, Flag("FILE", common=True)] = None
    """File to write the result to, as JSON with the answer to every image; bench table and gate read it."""
    overwrite: bool = False
    """Replace an existing file of --save."""
    csv: bool = False
    """Print one line for each class (name, images, right, percent) as CSV and nothing else."""
    json: bool = False
    """Print the result as one JSON object and nothing else."""

    def __post_init__(self) -> None:
        settings.check(self)
        if self.csv and self.json:
            raise UsageError("--csv and --json: two forms of output. Give one")
        self.require_read([self.engine, *([self.reference] if self.reference else [])])


def run(options: Options) -> None:
    """Measure top-1, top-5 and agreement of an artifact on labeled images, and print the result."""
    report.require_place(options.save, options.overwrite)
    found = measure(options)
    shown = None if options.csv else lambda: tables.accuracy(found)
    report.deliver(found, options.json, shown, lambda: keep(options, found))
    if options.csv and not options.json:
        print(tables.classes_csv(found), end="")


def do(options: Options) -> accuracy.AccuracyReport:
    """The accuracy of the artifact, and of the reference where one is given. Raises as
    `bench.accuracy.evaluate` does.
    """
    report.require_place(options.save, options.overwrite)
    found = measure(options)
    keep(options, found)
    return found


def keep(options: Options, found: accuracy.AccuracyReport) -> None:
    """Write the file of --save, with the answer to every image."""
    if options.save:
        kept = found.to_dict() | {"answers": accuracy.Answers.of(found.result).to_dict()}
        saved.write(options.save, "accuracy", saved.command_line("bench accuracy", options), kept)


def measure(options: Options) -> accuracy.AccuracyReport:
    """The same, with nothing written."""
    with loading(f"looking for the images of {options.data}"):
        images = open_images(options.data, options.split)
    subject, result = _evaluate(options.engine, images, options)
    reference, comparison = None, None
    if options.reference:
        reference, other = _evaluate(options.reference, images, options)
        comparison = accuracy.compare(result, other)
    return accuracy.AccuracyReport(
        subject, images.name, options.split, result, reference, comparison, env.fingerprint()
    )


def _evaluate(path: Path, images: ImageSet, options: Options) -> tuple[Description, accuracy.AccuracyResult]:
    with open_artifact(path, options) as predictor:
        subject = describe(predictor, options)
        count = len(accuracy.spread(len(images), options.limit))
        with progress_bar(subject.name, count) as advance:
            return subject, accuracy.evaluate(
                predictor,
                images,
                options.batch,
                limit=options.limit,
                skip_bad=options.skip_bad_images,
                split=options.split,
                workers=options.workers,
                progress=advance,
            )
