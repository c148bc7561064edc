"""last.pth: all a stopped training needs to end with the bits of one that was never stopped.

In:  a trainer; or last.pth and a trainer of the same recipe, images and teacher.
Out: last.pth's `state` entry; the trainer as it was when that was written.
Elsewhere: the file itself (distill.checkpoint), when it is written (distill.training.trainer).
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from runtime.errors import UsageError

from .. import recipe as recipes
from ..checkpoint import Checkpoint
from ..recipe import Recipe
from .records import EpochRecord, Tally

if TYPE_CHECKING:
    from .trainer import Trainer

FREE_ON_RESUME = {"workers", "device", "checkpoint_minutes", "eval_batch", "tensorboard", "skip_bad_images"}
"""Settings that a resumed run may change: none of them changes the weights."""


def state_of(trainer: Trainer) -> dict[str, Any]:
    """Everything besides the weights, as plain values and tensors."""
    return {
        "recipe": recipes.to_dict(trainer.recipe),
        "epoch": trainer.epoch,
        "step_in_epoch": trainer.step_in_epoch,
        "updates": trainer.updates,
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.precision.scaler.state_dict(),
        "ema": trainer.ema.module.state_dict() if trainer.ema else None,
        "sparse": trainer.sparse.state_dict() if trainer.sparse else None,
        "projectors": trainer.objective.state_dict() if trainer.objective else {},
        "random": random_state(trainer.device),
        "tally": dataclasses.asdict(trainer.tally),
        "history": [record.to_dict() for record in trainer.history],
        "best": trainer.best.to_dict() if trainer.best else {},
    }


def put_back(trainer: Trainer, state: Mapping[str, Any]) -> None:
    """Undo `state_of`. The weights are in place already."""
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.precision.scaler.load_state_dict(state["scaler"])
    if trainer.ema:
        trainer.ema.module.load_state_dict(state["ema"])
    if trainer.sparse:
        trainer.sparse.load_state_dict(state["sparse"])
    if trainer.objective:
        trainer.objective.load_state_dict(state["projectors"])
    trainer.epoch, trainer.step_in_epoch = state["epoch"], state["step_in_epoch"]
    trainer.updates = state["updates"]
    trainer.schedule.step_update(trainer.updates)
    trainer.tally = Tally(**state["tally"])
    trainer.history = [EpochRecord.from_dict(values) for values in state["history"]]
    trainer.best = EpochRecord.from_dict(state["best"]) if state["best"] else None
    set_random_state(state["random"], trainer.device)


def require_same_run(last: Checkpoint, recipe: Recipe, lineage: Mapping[str, Any]) -> dict[str, Any]:
    """The state in last.pth. Raises UsageError when it holds none, or when images, teacher or a setting that
    changes the weights are not those the run began with.
    """
    if last.state is None:
        raise UsageError(f"{last.path}: holds weights only. Resume from the run's last.pth")
    now = recipes.to_dict(recipe)
    then = (
        recipes.to_dict(Recipe()) | last.state["recipe"]
    )  # a setting the run's version did not know has its default
    for key in now:
        if key not in FREE_ON_RESUME and now[key] != then[key]:
            raise UsageError(
                f"--{key.replace('_', '-')} is {now[key]!r}, the run to resume has {then[key]!r}. "
                "A resumed run keeps its recipe; start another one with a new --output"
            )
    for key, which in (("train_sha256", "training"), ("val_sha256", "validation")):
        before, today = (about.get("data", {}).get(key) for about in (last.lineage, lineage))
        if before and today and before != today:
            raise UsageError(
                f"{last.path}: the {which} images are not those the run began with. Put them back (a broken"
                " one may stay, with --skip-bad-images), or start another run with a new --output"
            )
    before, today = ((about.get("teacher") or {}).get("sha256") for about in (last.lineage, lineage))
    if before != today:
        raise UsageError(
            f"{last.path}: the teacher's file is not the one the run began with. Put it back, "
            "or start another run with a new --output"
        )
    return last.state


def random_state(device: torch.device) -> dict[str, Any]:
    """State of python's, numpy's and torch's generators, as values `weights_only` loading accepts; of GPUs
    that of `device`.
    """
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Undo `random_state`, on a GPU of another number if need be."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"][0], device)
