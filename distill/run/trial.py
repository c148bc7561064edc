"""One step in small before anything is written: can this network take these images?

In:  a network, the size of its input, the images of a step, the number of classes.
Out: nothing, or UsageError with the reason; weights, statistics and generators stay as they were.
Elsewhere: the run itself (distill.run.job).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from runtime.errors import ArtifactError, UsageError

from ..training.freezing import freeze

MOST_IMAGES = 2
"""A step of the trial has at most so many images: one behaves as no other number does, in batch norm."""


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
        f"{name} cannot take {size} images at batch {images}: {reason}. Give another --img-size, --batch or"
        " --student"
    )
