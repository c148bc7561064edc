"""RUN/report.html: everything about one run, or about several side by side, in one file.

In:  run folders; validation images, or where they are.
Out: an HTML file that needs nothing else: no scripts, no network. What comes from files is escaped.
Elsewhere: reading runs (distill.run.report.collect), predictions (distill.run.report.predictions), drawings
(distill.run.report.figures), the layout (page.html.j2 beside this file).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime import env, files
from runtime.cli.page.drawing import COLORS
from runtime.cli.page.html import render, require_installed
from runtime.cli.terminal import loading, printable, say
from runtime.errors import Large2SmallError, MissingError
from runtime.images import ImageSet
from runtime.images.summary import balanced_percent

from ...data import open_of_run
from ...data.sets import StreamSet
from ...training.selection import NAMES
from . import figures, gallery, predictions
from .collect import Run, read_run
from .figures import Curve

MOST_CONFUSED = 12
"""Pairs of classes that are listed."""


@dataclass(frozen=True)
class ClassRow:
    """One class of the table; percent is None without validation images."""

    name: str
    images: int
    right: int
    percent: float | None
    taken_for: str
    """The class that its images are most often taken for, with their number."""


@dataclass(frozen=True)
class Seen:
    """What the validation images show of the student."""

    images: int
    top1_percent: float
    balanced_percent: float
    """Mean of the classes' accuracies."""
    commonest_percent: float
    """Top-1 of always saying the commonest class."""
    confusion: str
    class_accuracy: str
    classes: Sequence[ClassRow]
    confused: Sequence[tuple[str, str, int]]
    """(label, predicted class, images), the most frequent first."""
    worst: Sequence[gallery.Picture]
    by_chance: Sequence[gallery.Picture]


@dataclass(frozen=True)
class Section:
    """One run on the page."""

    run: Run
    name: str
    facts: Mapping[str, str]
    result: Mapping[str, str]
    loss: str
    top1: str
    seen: Seen | None
    notes: Sequence[str]
    lineage: Mapping[str, str]
    color: str
    """Of its curves beside those of other runs."""


def write(
    folders: Sequence[Path],
    output: Path,
    data: str = "",
    val: ImageSet | None = None,
    device: str = "auto",
) -> None:
    """Make the page of these runs. data: where the validation images are, by default where the run says;
    val: the images themselves. device: what computes predictions: auto, cpu or cuda:INDEX.

        Raises MissingError without matplotlib and jinja2, and what reading a run raises.
    """
    require_installed()
    files.require_writable(output)
    runs = [read_run(folder) for folder in folders]
    names = _names(runs)
    sections = [
        section(run, name, COLORS[place % len(COLORS)], *_images_of(run, data, val), device)
        for place, (run, name) in enumerate(zip(runs, names, strict=True))
    ]
    files.write_text(output, html(sections))


def html(sections: Sequence[Section]) -> str:
    """The page."""
    together = ("", "") if len(sections) < 2 else _together(sections)
    values = {
        "sections": sections,
        "title": ", ".join(each.name for each in sections),
        "loss": together[0],
        "top1": together[1],
        "machine": _machine(),
        "command": _command(sections),
    }
    return render("distill.run.report", "page.html.j2", values, {"png": gallery.png})


def section(
    run: Run, name: str, color: str, images: ImageSet | None, notes: Sequence[str], device: str = "auto"
) -> Section:
    """Everything about one run; images: its validation images, None where they are not at hand."""
    own, more = None, list(notes)
    if images is not None:
        try:
            own = seen(run, images, device)
        except Large2SmallError as error:  # the data changed since, or cannot be read
            more.append(f"The validation images are not shown: {error}")
    teacher = run.number("teacher", "top1_percent")
    curves = _curves(run, "", COLORS[0], COLORS[1])
    return Section(
        run=run,
        name=name,
        facts=facts(run),
        result=result(run),
        loss=figures.loss(curves) if run.history else "",
        top1=figures.top1(curves, [] if teacher is None else [("teacher", teacher)]) if run.history else "",
        seen=own,
        notes=[printable(str(note)) for note in [*more, *run.checkpoint.notes]],
        lineage=lineage(run),
        color=color,
    )


