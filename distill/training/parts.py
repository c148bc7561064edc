"""The parts of a training, each built from its task: student, optimizer, schedule, averaged weights, mixing.

In:  a `Task`, and the parts built before.
Out: one value per function. Whoever calls them in another order draws other random numbers.
Elsewhere: batches (distill.data), the distillation losses (distill.training.objective), the masks of sparse
training (distill.training.sparsity), the loop (distill.training.trainer).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn

from runtime.errors import UsageError

from .. import checkpoint as checkpoints
from .. import models
from ..data import balance
from ..data.seeds import seed_all
from ..models import classifier
from ..recipe import Recipe
from ..teacher import DTYPES
from .sparsity import SparseTraining
from .start import open_start
from .task import Task

WARMUP_EPOCHS = 5.0
"""Of a long run that does not say."""
FINAL_PRUNE_RATE = 0.005
"""Where the prune rate of sparse training ends, as in SLaK's published code."""


@dataclass(frozen=True)
class Student:
    """A network with the weights that training begins with."""

    model: nn.Module
    architecture: str
    model_args: dict[str, Any]
    """What it was built with, besides the number of classes."""
    notes: list[str]
    """What a person should know of these weights."""


@dataclass(frozen=True)
class Precision:
    """In which number format the student computes, and the scaler that keeps its gradients from vanishing."""

    device: torch.device
    dtype: torch.dtype | None
    """None: float32."""
    scaler: torch.amp.GradScaler

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)


def prepare_process(recipe: Recipe, device: torch.device) -> None:
    """Seed every generator, and choose the GPU."""
    seed_all(recipe.seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(recipe.seed)
        torch.cuda.set_device(device.index or 0)  # events are recorded on the current one


def open_student(task: Task) -> Student:
    """The recipe's student: fresh, from --student-ckpt, or from published weights.

    A classifier of other classes is replaced by a new one, and the notes say so. Raises ArtifactError when
    other weights do not fit.
    """
    recipe, start = task.recipe, task.start or open_start(task.recipe)
    model = models.build(
        start.model,
        len(task.class_names),
        start.model_args,
        drop_rate=recipe.drop,
        drop_path_rate=recipe.drop_path,
    )
    found = start.checkpoint
    if found is None:
        return Student(model, start.model, start.model_args, [])
    weights, notes = classifier.fitted(model, found.state_dict, found.class_names, task.class_names)
    checkpoints.load_weights(model, replace(found, state_dict=weights))
    return Student(model, start.model, start.model_args, [*found.notes, *notes])


def optimizer_and_schedule(
    recipe: Recipe, model: nn.Module, projectors: Sequence[nn.Parameter], steps_per_epoch: int
) -> tuple[torch.optim.Optimizer, Scheduler]:
    """timm's optimizer over the student and the projectors of feature losses, and its learning rates by step.

    Matrices decay, vectors do not. Raises UsageError for a name or a combination that timm does not know.
    """
    r = recipe
    try:
        optimizer = create_optimizer_v2(
            model,
            opt=r.opt,
            lr=r.peak_lr,
            weight_decay=r.weight_decay,
            momentum=r.momentum,
            layer_decay=r.layer_decay,
        )
        for decay, matrices in ((r.weight_decay, True), (0.0, False)):
            if group := [p for p in projectors if (p.ndim > 1) == matrices]:
                optimizer.add_param_group({"params": group, "weight_decay": decay})
        settings: dict[str, Any] = {
            "sched": r.sched,
            "num_epochs": r.epochs,
            "warmup_epochs": min(warmup_of(r), r.epochs - 1e-6),
            "warmup_lr": r.warmup_lr,
            "min_lr": r.min_lr,
            "step_on_epochs": False,
            "updates_per_epoch": steps_per_epoch,
            "decay_milestones": [r.epochs // 2, r.epochs * 3 // 4],
        }
        if r.sched == "step":
            settings["decay_epochs"] = max(1, r.epochs // 3)
        schedule, _ = create_scheduler_v2(optimizer, **settings)
    except (ValueError, AssertionError, RuntimeError, KeyError) as error:
        raise UsageError(
            f"optimizer {r.opt!r} with schedule {r.sched!r}: {' '.join(str(error).split())[:200]}"
        ) from error
    if schedule is None:
        raise UsageError(
            f"schedule {r.sched!r}: unknown to timm. Expected cosine, tanh, step, multistep or poly"
        )
    schedule.step_update(0)
    return optimizer, schedule


@dataclass(frozen=True)
class LayerRates:
    """The peak learning rates that --layer-decay gives to groups of layers."""

    groups: int
    """Groups of layers that train, each with a rate of its own."""
    smallest: float
    largest: float


def layer_rates(recipe: Recipe, model: nn.Module) -> LayerRates | None:
    """Of the parts of `model` that train; None without --layer-decay. Raises UsageError as
    `optimizer_and_schedule` does.
    """
    if recipe.layer_decay is None:
        return None
    optimizer, _ = optimizer_and_schedule(recipe, model, [], 1)
    rates = sorted({recipe.peak_lr * group.get("lr_scale", 1.0) for group in optimizer.param_groups})
    return LayerRates(len(rates), rates[0], rates[-1])


def warmup_of(recipe: Recipe) -> float:
    """Epochs of warm-up: what the recipe says, or WARMUP_EPOCHS and at most a fifth of the run."""
    if recipe.warmup_epochs is not None:
        return recipe.warmup_epochs
    return min(WARMUP_EPOCHS, recipe.epochs / 5)


def precision_of(recipe: Recipe, device: torch.device) -> Precision:
    """Mixed precision as --amp and --amp-dtype say; only fp16 needs its gradients scaled."""
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.amp and recipe.amp_dtype == "fp16")
    return Precision(device, DTYPES[recipe.amp_dtype] if recipe.amp else None, scaler)


def averaged_weights(recipe: Recipe, model: nn.Module) -> ModelEmaV3 | None:
    """A running average of the weights, with --model-ema."""
    if not recipe.model_ema:
        return None
    return ModelEmaV3(model, decay=recipe.model_ema_decay, use_warmup=recipe.model_ema_warmup)


def mixing(recipe: Recipe, num_classes: int) -> Mixup | None:
    """Mixup and cutmix of a batch, with --mixup or --cutmix."""
    if not (recipe.mixup or recipe.cutmix):
        return None
    return Mixup(
        recipe.mixup,
        recipe.cutmix,
        prob=recipe.mixup_prob,
        switch_prob=recipe.mixup_switch_prob,
        label_smoothing=recipe.smoothing,
        num_classes=num_classes,
    )


def label_weights(task: Task) -> torch.Tensor | None:
    """(K,) float32 on the task's device: what the labels' cross-entropy counts for each class; None without
    --class-weights.
    """
    weights = balance.class_weights(task.recipe.class_weights, task.train)
    return None if weights is None else torch.tensor(weights, dtype=torch.float32, device=task.device)


def sparse_training(
    recipe: Recipe,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: ModelEmaV3 | None,
    total_updates: int,
) -> SparseTraining | None:
    """Masks on the weights, with --sparsity."""
    if not recipe.sparsity:
        return None
    return SparseTraining(
        model,
        optimizer,
        total_updates=total_updates,
        sparsity=recipe.sparsity,
        update_every=recipe.sparse_update_every,
        prune_rate=recipe.sparse_prune_rate,
        final_prune_rate=min(FINAL_PRUNE_RATE, recipe.sparse_prune_rate),
        growth=recipe.sparse_growth,
        only_large=recipe.sparse_only_large,
        seed=recipe.seed,
        ema=ema.module if ema else None,
    )
