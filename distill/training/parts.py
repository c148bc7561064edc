"""The parts of a training, each built from its task: student, optimizer, schedule, averaged weights.

In:  a `Task`, and the parts built before.
Out: one value per function. Whoever calls them in another order draws other random numbers.
Elsewhere: what names mean (distill.models.names), files of weights (distill.checkpoint), batches
(distill.data), the distillation losses (distill.training.objective), the masks of sparse training
(distill.training.sparsity), the loop (distill.training.trainer).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn

from runtime.errors import UsageError
from runtime.preprocess import Preprocess

from .. import checkpoint as checkpoints
from .. import models
from ..data import balance
from ..data.seeds import seed_all
from ..models import classifier, names
from ..recipe import Recipe, key_values
from ..teacher import DTYPES
from .sparsity import SparseTraining
from .task import Start, Task

DEFAULT = "resnet18"
"""The architecture where neither --student nor a file names one."""
WAY_OUT = "--student-ckpt FILE"
"""Instead of weights that are fetched."""
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


def open_start(recipe: Recipe, kept: Path | None = None) -> Start:
    """The student as the recipe says it. kept: a checkpoint that a stopped run took from a hub or a folder.

    Raises UsageError for two sizes and for a name that is not known, ArtifactError for a file of another
    architecture, MissingError where the hub is out of reach.
    """
    arguments = key_values(recipe.student_args)
    if kept is not None:
        return _of_kept(recipe, arguments, kept)
    if recipe.student_ckpt:
        return _of_file(recipe, arguments)
    name = DEFAULT if recipe.student == "auto" else recipe.student
    network = names.resolve(name, WAY_OUT)
    arguments = network.model_args | arguments
    preprocess = _asked(recipe, models.preprocess_from(network.config), arguments)
    arguments = models.size_argument(network.architecture, preprocess.input_size[1:]) | arguments
    start = Start(network.name, network.architecture, arguments, preprocess)
    if not (recipe.pretrained or names.says_weights(network.name)):
        return start
    return replace(start, read=lambda: checkpoints.load_published(network, arguments, WAY_OUT))


def _of_kept(recipe: Recipe, arguments: dict[str, Any], kept: Path) -> Start:
    found = checkpoints.load(kept)
    preprocess = _asked(recipe, found.preprocess, arguments)
    return Start(recipe.student, found.model, found.model_args, preprocess, read=lambda: found)


def _of_file(recipe: Recipe, arguments: dict[str, Any]) -> Start:
    file = checkpoints.open_file(recipe.student_ckpt)
    asked = None if recipe.student == "auto" else recipe.student
    if file.is_ours:
        found = file.as_model(asked, entry=recipe.checkpoint_key)
        preprocess = _asked(recipe, found.preprocess, arguments)
        arguments = (
            found.model_args | models.size_argument(found.model, preprocess.input_size[1:]) | arguments
        )
        return Start(found.model, found.model, arguments, preprocess, read=lambda: found)
    model = file.require_name(asked, "--student")
    preprocess = _asked(recipe, models.preprocess_of(model), arguments)
    said = {
        "mean": recipe.mean,
        "std": recipe.std,
        "interpolation": recipe.interpolation,
        "input_size": recipe.input_size or recipe.img_size or arguments.get("img_size"),
    }
    assumed = models.assumption(preprocess, "", [name for name, value in said.items() if value])
    arguments = models.size_argument(model, preprocess.input_size[1:]) | arguments
    found = file.as_model(model, arguments, "--student", recipe.checkpoint_key)
    # a published file may show its own kernel sizes
    return Start(model, model, found.model_args, preprocess, assumed, read=lambda: found)


def _asked(recipe: Recipe, preprocess: Preprocess, arguments: dict[str, Any]) -> Preprocess:
    """`preprocess` with what the recipe says of it. arguments: of the network, as the user gives them."""
    preprocess = _sized(preprocess, recipe, arguments.get("img_size", 0))
    # random crops of a padded image show it at its own scale, and so must validation
    crop_pct = recipe.crop_pct or (1.0 if recipe.crop_padding else preprocess.crop_pct)
    said = {
        "mean": recipe.mean,
        "std": recipe.std,
        "interpolation": recipe.interpolation,
        "exif": recipe.exif,
    }
    return models.as_asked(
        replace(preprocess, crop_pct=crop_pct), {name: value for name, value in said.items() if value}
    )


def _sized(preprocess: Preprocess, recipe: Recipe, built_for: Any) -> Preprocess:
    """At the size of --img-size, --input-size or an argument of the network; as it is where none is given."""
    asked = models.sized(preprocess, recipe.img_size, recipe.input_size)
    if not built_for:
        return asked
    size = (3, *models.sides_of(built_for))
    if (recipe.img_size or recipe.input_size) and asked.input_size != size:
        words = " ".join(map(str, recipe.input_size))
        flag = f"--input-size {words}" if words else f"--img-size {recipe.img_size}"
        raise UsageError(f"{flag} and --student-args img_size={built_for}: two sizes. Give one")
    return replace(preprocess, input_size=size)


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
    checkpoints.require_finite(weights, f"student {found.path or start.name}")
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


def label_weights(task: Task) -> torch.Tensor | None:
    """(K,) float32 on the task's device: what an image of each class counts in the labels' cross-entropy;
    None without --class-weights.
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
