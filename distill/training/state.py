"""What a resumed training must have in common with the run that was stopped, and the state of chance.

In:  last.pth, the recipe and lineage of today; or the generators of this process.
Out: the saved state, once nothing differs; the state of every random generator.
Elsewhere: the file itself (distill.checkpoint), what else is saved and put back (distill.training.trainer).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from runtime.errors import ArtifactError, UsageError

from .. import recipe as recipes
from ..checkpoint import Checkpoint
from ..recipe import Recipe

FREE_ON_RESUME = {
    *("workers", "device", "checkpoint_minutes", "eval_batch", "tensorboard", "skip_bad_images"),
    "early_stop",
    "verify_labels",
}
"""Settings that a resumed run may change: none of them changes the weights of an epoch."""


def require_same_run(last: Checkpoint, recipe: Recipe, lineage: Mapping[str, Any]) -> dict[str, Any]:
    """The state in last.pth. Raises UsageError when it holds none, or when images, teacher or a setting that
    changes the weights are not those the run began with.
    """
    if last.state is None:
        raise UsageError(f"{last.path}: holds weights only. Resume from the run's last.pth")
    if not isinstance(last.state.get("recipe"), Mapping):
        raise ArtifactError(f"{last.path}: damaged checkpoint (its state names no recipe)")
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
    before, today = ((about.get("labels") or {}).get("sha256") for about in (last.lineage, lineage))
    if before != today:
        raise UsageError(
            f"{last.path}: the stored labels are not those the run began with. Put them back, or start"
            " another run with a new --output"
        )
    now = recipes.to_dict(recipe)
    then = (
        recipes.to_dict(Recipe()) | last.state["recipe"]
    )  # a setting the run's version did not know has its default
    free = FREE_ON_RESUME | _moved(last.lineage, lineage)
    for key in now:
        if key not in free and now[key] != then[key]:
            raise UsageError(
                f"--{key.replace('_', '-')} is {now[key]!r}, the run to resume has {then[key]!r}. "
                "A resumed run keeps its recipe; start another one with a new --output"
            )
    return last.state


def _moved(then: Mapping[str, Any], now: Mapping[str, Any]) -> set[str]:
    """Settings that name a place whose content is the one the run began with, so that the place is free."""
    pairs = {
        "data": ("data", "train_sha256"),
        "val_data": ("data", "val_sha256"),
        "teacher_ckpt": ("teacher", "sha256"),
        "student_ckpt": ("student", "sha256"),
        "teacher_labels": ("labels", "sha256"),
    }
    found = {
        name: [(about.get(part) or {}).get(key) for about in (then, now)]
        for name, (part, key) in pairs.items()
    }
    return {name for name, (before, today) in found.items() if before and before == today}


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
