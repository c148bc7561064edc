"""Which part of a training step is NaN or infinite, or has gradients too large for their norm.

In:  logits of a batch and the norm of a step's gradients, on the device; a step's losses, on the host.
Out: flags that stay on the device until they are taken, so that no step waits for them; a sentence that
     names the part, and what helps.
Elsewhere: where losses are added up and the error is raised (distill.training.trainer).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

DTYPE_NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16"}
SMALLEST_SCALE = 2.0**-24
"""Of the loss in fp16: it starts at 2**16 and halves whenever a gradient overflows, so here 40 steps in a row
have taught nothing."""
LOWER_RATE = "Try a lower --lr, --clip-grad 1, or a longer warm-up"


class Flags(NamedTuple):
    """What of one optimizer step is finite."""

    student: bool = True
    """The student's logits."""
    teacher: bool = True
    """The teacher's logits."""
    gradients: bool = True
    """The norm of all of them together."""


def of_logits(student: Tensor, teacher: Tensor | None) -> Tensor:
    """(2,) bool on the device: whether student's and teacher's logits (N, K) are finite."""
    ours = student.detach().isfinite().all()
    return torch.stack([ours, ours if teacher is None else teacher.isfinite().all()])


def taken(logits: Sequence[Tensor], norms: Sequence[Tensor], batches_a_step: int) -> list[Flags]:
    """The flags of whole steps, on the host. logits: `of_logits` of every batch; norms: of every step's
    gradients, scalars that are not finite where one of them is NaN or infinite, or too large for its square;
    empty where nobody looks at them.
    """
    of_steps = torch.stack(list(logits)).view(-1, batches_a_step, 2).all(1).cpu().tolist()
    gradients = torch.stack(list(norms)).isfinite().cpu().tolist() if norms else [True] * len(of_steps)
    return [Flags(ours, its, norm) for (ours, its), norm in zip(of_steps, gradients, strict=True)]


def norm_of(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The norm of all gradients together, which are only read."""
    return torch.nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None])


def bad_losses(losses: Mapping[str, float]) -> list[str]:
    """The names of those that are not finite."""
    return [name for name, value in losses.items() if not math.isfinite(value)]


def said_of_losses(losses: Mapping[str, float]) -> str:
    """What to say where the logits are finite and the loss is not."""
    bad = bad_losses(losses)
    if not bad:
        return f"each of its parts is finite, and their weighted sum is not. {LOWER_RATE}"
    parts = " and ".join(bad)
    return (
        f"{parts} {'is' if len(bad) == 1 else 'are'} NaN or infinite, from logits that are finite. Try other"
        f" settings of {'this loss' if len(bad) == 1 else 'these losses'}, or a lower --lr"
    )


def said_of_teacher(dtype: torch.dtype | None, finite_in_fp32: bool) -> str:
    """What to say where the teacher's logits are not finite; dtype: its own, None for float32."""
    if dtype is None or not finite_in_fp32:
        return (
            "the teacher's logits are NaN or infinite. Its file or its normalization (--teacher-mean,"
            " --teacher-std) may be wrong: look with distill eval, or give another teacher"
        )
    name = DTYPE_NAMES[dtype]
    instead = "--teacher-dtype fp32" + (", or --amp-dtype bf16" if name == "fp16" else "")
    return (
        f"the teacher's logits are NaN or infinite in {name} and finite in fp32: its numbers do not fit"
        f" {name}, and no learning rate helps. Give {instead}"
    )


def said_of_student(dtype: torch.dtype | None, finite_in_fp32: bool) -> str:
    """What to say where the student's logits are not finite; dtype: its own, None for float32."""
    if dtype is None or not finite_in_fp32:
        return f"the student's logits are NaN or infinite: its weights have grown too large. {LOWER_RATE}"
    name = DTYPE_NAMES[dtype]
    return (
        f"the student's logits are NaN or infinite in {name} and finite in fp32: its numbers do not fit"
        f" {name}. Give {'--amp-dtype bf16' if name == 'fp16' else '--no-amp'}, or a lower --lr"
    )


def are_finite(values: Sequence[Tensor]) -> bool:
    """Whether all numbers of all tensors are. Waits for the device."""
    return all(bool(value.isfinite().all()) for value in values)


STATISTICS = ("running_mean", "running_var")


def first_bad(network: nn.Module) -> str | None:
    """The name of a weight, or of a running statistic of batch norm, that holds NaN or infinity; None where
    there is none. Waits for the device.
    """
    values: dict[str, Tensor] = dict(network.named_parameters())
    values |= {name: each for name, each in network.named_buffers() if name.endswith(STATISTICS)}
    if not values:
        return None
    flags = torch.stack([each.detach().isfinite().all() for each in values.values()]).tolist()
    return next((name for name, is_finite in zip(values, flags, strict=True) if not is_finite), None)


def said_of_epoch(bad: str | None, dtype: torch.dtype | None) -> str:
    """What to say where an epoch ended with a network that gives no numbers. bad: its weight that is NaN or
    infinite, None where all are finite; dtype: what it computes in, None for float32.
    """
    if bad is not None:
        return f"its weight {bad} is NaN or infinite: the last steps were too large. {LOWER_RATE}"
    if dtype is None:
        return f"its weights are finite, and too large for the images of validation. {LOWER_RATE}"
    name = DTYPE_NAMES[dtype]
    return (
        f"its weights are finite, and its numbers may not fit {name}. Give"
        f" {'--amp-dtype bf16' if name == 'fp16' else '--no-amp'}, or a lower --lr"
    )
