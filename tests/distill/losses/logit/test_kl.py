"""KL: worked out by hand, and its gradient by its closed form."""

import math

import pytest
import torch

from distill import losses
from distill.losses.base import Outputs
from distill.losses.logit import kl


def value_and_grad(student, teacher, **settings):
    student = student.clone().requires_grad_()
    value = kl.loss(
        Outputs(student), Outputs(teacher), torch.zeros(len(student), dtype=torch.int64), **settings
    )
    value.backward()
    return value, student.grad


def test_equals_the_value_worked_out_by_hand():
    teacher = torch.tensor([[0.0, math.log(3.0)]])  # probabilities 1/4, 3/4
    student = torch.tensor([[0.0, 0.0]])  # probabilities 1/2, 1/2
    by_hand = 1 / 4 * math.log(1 / 2) + 3 / 4 * math.log(3 / 2)  # 0.1308 nats
    value, grad = value_and_grad(student, teacher, temperature=1.0)
    assert value.item() == pytest.approx(by_hand)
    assert grad.tolist() == [
        pytest.approx([1 / 2 - 1 / 4, 1 / 2 - 3 / 4])
    ]  # student's minus teacher's probabilities


def test_temperature_softens_both_and_its_square_is_multiplied():
    teacher = torch.tensor([[0.0, 2 * math.log(3.0)]])  # at temperature 2: 1/4, 3/4
    student = torch.tensor([[2 * math.log(2.0), 0.0]])  # at temperature 2: 2/3, 1/3
    by_hand = 4 * (1 / 4 * math.log((1 / 4) / (2 / 3)) + 3 / 4 * math.log((3 / 4) / (1 / 3)))
    assert value_and_grad(student, teacher, temperature=2.0)[0].item() == pytest.approx(by_hand)


def test_the_batch_is_averaged():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 6, 5)
    each = [value_and_grad(s[None], t[None])[0].item() for s, t in zip(student, teacher, strict=True)]
    assert value_and_grad(student, teacher)[0].item() == pytest.approx(sum(each) / 6, rel=1e-6)


def test_equal_logits_cost_nothing():
    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    value, grad = value_and_grad(logits, logits.clone())
    assert abs(value.item()) < 1e-5
    assert grad.abs().max() < 1e-6


@pytest.mark.parametrize("teacher", [[50.0, -50, -50], [-50.0, 50, 50], [100.0, 0, 0], [0.0, 0, 0]])
@pytest.mark.parametrize("student", [[50.0, -50, -50], [-50.0, 50, -50], [0.0, 0, 0]])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_is_finite_for_confident_networks(student, teacher, temperature):
    value, grad = value_and_grad(torch.tensor([student]), torch.tensor([teacher]), temperature=temperature)
    assert math.isfinite(value.item())
    assert torch.isfinite(grad).all()
    p, q = (torch.tensor([z]).double().div(temperature).softmax(1) for z in (teacher, student))
    assert torch.allclose(grad.double(), temperature * (q - p), atol=1e-5)  # gradient by its closed form


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32(dtype):
    torch.manual_seed(0)
    student, teacher = (20 * torch.randn(2, 8, 10)).to(dtype)
    value, grad = value_and_grad(student, teacher)
    assert value.dtype == torch.float32
    assert grad.dtype == dtype
    assert value.item() == pytest.approx(
        value_and_grad(student.double(), teacher.double())[0].item(), rel=1e-5
    )


def test_the_defaults_are_those_of_the_reference():
    assert losses.settings_of("kl") == {"temperature": 4.0}
