"""DKD: worked out by hand, tied to KL by the paper's own identity, no number lost where a probability rounds
to 0 or 1.
"""

import math

import pytest
import torch

from distill import losses
from distill.losses.base import Outputs
from distill.losses.logit import dkd, kl

TEACHER = torch.tensor([[1 / 2, 1 / 3, 1 / 6]]).log()
STUDENT = torch.tensor([[1 / 4, 1 / 4, 1 / 2]]).log()
TARGET = 1 / 2 * math.log((1 / 2) / (1 / 4)) + 1 / 2 * math.log((1 / 2) / (3 / 4))  # class 0 against the rest
OTHERS = 2 / 3 * math.log((2 / 3) / (1 / 3)) + 1 / 3 * math.log(
    (1 / 3) / (2 / 3)
)  # classes 1 and 2 among themselves


def value(student, teacher, target, **settings):
    return dkd.loss(Outputs(student), Outputs(teacher), target, **settings).item()


@pytest.mark.parametrize(("alpha", "beta"), [(1, 0), (0, 1), (1, 8), (0.3, 2)])
def test_equals_the_value_worked_out_by_hand(alpha, beta):
    found = value(STUDENT, TEACHER, torch.tensor([0]), temperature=1.0, alpha=alpha, beta=beta)
    assert found == pytest.approx(alpha * TARGET + beta * OTHERS)


def test_temperature_softens_both_and_its_square_is_multiplied():
    label = torch.tensor([0])
    softer = value(3 * STUDENT, 3 * TEACHER, label, temperature=3.0, alpha=1.0, beta=2.0)
    assert softer == pytest.approx(9 * (TARGET + 2 * OTHERS), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_with_beta_the_teachers_share_of_the_others_it_is_kl(temperature):
    dice = torch.Generator().manual_seed(0)
    for _ in range(5):  # equation 6 of the paper, one image at a time because beta is that image's
        student, teacher = 3 * torch.randn(2, 1, 7, generator=dice, dtype=torch.float64)
        label = torch.randint(7, (1,), generator=dice)
        beta = 1 - (teacher / temperature).softmax(1)[0, label].item()
        whole = kl.loss(Outputs(student), Outputs(teacher), label, temperature=temperature).item()
        assert value(student, teacher, label, temperature=temperature, alpha=1.0, beta=beta) == pytest.approx(
            whole, rel=1e-9
        )


def test_with_two_classes_it_is_alpha_times_kl():
    student, teacher = torch.tensor([[1.0, -2.0], [0.5, 3.0]]), torch.tensor([[2.0, 0.0], [-50.0, 50.0]])
    whole = kl.loss(Outputs(student), Outputs(teacher), torch.tensor([0, 0]), temperature=2.0).item()
    for beta in (0.0, 8.0):
        assert value(
            student, teacher, torch.tensor([0, 1]), temperature=2.0, alpha=0.7, beta=beta
        ) == pytest.approx(0.7 * whole)


def test_equal_logits_cost_nothing():
    logits = 5 * torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    assert abs(value(logits, logits, torch.arange(4))) < 1e-5


def test_a_sure_student_pays_the_distance_of_its_logits():
    """The teacher is sure of another class; 1 - p(y) of the student rounds to 0, and its logarithm is still
    -1e4.
    """
    student, teacher = torch.tensor([[1e4, 0.0, 0.0]]), torch.tensor([[-1e4, 1e4, 1e4]])
    found = value(student, teacher, torch.tensor([0]), temperature=1.0, alpha=1.0, beta=8.0)
    assert found == pytest.approx(1e4 - math.log(2), rel=1e-6)


def test_the_others_are_compared_whatever_the_target_hides():
    """Beside a target logit of 1e4 the others' probabilities are all 0 in float32, their
    proportions are not.
    """
    student, teacher = STUDENT.clone(), TEACHER.clone()
    student[0, 0] = teacher[0, 0] = 1e4
    assert value(student, teacher, torch.tensor([0]), temperature=1.0, alpha=1.0, beta=2.0) == pytest.approx(
        2 * OTHERS, rel=1e-5
    )
    assert value(
        student + 1e4, teacher - 1e4, torch.tensor([0]), temperature=1.0, alpha=1.0, beta=2.0
    ) == pytest.approx(2 * OTHERS, rel=1e-2)  # float32 holds logits of 1e4 to 1e-3


def test_the_batch_is_averaged():
    dice = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 6, generator=dice)
    target = torch.tensor([5, 0, 3, 3])
    each = [value(student[i : i + 1], teacher[i : i + 1], target[i : i + 1]) for i in range(4)]
    assert value(student, teacher, target) == pytest.approx(sum(each) / 4, rel=1e-5)


def test_the_defaults_are_those_of_the_reference():
    assert losses.settings_of("dkd") == {
        "temperature": 4.0,
        "alpha": 1.0,
        "beta": 8.0,
        "mixed_labels": "argmax",
    }
