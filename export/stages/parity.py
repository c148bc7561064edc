"""The comparison of `distill parity`: training, calibration and the runtime see the same pixels and decide
alike.

In:  a checkpoint, an artifact made from it, labeled images.
Out: the numbers; GateError naming the first step and the first image that differ.
Elsewhere: the three roads themselves: distill.data.eval_loader, export.checks.samples.batches,
     runtime.predictor; the checks every export makes on some images (export.checks.verify).

The steps, in this order: preprocessing spec, class names, labels and pixels of every image, logits and
decisions. The roads share code today; this is what notices when they no longer do.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from distill.checkpoint import Checkpoint
from distill.data import eval_loader
from distill.evaluate import require_readable
from runtime import files
from runtime.artifact import first_class_difference
from runtime.cli import terminal
from runtime.errors import ArtifactError, GateError
from runtime.images import FileSet, ImageSet
from runtime.predictor import Predictor, load
from runtime.preprocess import Preprocess

from ..checks import samples
from ..checks.rounding import torch_logits
from ..checks.samples import Subset
from ..options.parity import ParityOptions
from .fp32 import network_of
from .inputs import open_sources

ROADS = ("training's evaluation", "calibration", "the runtime")
COLORS = ("red", "green", "blue")
BATCH = 16
"""Images that take each road at a time."""


def compare(options: ParityOptions) -> dict[str, Any]:
    """Every step on every chosen image; returns the numbers. Raises GateError naming the step and the image
    that differ.
    """
    sources = open_sources(options)
    checkpoint, images = sources.checkpoint, sources.evaluation
    with _opened(options.file) as predictor:
        spec = predictor.preprocess
        if spec is None:
            raise ArtifactError(
                f"{options.file}: does not say how images are preprocessed, so there is nothing to compare."
                " Export the checkpoint again: distill export onnx"
            )
        require_same_spec(checkpoint.preprocess, spec, predictor.path)
        require_same_names(checkpoint, predictor)
        chosen = samples.choose(images.labels, options.size or len(images), options.seed)
        student, reference, logits = network_of(checkpoint), [], []
        for pixels in same_pixels(images, chosen, checkpoint.preprocess, spec):
            reference.append(torch_logits(student, pixels))
            logits.append(predictor.logits_in_batches(pixels, finite=False))
        decisions = compare_decisions(
            np.concatenate(reference), np.concatenate(logits), predictor, images, chosen, options
        )
        made_from = (predictor.metadata.lineage.get("checkpoint") or {}).get("sha256")
        return {
            "checkpoint": str(options.checkpoint),
            "file": str(options.file),
            "precision": predictor.metadata.precision,
            "made_from_this_checkpoint": made_from and made_from == files.sha256(options.checkpoint),
            "data": images.name,
            "images": len(chosen),
            "classes": len(images.class_names),
            "preprocess": spec.to_dict(),
            **decisions,
        }


def require_same_spec(ours: Preprocess, artifact: Preprocess, path: str | Path) -> None:
    """Raise GateError naming the first setting in which the artifact's preprocessing is another one."""
    theirs = asdict(artifact)
    for name, value in asdict(ours).items():
        if value != theirs[name]:
            hint = (
                ". Was it exported with --img-size or --input-size? Give the same here"
                if name == "input_size"
                else ". Export it again"
            )
            raise GateError(
                f"step preprocessing: {name} is {value} in the checkpoint, {theirs[name]} in {path}{hint}"
            )


def require_same_names(checkpoint: Checkpoint, predictor: Predictor) -> None:
    """Raise GateError naming the first class that is another one in the artifact."""
    difference = first_class_difference(checkpoint.class_names or [], predictor.class_names or [])
    if difference:
        raise GateError(
            f"step class names: {difference} (checkpoint against {predictor.path}). Export it again"
        )