def facts(run: Run) -> dict[str, str]:
    """What was trained on what."""
    found, recipe = run.checkpoint, run.recorded("recipe") or {}
    teacher, data = run.recorded("teacher") or {}, run.recorded("data") or {}
    names = run.class_names
    settings = ("epochs", "batch", "grad_accum", "opt", "lr", "weight_decay", "seed")
    losses = _words(recipe, ("kd_loss", "kd_temperature", "distill_loss_weight", "task_loss_weight"))
    words = {
        "student": f"{found.model}, {run.parameters:,} parameters",
        "input": f"{' x '.join(map(str, found.preprocess.input_size))}, crop {found.preprocess.crop_pct:g}"
        f" {found.preprocess.interpolation}"
        + (", turned as EXIF says" if found.preprocess.exif == "apply" else ""),
        "teacher": _teacher(teacher),
        "loss": losses if teacher else "",
        "training images": _images(data, "train"),
        "validation images": _images(data, "val"),
        "classes": f"{len(names)}: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
        if names
        else "",
        "training": _words(recipe, settings),
    }
    return {what: printable(text) for what, text in words.items() if text}


def result(run: Run) -> dict[str, str]:
    """Accuracies of result.json, with an interval where it has one."""
    best = run.number("best", "top1_percent")
    images, epoch = run.number("best", "images"), run.number("best", "epoch")
    words = {
        "student, top-1": _percent(best)
        + (f" after epoch {epoch:.0f}" if epoch else "")
        + (f" (n={images:.0f})" if images else ""),
        "student, balanced accuracy": _percent(run.number("best", "balanced_percent")),
        "best epoch chosen by": NAMES.get(str(run.result_of("best", "select")), ""),
        "early end": _early_end(run),
        "control, top-1": _percent(run.number("control", "top1_percent")),
        "teacher, top-1": _percent(run.number("teacher", "top1_percent")),
        "what the teacher added": _gain(run),
        "same class as the teacher": _percent(run.number("best", "teacher_agreement_percent")),
    }
    if best is None and isinstance(run.checkpoint.metrics.get("top1"), float):
        words["student, top-1"] = _percent(run.checkpoint.metrics["top1"])
    return {what: printable(text) for what, text in words.items() if text}


def lineage(run: Run) -> dict[str, str]:
    """Files and data with their SHA-256, and the packages of the training."""
    data, teacher = run.recorded("data") or {}, run.recorded("teacher") or {}
    versions = run.recorded("versions")
    words = {
        "best.pth": run.sha256,
        "teacher": _with_sha256(teacher, "file", "sha256"),
        "training images": _with_sha256(data, "train_spec", "train_sha256"),
        "validation images": _with_sha256(data, "val_spec", "val_sha256"),
        "trained with": _words(versions, list(versions) if isinstance(versions, Mapping) else []),
    }
    return {what: printable(text) for what, text in words.items() if text}


def seen(run: Run, images: ImageSet, device: str = "auto") -> Seen:
    """Predictions on the validation images, in tables, drawings and pictures."""
    found = predictions.of_run(run, images, device)
    names = [printable(name) for name in images.class_names]
    counts = found.confusion(len(names))
    rows = class_rows(counts, names)
    spec = run.checkpoint.preprocess
    by_accuracy = sorted(rows, key=lambda row: (row.percent is None, row.percent or 0))
    return Seen(
        images=len(found.label),
        top1_percent=100 * float(found.right.mean()),
        balanced_percent=balanced_percent(row.percent for row in rows) or 0.0,
        commonest_percent=100 * float(counts.sum(axis=1).max() / counts.sum()),
        confusion=figures.confusion(counts, names),
        class_accuracy=figures.class_accuracy([row.percent for row in rows], names),
        classes=by_accuracy,
        confused=confused(counts, names),
        worst=gallery.pictures(images, found, gallery.worst(found), names, spec),
        by_chance=gallery.pictures(images, found, gallery.by_chance(found), names, spec),
    )


def class_rows(counts: np.ndarray, names: Sequence[str]) -> list[ClassRow]:
    """counts (K, K): images by label and predicted class."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    rows = []
    for place, name in enumerate(names):
        images, right = int(counts[place].sum()), int(counts[place, place])
        other = int(wrong[place].argmax())
        taken = f"{names[other]} ({wrong[place, other]})" if wrong[place, other] else ""
        rows.append(ClassRow(name, images, right, 100 * right / images if images else None, taken))
    return rows


def confused(counts: np.ndarray, names: Sequence[str]) -> list[tuple[str, str, int]]:
    """The pairs of classes that are confused most often."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSED]
    pairs = [divmod(int(place), len(names)) for place in order]
    return [(names[a], names[b], int(wrong[a, b])) for a, b in pairs if wrong[a, b]]


