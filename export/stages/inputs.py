"""What an export reads: the checkpoint, the evaluation images, and a way to draw calibration images.

In:  the options of a command.
Out: `Sources`, for everything that compares with a checkpoint; `Inputs`, for an export.
Elsewhere: which images of a set (export.checks.samples, export.int8.images), what is made of them
(export.stages.fp32, export.stages.lower).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from distill import models
from distill.checkpoint import Checkpoint, load_any
from distill.data import open_of_run
from distill.recipe import key_values
from runtime.errors import DataError, UsageError
from runtime.images import ImageSet
from runtime.images.classes import in_order_of

from ..int8 import images as calibration_images
from ..int8.images import CalibrationImages
from ..notes import note
from ..options.int8 import refuse_calibrated
from ..options.onnx import OnnxOptions
from ..qat import trained


class SourceOptions(Protocol):
    """The flags that name a checkpoint and the images it is judged on."""

    @property
    def checkpoint(self) -> Path: ...
    @property
    def data(self) -> str | None: ...
    @property
    def model(self) -> str | None: ...
    @property
    def model_args(self) -> tuple[str, ...]: ...
    @property
    def checkpoint_key(self) -> str: ...
    @property
    def img_size(self) -> int | None: ...
    @property
    def input_size(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Sources:
    """A checkpoint and the labeled images it is judged on."""

    checkpoint: Checkpoint
    """With class names and input size settled."""
    evaluation: ImageSet
    """The evaluation images: nothing is chosen by them, everything is judged on them."""


@dataclass(frozen=True)
class Inputs:
    """All that an export reads, opened and found to fit together."""

    options: OnnxOptions
    """With the placement settled: cpu or tensorrt."""
    checkpoint: Checkpoint
    evaluation: ImageSet
    draw: Callable[[int], CalibrationImages] | None
    """From a seed to calibration images, none of them an evaluation image; None for an export in fp32."""
    scratch: Path
    """A folder for files that are opened to be checked, and then gone."""


def open_sources(options: SourceOptions) -> Sources:
    """Open checkpoint and evaluation images.

    Raises UsageError, DataError or ArtifactError where they cannot be opened, or have other classes.
    """
    checkpoint = load_any(
        options.checkpoint, options.model, key_values(options.model_args), entry=options.checkpoint_key
    )
    evaluation = open_or_say(
        options.data or checkpoint.recorded_data("val", "--data"),
        "val",
        "--data",
        options.data is None,
        options.checkpoint,
    )
    evaluation = in_order_of(checkpoint.class_names, str(options.checkpoint), evaluation, "val")
    if checkpoint.class_names is None:
        note(
            f"the weights carry no class names; they are taken from {evaluation.name}:"
            f" {', '.join(evaluation.class_names[:4])}, ..."
        )
        checkpoint = replace(checkpoint, class_names=evaluation.class_names)
    preprocess = models.sized(checkpoint.preprocess, options.img_size, options.input_size)
    checkpoint = replace(checkpoint, preprocess=preprocess)
    return Sources(checkpoint, evaluation)


def open_inputs(options: OnnxOptions, scratch: Path) -> Inputs:
    """Everything the export will read. Raises as `open_sources`, also for calibration images."""
    sources = open_sources(options)
    checkpoint, evaluation = sources.checkpoint, sources.evaluation
    if options.int8 and checkpoint.quantized is not None:
        refuse_calibrated(options, options.checkpoint)
    options = replace(options, placement=placement_of(options, checkpoint))
    draw = open_calibration(options, sources) if options.precision != "fp32" else None
    return Inputs(options, checkpoint, evaluation, draw, scratch)


def placement_of(options: OnnxOptions, checkpoint: Checkpoint) -> Literal["cpu", "tensorrt"]:
    """The placement as the flag says, and for auto as the checkpoint or --fp16 ask for."""
    if options.placement != "auto":
        return options.placement
    if checkpoint.quantized is not None:
        return trained.placement_of(checkpoint)
    return "tensorrt" if options.fp16 else "cpu"


def open_calibration(options: OnnxOptions, sources: Sources) -> Callable[[int], CalibrationImages]:
    """A function from a seed to calibration images, none of which is an evaluation image."""
    checkpoint, evaluation = sources.checkpoint, sources.evaluation
    images = None
    if options.calib == "random":
        note(
            '--calib random: ranges of noise; the artifact is marked "not for accuracy" and not held to'
            " --max-drop"
        )
    else:
        spec = options.calib or checkpoint.recorded_data("train", "--calib")
        images = open_or_say(spec, "train", "--calib", options.calib is None, options.checkpoint)
        images = in_order_of(checkpoint.class_names, str(options.checkpoint), images, "train")
    return lambda seed: calibration_images.choose(options, images, checkpoint.preprocess, evaluation, seed)


def open_or_say(spec: str, split: str, flag: str, is_recorded: bool, checkpoint: Path) -> ImageSet:
    """Open a spec (distill.data.of_run); when it came from the checkpoint and cannot be opened here, the
    error names the flag to give.
    """
    if not spec:
        raise UsageError(
            f"the checkpoint does not say which {split} images it knows. Give real images: {flag} DIR"
        )
    if is_recorded:
        note(f"{'validation' if split == 'val' else 'training'} data from the checkpoint: {spec}")
    try:
        images = open_of_run(spec, split, checkpoint)
        if not len(images.labels):
            raise UsageError(f"{spec}: a stream cannot be sampled. Give an image folder: {flag} DIR")
        return images
    except DataError as error:
        if not is_recorded:
            raise
        raise UsageError(
            f"the checkpoint's own {split} images cannot be opened here ({error}). Give them: {flag} DIR"
        ) from error
