"""LSKD: z-scores by hand, and KL and DKD of them."""

import math
import statistics

import pytest
import torch

from distill import losses
from distill.losses.base import Outputs
from distill.losses.logit import dkd, kl, lskd

LABEL = torch.tensor([0])


def value_and_grad(student, teacher, loss=lskd.loss, **settings):
    student = student.clone().requires_grad_()
    value = loss(Outputs(student), Outputs(teacher), torch.zeros(len(student), dtype=torch.int64), **settings)
    value.backward()
    return value.item(), student.grad


def z_scores(row):
    return [(x - statistics.mean(row)) / statistics.stdev(row) for x in row]  # stdev: the unbiased one


def test_equals_the_value_worked_out_by_hand():
    student, teacher = (
        torch.tensor([[1.0, 2.0, 3.0]]),
        torch.tensor([[20.0, 0.0, 10.0]]),
    )  # z-scores -1, 0, 1 and 1, -1, 0
    total = 1 + math.e + 1 / math.e
    p, q = [math.e / total, 1 / math.e / total, 1 / total], [1 / math.e / total, 1 / total, math.e / total]
    by_hand = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert value_and_grad(student, teacher, temperature=1.0)[0] == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_is_kl_and_dkd_of_the_z_scores(temperature):
    dice = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 6, generator=dice, dtype=torch.float64)
    scores = [
        Outputs(torch.tensor([z_scores(row) for row in z.tolist()], dtype=torch.float64))
        for z in (student, teacher)
    ]
    target = torch.zeros(4, dtype=torch.int64)
    by_hand = kl.loss(*scores, target, temperature=temperature).item()
    assert value_and_grad(student, teacher, temperature=temperature)[0] == pytest.approx(by_hand, rel=1e-5)
    by_hand = dkd.loss(*scores, target, temperature=temperature, alpha=0.5, beta=3.0).item()
    found = value_and_grad(student, teacher, lskd.dkd_loss, temperature=temperature, alpha=0.5, beta=3.0)[0]
    assert found == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("loss", [lskd.loss, lskd.dkd_loss])
def test_scale_and_offset_of_a_row_do_not_matter(loss):
    dice = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 6, generator=dice, dtype=torch.float64)
    scale, offset = torch.tensor([[0.5], [1.0], [7.0], [30.0]]), torch.tensor([[3.0], [-9.0], [0.0], [100.0]])
    plain = value_and_grad(student, teacher, loss)[0]
    assert value_and_grad(scale * student + offset, teacher, loss)[0] == pytest.approx(plain, rel=1e-5)
    assert value_and_grad(student, scale * teacher + offset, loss)[0] == pytest.approx(plain, rel=1e-5)


def test_with_two_classes_there_is_nothing_to_learn():
    student, teacher = torch.tensor([[1.0, 0.0], [0.2, 5.0]]), torch.tensor([[0.0, 1.0], [0.0, 3.0]])
    value, grad = value_and_grad(student, teacher)
    assert value > 0.1
    assert grad.abs().max() < 1e-5


def test_eps_is_added_to_the_deviation():
    student, teacher = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[20.0, 0.0, 10.0]])
    softened = [Outputs(torch.tensor([[-0.5, 0.0, 0.5]])), Outputs(torch.tensor([[10 / 11, -10 / 11, 0.0]]))]
    by_hand = kl.loss(*softened, LABEL, temperature=2.0).item()
    assert value_and_grad(student, teacher, temperature=2.0, eps=1.0)[0] == pytest.approx(by_hand, rel=1e-5)


def test_a_large_common_offset_does_not_cost_the_z_scores():
    student, teacher = torch.tensor([[1.0, 2.0, 4.0, 9.0]]), torch.tensor([[3.0, 1.0, 0.0, 2.0]])
    plain = value_and_grad(student, teacher)[0]
    assert value_and_grad(student + 2.0**13, teacher - 2.0**13)[0] == pytest.approx(plain, rel=1e-5)


def test_the_defaults_are_those_of_the_reference():
    assert losses.settings_of("lskd") == {"temperature": 2.0, "eps": 1e-7}
    assert losses.settings_of("lskd_dkd") == {
        "temperature": 2.0,
        "alpha": 1.0,
        "beta": 8.0,
        "eps": 1e-7,
        "mixed_labels": "argmax",
    }
