"""NKD: worked out by hand, finite wherever logits are."""

import math

import pytest
import torch
from torch.nn import functional as F

from distill import losses
from distill.losses.base import Outputs
from distill.losses.logit import nkd


def value_and_grad(student, teacher, target, **settings):
    student = student.clone().requires_grad_()
    value = nkd.loss(Outputs(student), Outputs(teacher), target, **settings)
    value.backward()
    return value, student.grad


TEACHER = torch.tensor([[1 / 2, 1 / 3, 1 / 6]]).log()
STUDENT = torch.tensor([[1 / 4, 1 / 4, 1 / 2]]).log()


def test_equals_the_value_worked_out_by_hand():
    target_term = -1 / 2 * math.log(1 / 4)
    others = -(
        2 / 3 * math.log(1 / 3) + 1 / 3 * math.log(2 / 3)
    )  # without class 0: teacher 2/3, 1/3; student 1/3, 2/3
    value, _ = value_and_grad(STUDENT, TEACHER, torch.tensor([0]), temperature=1.0, gamma=1.5)
    assert value.item() == pytest.approx(target_term + 1.5 * others)


def test_temperature_softens_the_other_classes_only():
    root = math.sqrt  # the softmax at temperature 2 is the square root of probabilities, normalized
    teacher = [root(1 / 3) / (root(1 / 3) + root(1 / 6)), root(1 / 6) / (root(1 / 3) + root(1 / 6))]
    student = [root(1 / 4) / (root(1 / 4) + root(1 / 2)), root(1 / 2) / (root(1 / 4) + root(1 / 2))]
    others = -sum(t * math.log(s) for t, s in zip(teacher, student, strict=True))
    value, _ = value_and_grad(STUDENT, TEACHER, torch.tensor([0]), temperature=2.0, gamma=0.7)
    assert value.item() == pytest.approx(-1 / 2 * math.log(1 / 4) + 0.7 * 2**2 * others)


def test_the_target_is_taken_out_however_low_the_others_are():
    """Others at -1e4, the target at 0: subtracting some constant from the target, as the older code does, is
    not enough.
    """
    student, teacher = STUDENT.double() - 1e4, TEACHER.double() - 1e4
    student[0, 0] = teacher[0, 0] = 0.0
    others = -(2 / 3 * math.log(1 / 3) + 1 / 3 * math.log(2 / 3))
    value, grad = value_and_grad(student, teacher, torch.tensor([0]), temperature=1.0, gamma=1.0)
    assert value.item() == pytest.approx(others, rel=1e-6)
    assert grad.tolist() == [pytest.approx([0.0, 1 / 3 - 2 / 3, 2 / 3 - 1 / 3], abs=1e-6)]


def test_a_mixed_label_counts_as_its_largest_class():
    mixed = torch.tensor([[0.1, 0.3, 0.6]])
    assert torch.equal(
        value_and_grad(STUDENT, TEACHER, mixed)[0], value_and_grad(STUDENT, TEACHER, torch.tensor([2]))[0]
    )


@pytest.mark.parametrize("temperature", [1.0, 7.0])
@pytest.mark.parametrize("gamma", [0.0, 1.5])
def test_with_two_classes_only_the_target_term_is_left(temperature, gamma):
    student, teacher = torch.tensor([[1.0, -2.0], [0.5, 3.0]]), torch.tensor([[2.0, 0.0], [-50.0, 50.0]])
    target = torch.tensor([0, 1])
    value, grad = value_and_grad(student, teacher, target, temperature=temperature, gamma=gamma)
    weight = teacher.softmax(1)[[0, 1], target]
    alone = student.clone().requires_grad_()
    by_hand = (weight * F.cross_entropy(alone, target, reduction="none")).mean()
    by_hand.backward()
    assert value.item() == pytest.approx(by_hand.item(), rel=1e-6)
    assert torch.allclose(grad, alone.grad, atol=1e-7)


@pytest.mark.parametrize(
    "teacher", [[50.0, -50, -50, 50], [-50.0, 50, 50, -50], [100.0, 0, 0, 0], [0.0, 100, 0, 0]]
)
@pytest.mark.parametrize("student", [[50.0, -50, -50, 50], [-50.0, 50, -50, 0], [0.0, 0, 0, 0]])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_is_finite_for_confident_networks(student, teacher, temperature):
    value, grad = value_and_grad(
        torch.tensor([student]), torch.tensor([teacher]), torch.tensor([0]), temperature=temperature
    )
    exact, grad64 = value_and_grad(
        torch.tensor([student]).double(),
        torch.tensor([teacher]).double(),
        torch.tensor([0]),
        temperature=temperature,
    )
    assert math.isfinite(value.item())
    assert torch.isfinite(grad).all()
    assert value.item() == pytest.approx(exact.item(), rel=1e-5, abs=1e-6)
    assert torch.allclose(grad.double(), grad64, atol=1e-5)


def test_one_image_costs_its_share_of_the_batch():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 6)
    target = torch.tensor([5, 0, 3, 3])
    each = [
        value_and_grad(student[i : i + 1], teacher[i : i + 1], target[i : i + 1])[0].item() for i in range(4)
    ]
    assert value_and_grad(student, teacher, target)[0].item() == pytest.approx(sum(each) / 4, rel=1e-6)


def test_the_defaults_are_those_of_the_reference():
    assert losses.settings_of("nkd") == {"temperature": 1.0, "gamma": 1.5, "mixed_labels": "argmax"}