def _images_of(run: Run, data: str, val: ImageSet | None) -> tuple[ImageSet | None, list[str]]:
    """(the validation images, None where they are not at hand; why they are not)."""
    try:
        spec = data or ("" if val is not None else run.checkpoint.recorded_data("val", "--data"))
        images = val
        if images is None and spec:
            images = open_of_run(spec, "val", run.folder / "best.pth")
    except Large2SmallError as error:
        if data:  # the user named it
            raise
        return None, [f"The validation images are not shown: {error}"]
    if images is None:
        return None, ["The validation images are not shown: the run does not say where they are. Give --data"]
    if isinstance(images, StreamSet):
        return None, ["The validation images are not shown: a stream cannot be looked at image by image"]
    changed = run.recorded("data", "val_sha256") not in (None, "", images.fingerprint())
    return images, ["The validation images are not those of the training: names or labels differ"] * changed


def _names(runs: Sequence[Run]) -> list[str]:
    """The folders' names; where two are alike, with the folder above."""
    plain = [run.name for run in runs]
    return [
        printable(f"{run.folder.resolve().parent.name}/{name}") if plain.count(name) > 1 else name
        for run, name in zip(runs, plain, strict=True)
    ]


def _curves(run: Run, name: str, color: str, control_color: str) -> list[Curve]:
    """Of the student and the control; name: the run's, where several are in one drawing."""
    role = run.checkpoint.role if run.checkpoint.role == "control" else "student"
    curves = [Curve(name or role, run.history, color)]
    if run.control:
        curves.append(Curve(f"{name} control".strip(), run.control, control_color, "--"))
    return curves


def _together(sections: Sequence[Section]) -> tuple[str, str]:
    """(loss, top-1) of all runs in one drawing each; a run has one color."""
    curves = [
        curve
        for each in sections
        for curve in _curves(each.run, each.name, each.color, each.color)
        if curve.epochs
    ]
    return (figures.loss(curves), figures.top1(curves)) if curves else ("", "")


def _gain(run: Run) -> str:
    """'+1.20 points (95 % interval -0.30 to +2.70)' as far as result.json says so."""
    gain = run.number("gain_points")
    if gain is None:
        return ""
    low, high = run.number("gain_low_points"), run.number("gain_high_points")
    interval = f" (95 % interval {low:+.2f} to {high:+.2f})" if low is not None and high is not None else ""
    caveat = "; cannot tell" if interval and (low or 0) <= 0 <= (high or 0) else ""
    return f"{gain:+.2f} points{interval}{caveat or (', measured with one seed' if not interval else '')}"


def _early_end(run: Run) -> str:
    """What --early-stop did, of the student and of the control."""
    said = {role: run.result_of(role, "early_end") for role in ("best", "control")}
    names = {"best": "student", "control": "control"}
    return "; ".join(f"{names[role]} {text}" for role, text in said.items() if isinstance(text, str) and text)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} %"


def _words(values: Any, names: Sequence[str]) -> str:
    known = values if isinstance(values, Mapping) else {}
    return ", ".join(f"{name} {known[name]}" for name in names if known.get(name) is not None)


def _teacher(teacher: Any) -> str:
    if not isinstance(teacher, Mapping) or not teacher.get("model"):
        return ""
    return f"{teacher['model']} from {teacher.get('file') or 'published weights'}"


def _images(data: Any, split: str) -> str:
    if not isinstance(data, Mapping) or not data.get(f"{split}_spec"):
        return ""
    count = data.get(f"{split}_images")
    return f"{count:,} of {data[f'{split}_spec']}" if isinstance(count, int) else str(data[f"{split}_spec"])


def _with_sha256(values: Any, name: str, sha256: str) -> str:
    if not isinstance(values, Mapping) or not values.get(name):
        return ""
    return f"{values[name]} {values.get(sha256) or ''}".strip()


def _machine() -> str:
    about = env.fingerprint()
    parts = [
        about["cpu"],
        f"{about['cores']} cores",
        about["gpu"],
        f"Python {about['python']}",
        about["system"],
    ]
    return ", ".join(str(part) for part in parts if part)


def _command(sections: Sequence[Section]) -> str:
    return f"distill report {' '.join(printable(str(each.run.folder)) for each in sections)}"


def after_training(folder: Path, val: ImageSet, device: str) -> None:
    """RUN/report.html at the end of a training, and one line about it on stderr; a report that cannot be made
    is that line and nothing more.
    """
    output = folder / "report.html"
    try:
        with loading("making the report"):
            write([folder], output, val=val, device=device)
        line = f"report: {output}"
    except MissingError as error:
        line = f"report: not made; {error}; then: distill report {folder}"
    except Exception as error:  # the run is finished, whatever is wrong with its picture
        reason = " ".join(str(error).split()) or type(error).__name__
        line = f"report: not made ({reason}). Try again: distill report {folder}"
    say(line)
