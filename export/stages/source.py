"""The ONNX file that a plan is built from: exported from a checkpoint, or given.

In:  a `TrtOptions`; a folder where a file may wait.
Out: `Source`: the file, which exists, and what is known about it.
Elsewhere: the export to ONNX (export.stages.onnx), the build (export.stages.plan).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runtime import files
from runtime.artifact import Metadata, read_map
from runtime.backends.onnx_file import last_operator
from runtime.errors import ArtifactError, MissingError
from runtime.images import ImageSet, open_images
from runtime.images.classes import in_order_of
from runtime.predictor import PROBABILITIES

from ..notes import note
from ..options.trt import TrtOptions


@dataclass(frozen=True)
class Source:
    """The ONNX file to build, which exists, and what is known about it."""

    onnx: Path
    meta: Metadata
    evaluation: ImageSet | None
    """Labeled images to judge the plan on, when there are any."""
    place: Callable[[], None] | None = None
    """Puts the ONNX file where it belongs, when it waits elsewhere."""


def open_source(options: TrtOptions, folder: Path) -> Source:
    """The ONNX file, exported first when the source is a checkpoint. Raises ArtifactError for one that
    TensorRT refuses.

    Where a plan stands already, the ONNX file it needs is not replaced before the new plan is there to
    follow: the exported one then waits in `folder`.
    """
    if not options.from_onnx:
        try:
            from . import onnx  # here, because a board that builds plans from ONNX files has no torch
        except ModuleNotFoundError as error:
            raise MissingError(
                f"a plan from a checkpoint needs {error.name}. Install it: pip install"
                ' "large2small[export]", or give the .onnx file'
            ) from error

        inner = options.onnx_options
        shipped = onnx.export(inner)
        if options.target.exists():
            waiting = folder / inner.target.name
            files.write_bytes(waiting, shipped.content)
            return Source(waiting, shipped.meta, shipped.evaluation, lambda: onnx.write(inner, shipped))
        onnx.write(inner, shipped)
        note(f"{inner.target}: the portable ONNX file, checked; it stays")
        return Source(inner.target, shipped.meta, shipped.evaluation)
    meta = read_onnx(options.checkpoint)
    if meta.quantization and meta.quantization.placement == "cpu":
        raise ArtifactError(
            f"{options.checkpoint}: its Q/DQ is placed for CPU engines (uint8 zero points), refused by"
            " TensorRT. Export it again: distill export onnx --int8 --placement tensorrt CKPT"
        )
    evaluation = None
    if options.data:
        evaluation = open_images(options.data, "val")  # without timm's readers, which need torch
        evaluation = in_order_of(meta.class_names, str(options.checkpoint), evaluation, "val")
    return Source(options.checkpoint, meta, evaluation)


def read_onnx(path: Path) -> Metadata:
    """What an .onnx file says about itself, its seal checked. Raises ArtifactError where it is not a network
    that a plan can be built of and run here: found now, not after minutes of building.
    """
    from ..graph.read import read_onnx as read_whole
    from ..graph.read import require_classifier

    model = read_whole(path)
    require_classifier(model, str(path))
    if (operator := last_operator(path)) in PROBABILITIES:
        raise ArtifactError(
            f"{path}: its last layer is {operator}, so a plan of it would give probabilities where logits are"
            " expected. Export it without that layer"
        )
    return read_map({entry.key: entry.value for entry in model.metadata_props}, str(path))
