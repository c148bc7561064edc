"""OFA: worked out by hand, and what its eps does."""

import math

import pytest
import torch
from torch.nn import functional as F

from distill import losses
from distill.losses.base import Outputs
from distill.losses.logit import ofa

TEACHER = torch.tensor([[1 / 2, 1 / 3, 1 / 6]]).log()
STUDENT = torch.tensor([[1 / 4, 1 / 4, 1 / 2]]).log()


def value(student, teacher, target, **settings):
    return ofa.loss(Outputs(student), Outputs(teacher), target, **settings).item()


@pytest.mark.parametrize("eps", [0.5, 1.0, 1.5, 2.0])
def test_equals_the_value_worked_out_by_hand(eps):
    weights = [(1 / 2) ** eps, (1 + 1 / 3) ** eps - 1, (1 / 6) ** eps]  # class 1 is the target
    by_hand = -sum(w * math.log(q) for w, q in zip(weights, (1 / 4, 1 / 4, 1 / 2), strict=True))
    assert value(STUDENT, TEACHER, torch.tensor([1]), eps=eps) == pytest.approx(by_hand)


def test_at_eps_1_it_is_the_cross_entropy_with_the_teacher():
    dice = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 9, generator=dice, dtype=torch.float64)
    found = value(student, teacher, torch.arange(6), temperature=2.0, eps=1.0)
    assert found == pytest.approx(F.cross_entropy(student / 2, (teacher / 2).softmax(1)).item(), rel=1e-9)


def test_temperature_softens_both_and_is_not_squared():
    plain = value(STUDENT, TEACHER, torch.tensor([2]), eps=1.5)
    assert value(3 * STUDENT, 3 * TEACHER, torch.tensor([2]), eps=1.5, temperature=3.0) == pytest.approx(
        plain, rel=1e-5
    )


def test_a_teacher_that_hardly_believes_the_target_is_not_rounded_away():
    """1 + 2e-9 is 1 in float32; the weight of the target is still eps times 2e-9."""
    student, teacher = torch.tensor([[-1e4, 0.0]]), torch.tensor([[-20.0, 0.0]])
    by_hand = 1.5 * math.exp(-20) * 1e4
    assert value(student, teacher, torch.tensor([0]), eps=1.5) == pytest.approx(by_hand, rel=1e-5)


def test_the_batch_is_averaged():
    dice = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 6, generator=dice)
    target = torch.tensor([5, 0, 3, 3])
    each = [value(student[i : i + 1], teacher[i : i + 1], target[i : i + 1], eps=1.5) for i in range(4)]
    assert value(student, teacher, target, eps=1.5) == pytest.approx(sum(each) / 4, rel=1e-5)


def test_the_defaults_are_those_of_the_reference():
    assert losses.settings_of("ofa") == {"temperature": 1.0, "eps": 1.0, "mixed_labels": "argmax"}
