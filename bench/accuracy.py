"""`distill bench accuracy`: top-1, top-5 and loss of an artifact on labelled images, and its agreement with
another one.

In:  an artifact (any `Predictor` with preprocessing) and an `ImageSet`.
Out: `AccuracyResult`, logits included; a report as text or as one JSON object.
Elsewhere: speed (bench.latency), reading images (runtime.images), the decision whether a drop is too much
(export.checks.verify).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from runtime import ArtifactError, DataError, Predictor, Preprocess, UsageError, env
from runtime.artifact import require_same_classes
from runtime.cli.settings import Flag
from runtime.images import ImageSet, open_images

from . import report, subject

NAMED = 20
"""Unreadable images named in the report; the others are only counted."""


@dataclass(frozen=True)
class AccuracyOptions(subject.RunOptions):
    """Evaluation."""

    engine: Path
    """Artifact to evaluate: an .onnx file, or a .plan file with its .plan.json beside it."""
    data: Annotated[str, Flag("DATA")]
    """Labelled images: DIR, npz:FILE or digits."""
    split: Literal["train", "val"] = "val"
    """Part of --data to read."""
    reference: Path | None = None
    """Artifact to compare with, such as the teacher or the fp32 student."""
    batch: Annotated[int, Flag("N", aliases=("-b", "--batch-size"))] = 64
    """Images per call, 1 or more; a file that does not take so many gets what it takes."""
    limit: int | None = None
    """Largest number of images to evaluate, spread evenly over the set, 1 or more."""
    skip_bad_images: bool = False
    """Leave out and count images that cannot be read, instead of stopping at the first."""
    workers: Annotated[int | None, Flag("N", aliases=("-j",))] = None
    """Threads that decode images, 1 or more; by default all usable cores."""
    json: bool = False
    """Print the result as one JSON object and nothing else."""

    def __post_init__(self) -> None:
        for name in ("batch", "limit", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} {value}: expected 1 or more")
        self.require_read([self.engine, *([self.reference] if self.reference else [])])


@dataclass(frozen=True, eq=False)
class AccuracyResult:
    """Accuracy over N readable images, with what is needed to compare it image by image."""

    top1: float
    """Images whose best class is the label, percent."""
    top5: float
    """Images whose label is among the five best classes, percent."""
    loss: float
    """Cross-entropy, mean over the images, nats."""
    logits: np.ndarray
    """(N, K) float32."""
    labels: np.ndarray
    """(N,) int64."""
    indices: np.ndarray
    """(N,) position of every image in the set."""
    skipped: list[str]
    """Names of images that could not be read."""

    @property
    def n(self) -> int:
        """Images evaluated."""
        return len(self.labels)


def evaluate(
    predictor: Predictor,
    images: ImageSet,
    batch: int = 64,
    *,
    limit: int | None = None,
    skip_bad: bool = False,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> AccuracyResult:
    """Accuracy of `predictor` on `images`, in batches of `batch` or as near to it as the file takes
    (`Predictor.fit`).

    progress is called with the number of images done since its last call. Raises ArtifactError when
    preprocessing is unknown, the classes are others than the data's, or logits are not finite; DataError
    naming an unreadable image, unless skip_bad, and when no image is readable.
    """
    preprocess = subject.require_preprocess(predictor)
    require_same_classes(predictor.class_names, str(predictor.path), images.class_names, images.name)
    at_once, chosen = predictor.fit(batch), spread(len(images), limit)
    logits, kept, skipped = [], [], []
    with ThreadPoolExecutor(workers or env.usable_cores()) as pool:
        for some in np.array_split(chosen, range(at_once, len(chosen), at_once)):
            pixels = list(pool.map(lambda index: _pixels(preprocess, images, int(index), skip_bad), some))
            good = [p for p in pixels if p is not None]
            skipped += [images.item_name(int(i)) for i, p in zip(some, pixels, strict=True) if p is None]
            kept += [int(i) for i, p in zip(some, pixels, strict=True) if p is not None]
            if good:
                logits.append(predictor.logits_in_batches(preprocess.normalize(np.stack(good)), at_once))
                _check(logits[-1], predictor, images, kept[-len(good) :])
            if progress:
                progress(len(some))
    if not logits:
        raise DataError(f"{images.name}: none of {len(chosen)} images can be read, such as {skipped[0]}")
    scores, labels = np.concatenate(logits), images.labels[kept]
    place = ranks(scores, labels)
    return AccuracyResult(
        100 * float(np.mean(place < 1)),
        100 * float(np.mean(place < 5)),
        cross_entropy(scores, labels),
        scores,
        labels,
        np.array(kept),
        skipped,
    )


def spread(n: int, limit: int | None) -> np.ndarray:
    """`limit` positions out of n, evenly spaced: folders are sorted by class, so the first ones would be one
    class.
    """
    return np.arange(n) if limit is None or limit >= n else np.arange(limit) * n // limit


def ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N,) place of the label among the classes, 0 is best; of equal scores the lower class comes first, as
    in `classify`.
    """
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    lower_class = np.arange(logits.shape[1]) < labels[:, None]
    places: np.ndarray = np.sum((logits > own) | ((logits == own) & lower_class), axis=1)
    return places


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean of log(sum(exp(logits))) - logit of the label, nats, in float64."""
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), labels]))


def compare(result: AccuracyResult, reference: AccuracyResult) -> dict[str, float]:
    """Agreement of two results on the same images: same best class, percent; largest difference of
    any logit.
    """
    if not np.array_equal(result.indices, reference.indices):
        raise ValueError("the two results are of different images")
    same = result.logits.argmax(axis=1) == reference.logits.argmax(axis=1)
    return {
        "reference_top1_percent": reference.top1,
        "top1_difference_points": result.top1 - reference.top1,
        "agreement_percent": 100 * float(np.mean(same)),
        "max_abs_logit_difference": float(
            np.max(np.abs(result.logits.astype(np.float64) - reference.logits))
        ),
    }


def run(options: AccuracyOptions) -> dict[str, Any]:
    """The report: JSON values, None where there is no reference."""
    images = open_images(options.data, options.split)
    result, about = _evaluate_file(options.engine, images, options)
    values: dict[str, Any] = {
        **about,
        "data": images.name,
        "split": options.split,
        "n": result.n,
        "skipped": len(result.skipped),
        "skipped_images": result.skipped[:NAMED],
        "top1_percent": result.top1,
        "top5_percent": result.top5,
        "loss_nats": result.loss,
        "reference": None,
        "reference_top1_percent": None,
        "top1_difference_points": None,
        "agreement_percent": None,
        "max_abs_logit_difference": None,
    }
    if options.reference:
        reference, about_reference = _evaluate_file(options.reference, images, options)
        values |= {"reference": about_reference, **compare(result, reference)}
    return values | {"fingerprint": env.fingerprint()}


def _evaluate_file(
    path: Path, images: ImageSet, options: AccuracyOptions
) -> tuple[AccuracyResult, dict[str, Any]]:
    with subject.open_artifact(path, options) as predictor:
        about = {"name": subject.label(predictor), **subject.describe(predictor, options)}
        with progress_bar(about["name"], len(spread(len(images), options.limit))) as advance:
            return (
                evaluate(
                    predictor,
                    images,
                    options.batch,
                    limit=options.limit,
                    skip_bad=options.skip_bad_images,
                    workers=options.workers,
                    progress=advance,
                ),
                about,
            )


@contextlib.contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int], None] | None]:
    """A bar on stderr counting images, when stderr is a terminal; else None."""
    console = report.console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("images"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


def _pixels(preprocess: Preprocess, images: ImageSet, index: int, skip_bad: bool) -> np.ndarray | None:
    try:
        return preprocess.pixels(images.image(index))
    except DataError:
        if skip_bad:
            return None
        raise


def _check(scores: np.ndarray, predictor: Predictor, images: ImageSet, indices: list[int]) -> None:
    """Raise ArtifactError for another number of classes and for nan, which would rank first
    without a word.
    """
    if scores.ndim != 2 or scores.shape[1] != len(images.class_names):
        raise ArtifactError(
            f"{predictor.path}: gives {'x'.join(map(str, scores.shape[1:]))} scores per image, {images.name} "
            f"has {len(images.class_names)} classes. Use the data set the model was trained on"
        )
    finite = np.isfinite(scores).all(axis=1)
    if not finite.all():
        name = images.item_name(indices[int(np.argmin(finite))])
        raise ArtifactError(f"{predictor.path}: logits of {name} are not finite. Export it again")


def to_rich(values: dict[str, Any]) -> Any:
    """The report for a person: a row per artifact, conditions below."""
    reference = values["reference"]
    table = report.table("accuracy", left=["artifact"], right=["top-1 %", "top-5 %", "loss nats", "Δ top-1"])
    table.add_row(
        values["name"],
        report.number(values["top1_percent"]),
        report.number(values["top5_percent"]),
        report.number(values["loss_nats"], 4),
        report.number(values["top1_difference_points"], sign=True),
    )
    skipped = f", {values['skipped']} unreadable images left out" if values["skipped"] else ""
    notes = [
        f"n={values['n']} images of {values['data']}{skipped}; {values['file']}; {subject.where(values)}"
    ]
    if reference:
        table.add_row(
            f"reference: {reference['name']}", report.number(values["reference_top1_percent"]), "", "", ""
        )
        notes.append(
            f"agreement {values['agreement_percent']:.2f} % (same best class as {reference['file']}); "
            f"largest logit difference {values['max_abs_logit_difference']:.3g}"
        )
    return report.with_notes([table], [*notes, report.machine(values["fingerprint"])])
