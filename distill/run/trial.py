"""A step before anything is written: can this network take these images, and does a step fit in memory?

In:  a network, the size of its input, the images of a step, the number of classes; or a whole `Task`.
Out: nothing, or UsageError or MissingError with the reason; weights, statistics and generators stay as they
     were.
Elsewhere: the run itself (distill.run.job), a step (distill.training.trainer).
"""

from __future__ import annotations

import contextlib
import copy
import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from runtime.cli.terminal import loading
from runtime.errors import ArtifactError, MissingError, UsageError

from ..data import Batch
from ..data.seeds import own_random_state
from ..processes import together
from ..training.freezing import freeze
from ..training.task import Task
from ..training.trainer import Trainer

MOST_IMAGES = 2
"""A step in small has at most so many images: one behaves as no other number does, in batch norm."""
FULL_BATCH_SECONDS = 3.0
"""On a CPU the trial takes all images of a step only where that lasts at most so long, by the time that
MOST_IMAGES took. On a GPU it always does: its memory is what a step runs out of."""


def require_trains(
    network: nn.Module,
    name: str,
    input_size: Sequence[int],
    batch: int,
    classes: int,
    frozen: str = "",
    frozen_norms: bool = False,
) -> None:
    """Raise UsageError where a step of training or the evaluation of one image fails.

    input_size is (3, H, W); batch: images of a step; frozen, frozen_norms: as --freeze and --freeze-norms say
    it, because norms that keep their statistics take what others refuse.
    """
    images = min(batch, MOST_IMAGES)
    trial = copy.deepcopy(network).cpu()
    with torch.random.fork_rng(devices=[]):
        if frozen:  # freezing sends an image through it, too, and does not say what it was for
            with torch.no_grad():
                _forward(trial.eval(), name, input_size, 1)
        held = freeze(trial, frozen, frozen_norms, input_size)
        trial.train()
        held.hold()
        logits = _forward(trial, name, input_size, images)
        _require_logits(logits, name, input_size, images, classes)
        try:
            logits.float().square().sum().backward()
        except RuntimeError as error:
            raise _refusal(name, input_size, images, error) from error
        with torch.no_grad():
            _require_logits(_forward(trial.eval(), name, input_size, 1), name, input_size, 1, classes)


@loading("trying a step")
def rehearse(task: Task) -> None:
    """One whole step on noise, of student, teacher, losses and optimizer, and the batches of validation, by a
    trainer that is thrown away. The random generators are as before; the real trainer seeds its own.

    Raises MissingError where memory runs out, UsageError where a part cannot take so many images.
    """
    recipe, device = task.recipe, task.device
    teacher = task.teacher.plain() if task.teacher else None  # compiled, it would not look for other taps
    plain = replace(recipe, compile=False, sparsity=0.0, tensorboard=False, workers=0, cache="none")
    with (
        together.alone(),
        own_random_state(),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
    ):
        try:
            trainer = Trainer(replace(task, recipe=plain, teacher=teacher, labels=None))
            for images in _step_sizes(recipe.batch, device):
                with _explained(task, images, f"--batch {max(1, images // 2)}"):
                    began = time.monotonic()
                    trainer.update([_noise(task, images)])
                if images < recipe.batch and _too_long(time.monotonic() - began, images, recipe.batch):
                    break
            for images in _validation_sizes(task):
                with _explained(task, images, f"--eval-batch {max(1, images // 2)}"):
                    trainer.validate([_noise(task, images)])
        finally:
            if teacher:
                teacher.untap()
    del trainer
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def _step_sizes(batch: int, device: torch.device) -> list[int]:
    """Images of the steps to try, one after the other."""
    return [batch] if device.type == "cuda" or batch <= MOST_IMAGES else [MOST_IMAGES, batch]


def _too_long(seconds: float, images: int, batch: int) -> bool:
    """Whether a step of `batch` images would last too long, by the seconds that one of `images` took."""
    return seconds / images * batch > FULL_BATCH_SECONDS


def _validation_sizes(task: Task) -> list[int]:
    """The smallest batch of validation; on a GPU also the largest, which has to fit."""
    images, batch = len(task.val), task.recipe.eval_batch
    smallest = images % batch or min(images, batch) or 1
    if task.device.type != "cuda":
        return [min(smallest, MOST_IMAGES)]
    return sorted({smallest, min(images, batch) or batch})


def _noise(task: Task, images: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(images, *task.preprocess.input_size, generator=generator)
    return Batch(pixels, torch.arange(images) % len(task.class_names), [])


@contextlib.contextmanager
def _explained(task: Task, images: int, smaller: str) -> Iterator[None]:
    """What torch raises inside, as one line that says how to get along; smaller: the flag for it."""
    recipe = task.recipe
    try:
        yield
    except (RuntimeError, ValueError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise _refusal(recipe.student, task.preprocess.input_size, images, error) from error
        same = "" if "eval" in smaller else f" --grad-accum {2 * recipe.grad_accum} for the same step"
        with_teacher = " with its teacher" if task.teacher else ""
        raise MissingError(
            f"out of memory on {task.device} with {images} images of {recipe.student}{with_teacher} at once."
            f" Give {smaller}{same}, a smaller --img-size, or --amp"
        ) from error


def _is_out_of_memory(error: Exception) -> bool:
    words = str(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        said in words
        for said in ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
    )


def require_teaches(network: nn.Module, name: str, input_size: Sequence[int], classes: int) -> None:
    """Raise UsageError where a teacher cannot take an image, ArtifactError for logits that are NaN or inf."""
    device = next(network.parameters()).device
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        logits = _forward(network.eval(), name, input_size, 1, device)
        _require_logits(logits, name, input_size, 1, classes)
    if not torch.isfinite(logits).all():
        raise ArtifactError(f"teacher {name}: its logits hold NaN or inf. Give another file")


def _forward(
    network: nn.Module,
    name: str,
    input_size: Sequence[int],
    images: int,
    device: torch.device | None = None,
) -> Tensor:
    noise = torch.randn(images, *input_size, generator=torch.Generator().manual_seed(0)).to(device)
    try:
        logits: Tensor = network(noise)
        return logits
    except Exception as error:  # every architecture complains in its own way
        raise _refusal(name, input_size, images, error) from error


def _require_logits(logits: object, name: str, input_size: Sequence[int], images: int, classes: int) -> None:
    if isinstance(logits, Tensor) and tuple(logits.shape) == (images, classes):
        return
    found = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
    raise UsageError(
        f"{name} gives {found} for {images} images, not logits {(images, classes)}. Leave out arguments that"
        " change what it gives (features_only, global_pool), or choose another network"
    )


def _refusal(name: str, input_size: Sequence[int], images: int, error: Exception) -> UsageError:
    size = " x ".join(map(str, input_size))
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return UsageError(
        f"{name} cannot take {size} images at batch {images}: {reason}. Give another --img-size, --batch,"
        " --student or --student-args"
    )
