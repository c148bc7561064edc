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
from ..checkpoint.typed import require_simple
from ..recipe import Recipe

FREE_ON_RESUME = {
    *("workers", "device", "checkpoint_minutes", "eval_batch", "tensorboard", "skip_bad_images"),
    "early_stop",
    "verify_labels",
    *("cache", "cache_limit", "cache_folder"),
    *("teacher_graph", "teacher_stream"),
}
"""Settings that a resumed run may change: none of them changes the weights of an epoch."""
DAMAGED = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError, AssertionError)
"""What putting a state back raises where its values are not those that were saved."""
MOST_STEPS = 2**48
"""What the steps and epochs of a run are below."""
MERSENNE_WORDS = 624
"""Words in the state of NumPy's generator, in which it has a position."""


def require_same_run(
    last: Checkpoint, recipe: Recipe, lineage: Mapping[str, Any], processes: int = 1
) -> dict[str, Any]:
    """The state in last.pth. processes: how many train now.

    Raises UsageError when it holds none, or when images, teacher or a setting that changes the weights are
    not those the run began with.
    """
    if last.state is None:
        raise UsageError(f"{last.path}: holds weights only. Resume from the run's last.pth")
    if not isinstance(last.state.get("recipe"), Mapping):
        raise ArtifactError(f"{last.path}: damaged checkpoint (its state names no recipe)")
    try:
        require_simple(last.state["recipe"], "recipe")
    except TypeError as error:
        raise ArtifactError(f"{last.path}: damaged checkpoint ({error})") from error
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
    free = FREE_ON_RESUME | _moved(last.lineage, lineage) | _shared_out(last, then, now, processes)
    for key in now:
        if key not in free and now[key] != then[key]:
            raise UsageError(
                f"--{key.replace('_', '-')} is {now[key]!r}, the run to resume has {then[key]!r}. "
                "A resumed run keeps its recipe; start another one with a new --output"
            )
    return last.state


def _shared_out(
    last: Checkpoint, then: Mapping[str, Any], now: Mapping[str, Any], processes: int
) -> set[str]:
    """Settings that differ because other numbers of processes share the same steps. Raises UsageError where
    they would not see the same images in the same order.
    """
    before = (last.state or {}).get("processes", 1)
    if type(before) is not int or not 1 <= before < MOST_STEPS:
        raise ArtifactError(f"{last.path}: damaged checkpoint (its number of processes is not a number)")
    free = {"lr"} if _peak_rate(then, before) == _peak_rate(now, processes) else set()
    if before == processes:
        return free
    steps = [
        (values["batch"] * count, values["grad_accum"])
        for values, count in ((then, before), (now, processes))
    ]
    in_batches = any(then[name] for name in ("mixup", "cutmix", "teacher_labels"))
    if steps[0] != steps[1] and (in_batches or steps[0][0] * steps[0][1] != steps[1][0] * steps[1][1]):
        images = steps[0][0]
        help_ = f"Give --batch {images // processes} --grad-accum {steps[0][1]}"
        if images % processes:
            help_ = f"{processes} processes cannot share them evenly: start another number of processes"
        raise UsageError(
            f"{last.path}: the run has {before} x {then['batch']} images in a batch, and here are"
            f" {processes} x {now['batch']}. {help_}"
        )
    return free | {"batch", "grad_accum"}


def _peak_rate(recipe: Mapping[str, Any], processes: int) -> float:
    """Of its schedule, as `Recipe.peak_lr` has it for one process."""
    if recipe["lr"] is not None:
        return float(recipe["lr"])
    images = recipe["batch"] * recipe["grad_accum"] * processes
    return float(recipe["lr_base"] * images / recipe["lr_base_size"])


def require_typed(saved: Mapping[str, Any]) -> None:
    """Raise TypeError or KeyError for figures in the state of a last.pth that are not those of a training:
    they are only looked at again when the epoch ends.
    """
    for name in ("epoch", "step_in_epoch", "updates"):
        if type(saved[name]) is not int or not 0 <= saved[name] < MOST_STEPS:
            raise TypeError(f"{name} is not a number of steps")
    for name, kind in (("tally", dict), ("history", list), ("best", dict)):
        if not isinstance(saved[name], kind):
            raise TypeError(f"{name} is a {type(saved[name]).__name__}")
    for name, values in (("tally", saved["tally"]), ("best", saved["best"])):
        _require_figures(values, name)
    for record in saved["history"]:
        _require_figures(record, "history")
    for split, names in saved.get("unreadable", {}).items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"unreadable: {split!r} is not a list of names")
    right = saved.get("best_right")
    if right is not None and not (isinstance(right, torch.Tensor) and right.dtype == torch.bool):
        raise TypeError("best_right is not a tensor of true and false")
    if not 0 <= saved["random"]["numpy"][2] <= MERSENNE_WORDS:  # NumPy reads there without looking
        raise ValueError("the position of NumPy's generator is outside of its state")


def _require_figures(values: Mapping[str, Any], where: str) -> None:
    """Raise TypeError for a record with anything but numbers, by themselves, in lists or by name."""
    for name, value in values.items():
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        if not all(each is None or isinstance(each, (int, float)) for each in inside):
            raise TypeError(f"{where}: {name} is not a number")


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
