"""The error for a training whose numbers are NaN or infinite: it names the part, and what helps.

In:  the losses of a step and which of its parts are finite; or the figures of an epoch.
Out: GateError.
Elsewhere: which part is finite (distill.training.numbers.finite), the steps (distill.training.trainer).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from runtime.errors import GateError

from . import finite
from .pending import Step

DTYPE_NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16"}
SMALLEST_SCALE = 2.0**-24
"""Of the loss in fp16: it starts at 2**16 and halves whenever a gradient overflows, so here 40 steps in a row
have taught nothing."""
LOWER_RATE = "Try a lower --lr, --clip-grad 1, or a longer warm-up"


class Suspect(NamedTuple):
    """A network whose logits may not be finite."""

    dtype: torch.dtype | None
    """What it computes in; None for float32."""
    fits_fp32: Callable[[], bool]
    """Whether its logits for the images of the step are finite in float32; takes time."""

    def is_only_too_narrow(self) -> bool:
        """Whether float32 would have held its numbers, and its own dtype does not."""
        return self.dtype is not None and self.fits_fp32()


def of_step(
    step: Step, losses: Sequence[str], at: str, student: Suspect, teacher: Suspect | None
) -> GateError:
    """The error for a step with a loss or gradients that are not finite.

    losses: names of the distillation losses, in the step's order; at: which step it was.
    """
    if math.isfinite(step.loss):
        return GateError(
            f"gradients are too large, NaN or infinite {at}; the loss is {step.loss:.4g}. {LOWER_RATE}"
        )
    values = {"cross-entropy": step.task_loss} | dict(zip(losses, step.each, strict=True))
    if not step.finite.teacher and teacher:
        said = said_of_teacher(teacher.dtype, teacher.is_only_too_narrow())
    elif not step.finite.student:
        said = said_of_student(student.dtype, student.is_only_too_narrow())
    else:
        said = said_of_losses(values)
    shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    return GateError(f"loss is {step.loss} {at}, {shown}: {said}")


def require_scale(scale: float, at: str) -> None:
    """Raise GateError where fp16 has left out so many steps that nothing is learned any more.

    scale: what the loss is multiplied by; at: which step it is.
    """
    if scale < SMALLEST_SCALE:
        raise GateError(
            f"gradients are NaN or infinite in fp16 at every step up to {at}: the loss was scaled down to"
            f" {scale:.2g}. Give --amp-dtype bf16"
        )


def require_numbers(loss: float, networks: Iterable[nn.Module], dtype: torch.dtype | None, at: str) -> None:
    """Raise GateError for an epoch whose networks give no numbers.

    loss: of validation, nats per image; dtype: what they compute in, None for float32; at: which epoch of
    which network it is.
    """
    bad = next((name for name in map(finite.first_bad, networks) if name is not None), None)
    if bad is not None or not math.isfinite(loss):
        raise GateError(f"validation loss is {loss:.4g} {at}: {said_of_epoch(bad, dtype)}")


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
