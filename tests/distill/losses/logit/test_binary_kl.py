"""Binary KL: worked out by hand."""

import math

import pytest
import torch

from distill import losses
from distill.losses.base import Outputs
from distill.losses.logit import binary_kl


def test_equals_the_value_worked_out_by_hand():
    teacher = torch.tensor([[1 / 2, 1 / 3, 1 / 6]]).log()
    student = torch.tensor([[0.0, math.log(3), -math.log(4)]], requires_grad=True)  # sigmoids 1/2, 3/4, 1/5
    pairs = [(1 / 2, 1 / 2), (1 / 3, 3 / 4), (1 / 6, 1 / 5)]
    by_hand = -sum(p * math.log(q) + (1 - p) * math.log(1 - q) for p, q in pairs) / 3
    value = binary_kl.loss(Outputs(student), Outputs(teacher), None)
    value.backward()
    assert value.item() == pytest.approx(by_hand)
    assert student.grad.tolist() == [pytest.approx([(q - p) / 3 for p, q in pairs], abs=1e-7)]


def test_images_and_classes_are_averaged():
    dice = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 6, generator=dice)
    whole = binary_kl.loss(Outputs(student), Outputs(teacher), None).item()
    each = [
        binary_kl.loss(Outputs(student[i : i + 1]), Outputs(teacher[i : i + 1]), None).item()
        for i in range(4)
    ]
    assert whole == pytest.approx(sum(each) / 4, rel=1e-6)


def test_a_sure_student_pays_the_size_of_its_logit():
    student, teacher = torch.tensor([[1e4, -1e4]]), torch.tensor([[-50.0, 50.0]])
    assert binary_kl.loss(Outputs(student), Outputs(teacher), None).item() == pytest.approx(1e4)


def test_the_defaults_are_those_of_the_reference():
    assert losses.settings_of("binary_kl") == {}
