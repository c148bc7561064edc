"""The teacher as the trainer sees it: a frozen network that reads the student's batch.

In:  the student's batch, normalized for the student.
Out: teacher logits (N, K) float32, computed in eval mode, in the teacher's own precision, on its own preprocessing.
Elsewhere: where its weights come from (distill.checkpoint), what is made of its logits (distill.losses).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runtime import files
from runtime.artifact import require_same_classes
from runtime.errors import UsageError
from runtime.preprocess import Preprocess

from . import checkpoint as checkpoints
from . import models
from .losses import Outputs
from .recipe import Recipe, key_values

DTYPES = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}


class Teacher:
    """`teacher(images)` -> Outputs. The same image the student sees, resized and normalized again for the teacher."""

    def __init__(self, model: nn.Module, preprocess: Preprocess, student_preprocess: Preprocess, device: torch.device,
                 dtype: str = "fp32", channels_last: bool = True, compile: bool = False,
                 about: dict[str, Any] | None = None) -> None:
        self.model = model.to(device).eval().requires_grad_(False)
        if channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.forward = torch.compile(self.model) if compile else self.model
        self.preprocess = preprocess
        self.device = device
        self.dtype = DTYPES[dtype]
        self.about = about or {}
        self.size = None if preprocess.input_size == student_preprocess.input_size else preprocess.input_size[1:]
        self.scale, self.shift = renormalization(student_preprocess, preprocess, device)

    @torch.inference_mode()
    def _logits(self, images: Tensor) -> Tensor:
        if self.scale is not None:
            images = torch.addcmul(self.shift, images, self.scale)
        if self.size is not None:
            images = F.interpolate(images, self.size, mode="bicubic", antialias=True, align_corners=False)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            return self.forward(images).float()

    def __call__(self, images: Tensor) -> Outputs:
        """images (N, 3, H, W) float32, normalized for the student. The logits carry no gradient."""
        return Outputs(self._logits(images).clone())  # a clone outside inference mode, which autograd may keep


def renormalization(source: Preprocess, target: Preprocess, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """(scale, shift), each (3, 1, 1), that turn pixels normalized for `source` into those for `target`; None, None when equal."""
    if (source.mean, source.std) == (target.mean, target.std):
        return None, None
    mean_s, std_s, mean_t, std_t = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1)
                                    for v in (source.mean, source.std, target.mean, target.std))
    return (std_s / std_t).float().to(device), ((mean_s - mean_t) / std_t).float().to(device)


def load(recipe: Recipe, class_names: list[str], student_preprocess: Preprocess, device: torch.device) -> Teacher | None:
    """The recipe's teacher, or None. Raises ArtifactError when its classes or their order are not the data's."""
    if recipe.teacher == "none" or (recipe.teacher == "auto" and not recipe.teacher_ckpt):
        return None
    name = None if recipe.teacher == "auto" else recipe.teacher
    model_args = key_values(recipe.teacher_args)
    if recipe.teacher_ckpt:
        found = checkpoints.load_any(recipe.teacher_ckpt, name, model_args, "--teacher")
        require_same_classes(found.class_names, f"teacher {recipe.teacher_ckpt}", class_names, "data")
        model = models.build(found.model, len(class_names), found.model_args)
        checkpoints.load_weights(model, found)
        about = {"model": found.model, "file": str(recipe.teacher_ckpt), "sha256": files.sha256(recipe.teacher_ckpt),
                 "converted": found.lineage.get("converted")}
        preprocess = found.preprocess
    else:
        model = models.build(name, len(class_names), model_args, pretrained=True)
        preprocess = models.preprocess_of(name)
        config = getattr(model, "pretrained_cfg", {})
        if config.get("num_classes") != len(class_names):
            raise UsageError(f"teacher {name}: its published weights know {config.get('num_classes')} classes, the data has "
                             f"{len(class_names)}. Train it on your data first (--teacher none), then give --teacher-ckpt")
        about = {"model": name, "file": None, "sha256": None, "converted": None}
    dtype = (recipe.amp_dtype if recipe.amp else "fp32") if recipe.teacher_dtype == "auto" else recipe.teacher_dtype
    return Teacher(model, preprocess, student_preprocess, device, dtype, recipe.channels_last, recipe.compile,
                   about | {"dtype": dtype})
