"""The error names the first part that is to blame, and asks for float32 only where that is in doubt."""

import math
import re

import pytest
import torch
from torch import nn

from distill.training.numbers import diagnosis
from distill.training.numbers.diagnosis import Suspect
from distill.training.numbers.finite import Flags
from distill.training.numbers.pending import Step
from runtime.errors import GateError

NAN = math.nan


def suspect(dtype=None, fits=None):
    def asked():
        assert fits is not None, "asked although its dtype is float32"
        return fits

    return Suspect(dtype, asked)


@pytest.mark.parametrize(
    ("step", "student", "teacher", "words"),
    [
        (
            Step(2.5, 0, 2.5, [1.0], Flags(gradients=False)),
            suspect(),
            None,
            "too large.* loss is 2.5",
        ),
        (Step(NAN, 0, NAN, [1.0], Flags(student=False)), suspect(), None, "weights have grown too large"),
        (
            Step(NAN, 0, NAN, [NAN], Flags(student=False)),
            suspect(torch.bfloat16, True),
            None,
            "bf16 and finite in fp32.*--no-amp",
        ),
        (
            Step(NAN, 0, NAN, [NAN], Flags(student=False)),
            suspect(torch.bfloat16, False),
            None,
            "weights have grown too large",
        ),
        (
            Step(NAN, 0, NAN, [NAN], Flags(False, False)),
            suspect(),
            suspect(torch.float16, True),
            "the teacher's logits .* fp16 and finite in fp32",
        ),
        (Step(NAN, 0, 1.0, [NAN], Flags()), suspect(), suspect(), "kl is NaN or infinite, from logits that"),
        (Step(NAN, 0, NAN, [NAN], Flags()), suspect(), suspect(), "cross-entropy and kl are NaN"),
        (Step(math.inf, 0, 1.0, [1.0], Flags()), suspect(), None, "weighted sum is not"),
    ],
)
def test_the_part_to_blame_is_named(step, student, teacher, words):
    error = diagnosis.of_step(step, ["kl"], "at step 7", student, teacher)
    assert isinstance(error, GateError) and "at step 7" in str(error)
    assert re.search(words, str(error))


def test_a_scale_that_fell_forty_times_ends_the_training():
    diagnosis.require_scale(2.0**-24, "step 39")
    with pytest.raises(GateError, match=r"every step up to step 40: .*--amp-dtype bf16"):
        diagnosis.require_scale(2.0**-25, "step 40")


def test_an_epoch_is_refused_for_its_loss_or_a_weight_or_a_running_statistic():
    whole, broken = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    broken.running_var.fill_(math.inf)
    diagnosis.require_numbers(1.0, [whole, whole], None, "after step 5")
    with pytest.raises(GateError, match="after step 5: its weight running_var is NaN"):
        diagnosis.require_numbers(1.0, [whole, broken], None, "after step 5")
    with pytest.raises(GateError, match=r"loss is nan after step 5: its weights .*may not fit bf16"):
        diagnosis.require_numbers(NAN, [whole], torch.bfloat16, "after step 5")