def same_pixels(
    images: ImageSet, chosen: np.ndarray, preprocess: Preprocess, artifact: Preprocess
) -> Iterator[np.ndarray]:
    """The chosen images as the runtime sees them, (n, C, H, W) float32, once both other roads were found to
    see the same. preprocess: the checkpoint's; artifact: the file's.
    """
    import torch

    done = 0
    calibration = samples.batches(images, chosen, preprocess, BATCH, "comparing pixels and decisions")
    evaluation = eval_loader(Subset(images, chosen), preprocess, BATCH, 0, torch.device("cpu"))
    for training, (calibrating, its_labels) in zip(evaluation, calibration, strict=True):
        require_readable(training.bad, skip_bad=False)
        some = [int(i) for i in chosen[done : done + BATCH]]
        running = artifact.batch(application_input(images, i) for i in some)
        for k, index in enumerate(some):
            where = f"image {done + k + 1} of {len(chosen)}, {images.item_name(index)}"
            require_same_label(images, index, int(training.labels[k]), int(its_labels[k]), where)
            require_same_pixels([training.images[k].numpy(), calibrating[k], running[k]], preprocess, where)
        done += len(some)
        yield running


def application_input(images: ImageSet, index: int) -> Any:
    """What an application would hand to the runtime: the file, or the encoded image where there is
    no file.
    """
    if isinstance(images, FileSet):
        return images.item_name(index)
    encoded = io.BytesIO()
    image = images.image(index)
    image.save(encoded, "PNG", exif=image.info.get("exif", b""))
    return encoded.getvalue()


def require_same_label(images: ImageSet, index: int, training: int, calibrating: int, where: str) -> None:
    """Raise GateError unless both labels name the class that the image's own folder (else the set's list)
    does.
    """
    names = images.class_names
    own = images.own_class(index) if isinstance(images, FileSet) else names[images.labels[index]]
    for label, road in zip((training, calibrating), ROADS, strict=False):
        if not 0 <= label < len(names) or names[label] != own:
            said = repr(names[label]) if 0 <= label < len(names) else f"class {label} of {len(names)}"
            raise GateError(
                f"step labels: {where}: {road} calls it {said}; it is {own!r}. Labels and images are not in"
                " the same order: check the data set"
            )


def require_same_pixels(roads: list[np.ndarray], preprocess: Preprocess, where: str) -> None:
    """Raise GateError unless three arrays (C, H, W), in the order of ROADS, are equal bit for bit; says which
    one is alone.
    """
    raw = [array.tobytes() + str((array.shape, array.dtype)).encode() for array in roads]
    if raw[0] == raw[1] == raw[2]:
        return
    odd = next((k for k in range(3) if raw[k - 1] == raw[k - 2]), None)  # the other two are equal
    one, other = (0, 1) if odd is None else (odd, (odd + 1) % 3)
    which = (
        "all three roads differ"
        if odd is None
        else f"{ROADS[odd]} differs from {ROADS[odd - 2]} and {ROADS[odd - 1]}"
    )
    raise GateError(f"step pixels: {where}: {which}, {difference(roads[one], roads[other], preprocess)}")


def difference(one: np.ndarray, other: np.ndarray, preprocess: Preprocess) -> str:
    """Where two preprocessed images (C, H, W) part most, in levels of 0 to 255 of the pixel before mean and
    std.
    """
    if one.shape != other.shape or one.dtype != other.dtype:
        return f"{one.dtype} {one.shape} against {other.dtype} {other.shape}"
    spread = 255 * np.reshape(preprocess.std, (3, 1, 1))
    mean = 255 * np.reshape(preprocess.mean, (3, 1, 1))
    one, other = (array * spread + mean for array in (one, other))
    apart = np.abs(one - other)
    channel, row, column = np.unravel_index(int(np.argmax(apart)), apart.shape)
    exchanged = np.allclose(one[::-1], other, atol=0.01)
    return f"most by {apart.max():.3g} of 255 levels at {COLORS[channel]}, row {row}, column {column}" + (
        ": red and blue are exchanged" if exchanged else ""
    )


