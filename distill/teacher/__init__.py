"""The teacher as the trainer sees it: a frozen network that reads the student's batch.

In:  the student's batch, normalized for the student.
Out: teacher logits (N, K) float32 and feature maps, computed in eval mode, in the teacher's own precision, on
     its own preprocessing.
Elsewhere: where its weights come from (distill.checkpoint), what is made of its logits (distill.losses),
CUDA graphs and streams (on_cuda.py).
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runtime import files
from runtime.artifact import require_same_classes
from runtime.errors import ArtifactError, GateError, UsageError
from runtime.preprocess import Preprocess

from .. import checkpoint as checkpoints
from .. import models
from ..checkpoint import Checkpoint
from ..losses.base import Outputs
from ..losses.feature.taps import Taps
from ..models import classifier, names
from ..models.depthwise import network_format
from ..models.merge import reparameterize, require_equal
from ..recipe import Recipe, key_values
from .on_cuda import Recorded, SideStream

BF16_CAPABILITY = (8, 0)
"""Compute capability of the first GPUs with tensor cores for bfloat16."""
DTYPES = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}


WAY_OUT = "--teacher-ckpt FILE"
"""Instead of weights that are fetched."""
USUAL_CAUSES = (
    "its class order may differ from the data's, or it was trained with another --teacher-mean and"
    " --teacher-std"
)
"""Why a teacher may know less than it should."""


@dataclass(frozen=True)
class Origin:
    """Where a teacher comes from and how it computes; kept in the lineage of every student."""

    model: str
    """Architecture."""
    file: str | None = None
    """None: published weights."""
    sha256: str | None = None
    converted: list[str] | None = None
    """What was changed to read a foreign file."""
    merged: str = "not merged"
    """Whether its branches were merged, as a line to read."""
    dtype: str = "fp32"
    """fp32, fp16 or bf16."""
    fitted: str | None = None
    """How its classifier was fitted to the data, where its own was for other classes."""
    published: str | None = None
    """The name that its weights are published under."""
    preprocess: dict[str, Any] | None = None
    """How its images are resized and normalized (runtime.preprocess)."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Teacher:
    """`teacher(images)` -> Outputs. The same image the student sees, resized and normalized again for the
    teacher.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocess: Preprocess,
        student_preprocess: Preprocess,
        device: torch.device,
        dtype: str = "fp32",
        channels_last: bool = True,
        compile: bool = False,
        origin: Origin | None = None,
        graph: bool = False,
        stream: bool = False,
    ) -> None:
        """graph: record the forward pass as a CUDA graph; stream: compute `beside` the student. Both change
        nothing where the device is not CUDA.
        """
        self.model = model.to(device).eval().requires_grad_(False)
        self.memory_format = network_format(model, device, channels_last)
        """Channels-last, if asked for, unless another is faster for this network on this device."""
        self.model = self.model.to(memory_format=self.memory_format)
        self.forward = torch.compile(self.model) if compile else self.model
        self.preprocess = preprocess
        self.device = device
        self.dtype = DTYPES[dtype]
        self.origin = origin or Origin(type(model).__name__, dtype=dtype)
        self.taps: Taps | None = None
        """What also gives feature maps, where a loss asks for them."""
        self.size = (
            None if preprocess.input_size == student_preprocess.input_size else preprocess.input_size[1:]
        )
        self.scale, self.shift = renormalization(student_preprocess, preprocess, device)
        self.side = SideStream(device, stream)
        self.recorded = Recorded() if graph and device.type == "cuda" else None

    @property
    def layout(self) -> str:
        """Its memory format, in words."""
        return "channels-last" if self.memory_format == torch.channels_last else "contiguous maps"

    def tap(self) -> Taps:
        """Give feature maps too from now on, of stages that the result is told to use."""
        self.untap()
        self.recorded = Recorded() if self.recorded else None
        self.taps = Taps(self.model, self.preprocess.input_size, self.forward)
        return self.taps

    def untap(self) -> None:
        """Give logits alone."""
        if self.taps:
            self.taps.close()
            self.recorded = Recorded() if self.recorded else None
        self.taps = None

    def plain(self) -> Teacher:
        """The same network without taps, compiler, graph and stream, to try something with."""
        plain = copy.copy(self)
        plain.forward, plain.taps = self.model, None
        plain.recorded, plain.side = None, SideStream(self.device, False)
        return plain

    @torch.inference_mode()
    def _outputs(self, images: Tensor) -> Outputs:
        return self.recorded(self._computed, images) if self.recorded else self._computed(images)

    def _computed(self, images: Tensor) -> Outputs:
        if self.scale is not None and self.shift is not None:
            images = torch.addcmul(self.shift, images, self.scale)
        if self.size is not None:
            images = F.interpolate(images, self.size, mode="bicubic", antialias=True, align_corners=False)
        if self.device.type == "cuda":  # the format of the images decides that of the first convolutions
            images = images.contiguous(memory_format=self.memory_format)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            return self.taps(images) if self.taps else Outputs(self.forward(images))

    @torch.inference_mode()
    def in_fp32(self, images: Tensor) -> Tensor:
        """Its logits in float32, whatever its precision: to see whether this is what they are NaN by."""
        plain = self.plain()
        plain.dtype = None
        return plain._outputs(images).logits

    def __call__(self, images: Tensor) -> Outputs:
        """images (N, 3, H, W) float32, normalized for the student. Logits and features carry no gradient."""
        out = self._outputs(images)  # cloned outside inference mode, so that autograd may keep them
        return Outputs(out.logits.float().clone(), tuple(feature.clone() for feature in out.features))


def renormalization(
    source: Preprocess, target: Preprocess, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """(scale, shift), each (3, 1, 1), that turn pixels normalized for `source` into those for `target`; None,
    None when equal.
    """
    if (source.mean, source.std) == (target.mean, target.std):
        return None, None
    mean_s, std_s, mean_t, std_t = (
        torch.tensor(v, dtype=torch.float64).view(3, 1, 1)
        for v in (source.mean, source.std, target.mean, target.std)
    )
    return (std_s / std_t).float().to(device), ((mean_s - mean_t) / std_t).float().to(device)


@dataclass(frozen=True)
class Source:
    """A teacher's network as its weights are, before it is frozen and put to work."""

    model: nn.Module
    """With the data's classes."""
    model_args: dict[str, Any]
    preprocess: Preprocess
    origin: Origin
    is_new: bool
    """Whether its classifier is a new one, which knows nothing yet."""
    notes: list[str]
    """What a person should know of it."""


