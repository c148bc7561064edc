"""DIST: NumPy's correlations, and what they are blind to."""

import math

import numpy as np
import pytest
import torch

from distill import losses
from distill.losses.base import Outputs
from distill.losses.logit import dist


def value(student, teacher, **settings):
    return dist.loss(
        Outputs(student), Outputs(teacher), torch.zeros(len(student), dtype=torch.int64), **settings
    ).item()


def softmax(z):
    return np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("images", "classes"), [(6, 4), (3, 10), (5, 3)])
@pytest.mark.parametrize(("beta", "gamma"), [(1, 0), (0, 1), (2, 0.5)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_equals_numpys_correlations_of_rows_and_columns(images, classes, beta, gamma, temperature):
    student, teacher = np.random.default_rng(0).normal(size=(2, images, classes)) * 2
    p, q = softmax(student / temperature), softmax(teacher / temperature)
    rows = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    columns = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    found = value(
        torch.tensor(student), torch.tensor(teacher), temperature=temperature, beta=beta, gamma=gamma
    )
    assert found == pytest.approx(temperature**2 * (beta * rows + gamma * columns), rel=1e-4)


def test_opposite_orders_cost_twice_as_much_as_no_relation():
    rising, flat = torch.tensor([[1 / 6, 2 / 6, 3 / 6]]).log(), torch.tensor([[3 / 8, 2 / 8, 3 / 8]]).log()
    assert value(rising, rising, gamma=0.0) == pytest.approx(0, abs=1e-6)
    assert value(rising, rising.flip(1), gamma=0.0) == pytest.approx(2.0, rel=1e-5)
    assert value(rising, flat, gamma=0.0) == pytest.approx(1.0, rel=1e-5)


def test_a_confident_student_may_follow_an_unsure_teacher():
    """What the paper is for: rows that are linear in each other correlate fully, however far apart
    they are.
    """
    unsure = torch.tensor([[0.30, 0.33, 0.37], [0.40, 0.30, 0.30]])
    confident = 1 / 3 + 5 * (unsure - 1 / 3)
    assert value(confident.log(), unsure.log(), gamma=0.0) == pytest.approx(0, abs=1e-5)


def test_with_two_classes_a_row_says_only_which_is_larger():
    student, teacher = torch.tensor([[3.0, 0.0], [0.1, 0.0]]), torch.tensor([[0.5, 0.0], [-9.0, 0.0]])
    assert value(student, teacher, gamma=0.0) == pytest.approx((0 + 2) / 2, abs=1e-4)


def test_with_one_image_the_columns_cost_a_constant():
    for seed in range(3):
        student, teacher = torch.randn(2, 1, 5, generator=torch.Generator().manual_seed(seed))
        assert value(student, teacher, beta=0.0, gamma=1.5, temperature=2.0) == 6.0


def test_a_class_nobody_predicts_has_no_correlation_and_no_nan():
    student, teacher = torch.zeros(4, 3), torch.zeros(4, 3)
    student[:, 2] = teacher[:, 2] = -1e4  # a column of zeros
    student[:, 0] = teacher[:, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert value(student, teacher, beta=0.0) == pytest.approx(1 - 2 / 3, rel=1e-4)
    assert math.isfinite(value(student, -teacher))


def test_the_defaults_are_those_of_the_reference():
    assert losses.settings_of("dist") == {"temperature": 1.0, "beta": 1.0, "gamma": 1.0, "eps": 1e-8}