def compare_decisions(
    reference: np.ndarray,
    logits: np.ndarray,
    predictor: Predictor,
    images: ImageSet,
    chosen: np.ndarray,
    options: ParityOptions,
) -> dict[str, Any]:
    """The checkpoint's logits (N, K) against the artifact's, same images. Raises GateError: for fp32 at any
    difference above --atol or any other decision, otherwise below --min-agreement.
    """
    if reference.shape != logits.shape or not (np.isfinite(reference).all() and np.isfinite(logits).all()):
        raise GateError(
            f"step logits: {reference.shape} of the checkpoint against {logits.shape} of {predictor.path}, "
            "or some are not finite. Export it again"
        )
    names, labels = images.class_names, images.labels[chosen]
    guessed = np.array([rows[0].label for rows in predictor.predictions(logits, 1)])
    wanted = np.array([names[k] for k in reference.argmax(1)])
    same, apart = guessed == wanted, np.abs(reference - logits).max(1)
    scale, agreement = max(1.0, float(np.abs(reference).max())), 100 * float(same.mean())
    exact = predictor.metadata.precision == "fp32"
    allowed = options.atol * scale if exact else None
    wrong = ~same | (apart > allowed) if exact else ~same
    if wrong.any() and (exact or agreement < options.min_agreement):
        k = int(np.argmax(wrong))
        limit = (
            f"its logits differ by {apart[k]:.3g}, allowed {allowed:.3g} = {options.atol:g} x logit scale"
            f" {scale:.3g}"
            if exact
            else (
                f"decisions agree on {agreement:.2f} % of {len(same)} images, at least"
                f" {options.min_agreement:g} % expected"
            )
        )
        raise GateError(
            f"step {'logits' if same[k] else 'decisions'}: image {k + 1} of {len(same)},"
            f" {images.item_name(int(chosen[k]))}: the checkpoint says {wanted[k]}, {predictor.path}"
            f" {guessed[k]}; {limit}. Is it made from this checkpoint? See distill inspect {predictor.path}"
            " --checkpoint CKPT"
        )
    return {
        "agreement_percent": agreement,
        "max_abs_logit_difference": float(apart.max()),
        "logit_scale": scale,
        "allowed_logit_difference": allowed,
        "min_agreement_percent": 100.0 if exact else options.min_agreement,
        "checkpoint_top1_percent": 100 * float((reference.argmax(1) == labels).mean()),
        "file_top1_percent": 100 * float((logits.argmax(1) == labels).mean()),
    }


def show(values: dict[str, Any]) -> None:
    """The result as a table: a line per step."""
    from rich import box
    from rich.table import Table

    n, exact = values["images"], values["allowed_logit_difference"]
    table = Table(
        "step",
        "result",
        title=f"{values['checkpoint']} against {values['file']}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    limit = (
        f" (allowed {exact:.3g})"
        if exact
        else f" (int8 and fp16 round; {values['min_agreement_percent']:g} % asked for)"
    )
    for row in (
        ("preprocessing", "equal"),
        ("class names", f"{values['classes']} equal, in the same order"),
        ("labels", f"equal on {n} images"),
        ("pixels", f"equal bit for bit on {n} images: {', '.join(ROADS)}"),
        (
            "logits",
            f"largest difference {values['max_abs_logit_difference']:.3g} at scale"
            f" {values['logit_scale']:.3g}" + (limit if exact else ""),
        ),
        (
            "decisions",
            f"equal on {values['agreement_percent']:.2f} % of {n} images" + ("" if exact else limit),
        ),
    ):
        table.add_row(*row)
    screen = terminal.screen(width=None if sys.stdout.isatty() else 120)
    screen.print(table)
    screen.print(
        f"top-1 on these images: checkpoint {values['checkpoint_top1_percent']:.2f} %, {values['precision']}"
        f" file {values['file_top1_percent']:.2f} % (n={n} of {values['data']})",
        soft_wrap=True,
    )
    if values["made_from_this_checkpoint"] is False:
        screen.print("note: by its lineage the file was made from another checkpoint", soft_wrap=True)


def _opened(path: Path) -> Predictor:
    """The artifact; ArtifactError when it does not say how images become its input."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is unknown is an error here
        predictor = load(path)
    if predictor.unknown:
        raise ArtifactError(
            f"{path}: carries no {' and no '.join(predictor.unknown)}, so there is nothing to compare. Export"
            " it with distill export onnx"
        )
    return predictor