def open_source(recipe: Recipe, class_names: list[str], kept: Path | None = None) -> Source | None:
    """The recipe's teacher, or None. kept: a checkpoint that a stopped run took from a hub or a folder.

    Raises ArtifactError or UsageError when its classes are not the data's and --teacher-fit is none, before
    anything is fetched.
    """
    if recipe.teacher == "none" or (recipe.teacher == "auto" and not recipe.teacher_ckpt):
        return None
    if kept:
        source = _filled(recipe, class_names, checkpoints.load(kept), recipe.teacher)
    else:
        source = (_of_file if recipe.teacher_ckpt else _published)(recipe, class_names)
    whose = source.origin.file or source.origin.published or source.origin.model
    checkpoints.require_finite(source.model.state_dict(), f"teacher {whose}")
    return source


def _asked(recipe: Recipe) -> dict[str, Any]:
    """What the user says of the teacher's preprocessing."""
    said = {
        "mean": recipe.teacher_mean,
        "std": recipe.teacher_std,
        "interpolation": recipe.teacher_interpolation,
        "input_size": recipe.teacher_input_size,
    }
    return {name: value for name, value in said.items() if value}


def _filled(recipe: Recipe, class_names: list[str], found: Checkpoint, published: str | None) -> Source:
    """The network of `found` for the data's classes. published: under which name its weights are; None for
    those of a file.
    """
    where = f"teacher {published or found.path}"
    model = models.build(found.model, len(class_names), found.model_args)
    weights, notes = classifier.fitted(model, found.state_dict, found.class_names, class_names)
    is_new = any(classifier.NEW in note for note in notes)
    if is_new and recipe.teacher_fit == "none":
        raise ArtifactError(
            f"{where}: {notes[0]}, and --teacher-fit is none. Let it be fitted to the data"
            " (--teacher-fit head), or give a teacher of these classes"
        )
    checkpoints.load_weights(model, replace(found, state_dict=weights))
    said = _asked(recipe)
    preprocess = models.as_asked(found.preprocess, said)
    if found.class_names is None and not published:
        built_for = ("input_size",) if "img_size" in key_values(recipe.teacher_args) else ()
        notes += models.assumption(preprocess, "teacher-", (*said, *built_for))
    notes = [*found.notes, *notes]
    origin = Origin(
        found.model,
        file=None if published else found.path,
        sha256=files.sha256(found.path) if found.path and not published else None,
        converted=notes,
        published=published,
    )
    return Source(model, found.model_args, preprocess, origin, is_new, notes)


