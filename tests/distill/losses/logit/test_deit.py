"""DeiT's terms: worked out by hand, and put together with the labels as its code does."""

import math

import pytest
import torch
from torch.nn import functional as F

from distill import losses
from distill.losses.base import Outputs, cross_entropy
from distill.losses.logit import deit

TEACHER = torch.tensor([[0.0, 2 * math.log(3)], [0.0, 0.0]])  # at temperature 2: 1/4, 3/4 and 1/2, 1/2
STUDENT = torch.tensor([[0.0, 0.0], [2 * math.log(2), 0.0]])  # at temperature 2: 1/2, 1/2 and 2/3, 1/3


def test_soft_is_divided_by_images_and_classes():
    first = 1 / 4 * math.log(1 / 2) + 3 / 4 * math.log(3 / 2)
    second = 1 / 2 * math.log((1 / 2) / (2 / 3)) + 1 / 2 * math.log((1 / 2) / (1 / 3))
    value = deit.soft(Outputs(STUDENT), Outputs(TEACHER), None, temperature=2.0)
    assert value.item() == pytest.approx(4 * (first + second) / (2 * 2))


def test_hard_takes_the_teachers_largest_class_and_the_lower_on_a_tie():
    by_hand = (
        math.log(2) + math.log(5 / 4)
    ) / 2  # class 1 of the first, class 0 of the second, whose two are equal
    assert deit.hard(Outputs(STUDENT), Outputs(TEACHER), None).item() == pytest.approx(by_hand)
    student = torch.tensor([[1.0, 2.0, 4.0]])
    tied = deit.hard(Outputs(student), Outputs(torch.tensor([[-1.0, 7.0, 7.0]])), None)
    assert tied.item() == pytest.approx(F.cross_entropy(student, torch.tensor([1])).item())


def test_the_labels_are_not_used():
    for loss in (deit.soft, deit.hard):
        values = {
            loss(Outputs(STUDENT), Outputs(TEACHER), target).item()
            for target in (torch.tensor([0, 0]), torch.tensor([1, 1]), torch.tensor([[0.2, 0.8], [0.5, 0.5]]))
        }
        assert len(values) == 1


def test_half_labels_and_half_teacher_is_deits_objective():
    labels = torch.tensor([0, 1])
    both = 0.5 * deit.hard(Outputs(STUDENT), Outputs(TEACHER), labels) + 0.5 * cross_entropy(STUDENT, labels)
    by_hand = 0.5 * (math.log(2) + math.log(5 / 4)) / 2 + 0.5 * (math.log(2) + math.log(5)) / 2
    assert both.item() == pytest.approx(by_hand)


def test_the_defaults_are_those_of_the_reference():
    assert losses.settings_of("deit_soft") == {"temperature": 1.0}
    assert losses.settings_of("deit_hard") == {}