def _of_file(recipe: Recipe, class_names: list[str]) -> Source:
    path, asked = recipe.teacher_ckpt, None if recipe.teacher == "auto" else recipe.teacher
    given = key_values(recipe.teacher_args)
    found = checkpoints.load_any(path, asked, given, "--teacher", recipe.teacher_checkpoint_key)
    if recipe.teacher_fit == "none":
        require_same_classes(found.class_names, f"teacher {path}", class_names, "data")
    return _filled(recipe, class_names, found, None)


def _published(recipe: Recipe, class_names: list[str]) -> Source:
    """From published weights, whose number of classes is compared before they are fetched."""
    network = names.resolve(recipe.teacher, WAY_OUT)
    if network.classes not in (None, len(class_names)) and recipe.teacher_fit == "none":
        raise UsageError(
            f"teacher {network.name}: its published weights know {network.classes} classes, the data has"
            f" {len(class_names)}, and --teacher-fit is none. Let it be fitted to the data (--teacher-fit"
            " head), or give a teacher of these classes with --teacher-ckpt"
        )
    given = network.model_args | key_values(recipe.teacher_args)
    arguments = models.size_argument(network.architecture, recipe.teacher_input_size) | given
    found = checkpoints.load_published(network, arguments, WAY_OUT)
    if "img_size" in arguments:
        size = (3, *models.sides_of(arguments["img_size"]))
        found = replace(found, preprocess=replace(found.preprocess, input_size=size))
    return _filled(recipe, class_names, found, network.name)


def seeing(source: Source, exif: str) -> Source:
    """The teacher on images that are turned as the student's are: it reads the student's batches. exif:
    `ignore` or `apply`, the run's.
    """
    notes = list(source.notes)
    if source.preprocess.exif == "apply" and exif == "ignore":
        notes.append("was trained on images turned as EXIF says, and these are not: give --exif apply")
    return replace(source, preprocess=replace(source.preprocess, exif=exif), notes=notes)


def load(
    recipe: Recipe, class_names: list[str], student_preprocess: Preprocess, device: torch.device
) -> Teacher | None:
    """The recipe's teacher, ready to teach, or None. Raises ArtifactError when its classes or their order are
    not the data's: a teacher that has to be fitted first is the run's affair (distill.run.teacher_fit).
    """
    source = open_source(replace(recipe, teacher_fit="none"), class_names)
    if source is None:
        return None
    return ready(seeing(source, student_preprocess.exif), recipe, student_preprocess, device)


def ready(source: Source, recipe: Recipe, student_preprocess: Preprocess, device: torch.device) -> Teacher:
    """The teacher, merged and frozen."""
    model, merged = _merge(source.model, source.preprocess)
    dtype = precision(recipe, device)
    return Teacher(
        model,
        source.preprocess,
        student_preprocess,
        device,
        dtype,
        recipe.channels_last,
        recipe.compile,
        replace(source.origin, merged=merged, dtype=dtype, preprocess=source.preprocess.to_dict()),
        recipe.teacher_graph,
        recipe.teacher_stream,
    )


def precision(recipe: Recipe, device: torch.device) -> str:
    """fp32, fp16 or bf16: what is asked for; else bf16 on a GPU with the units for it; else the student's."""
    if recipe.teacher_dtype != "auto":
        return recipe.teacher_dtype
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= BF16_CAPABILITY:
        return "bf16"
    return recipe.amp_dtype if recipe.amp else "fp32"


def _merge(model: nn.Module, preprocess: Preprocess) -> tuple[nn.Module, str]:
    """The network with its parallel branches and batch norms merged, which is the same and faster, and a line
    that says so.

    One that does not come out the same (a network that amplifies rounding) is used as it is.
    """
    merged = reparameterize(model)
    try:
        difference = require_equal(model, merged, preprocess.input_size)
    except GateError as error:
        return model, f"not merged: {error}"
    return merged, f"merged for inference; its outputs change by at most {difference:.0e} of their spread"
