"""MLKD: the two relations by their definition in NumPy, more images than classes and fewer, and its sum over
temperatures.
"""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from distill import losses
from distill.losses.base import Outputs
from distill.losses.logit import kl, mlkd


def value(student, teacher, **settings):
    return mlkd.loss(
        Outputs(student), Outputs(teacher), torch.zeros(len(student), dtype=torch.int64), **settings
    ).item()


def probabilities(z, temperature):
    p = np.exp(z / temperature)
    return p / p.sum(axis=1, keepdims=True)


@pytest.fixture(params=[(3, 8), (8, 3), (5, 5), (1, 4), (6, 2)])
def logits(request):
    return np.random.default_rng(0).normal(size=(2, *request.param)) * 3


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_equals_its_definition(logits, temperature):
    s, t = (probabilities(z, temperature) for z in logits)
    images = ((t @ t.T - s @ s.T) ** 2).sum() / len(s)
    classes = ((t.T @ t - s.T @ s) ** 2).sum() / s.shape[1]
    student, teacher = torch.tensor(logits)
    only = {"temperatures": (temperature,), "alpha": 0.0}
    assert value(student, teacher, **only, beta=1.0, gamma=0.0) == pytest.approx(images, rel=1e-9)
    assert value(student, teacher, **only, beta=0.0, gamma=1.0) == pytest.approx(classes, rel=1e-9)
    assert value(student, teacher, **only, beta=0.3, gamma=2.0) == pytest.approx(
        0.3 * images + 2 * classes, rel=1e-9
    )


def test_without_relations_it_is_kl_at_every_temperature(logits):
    student, teacher = torch.tensor(logits)
    each = [kl.loss(Outputs(student), Outputs(teacher), None, temperature=T).item() for T in (4.0, 2.0)]
    assert value(student, teacher, temperatures=(4.0, 2.0), alpha=0.5, beta=0.0, gamma=0.0) == pytest.approx(
        0.5 * sum(each)
    )


def test_temperatures_are_summed(logits):
    student, teacher = torch.tensor(logits)
    each = [value(student, teacher, temperatures=(T,)) for T in (1.0, 2.0, 6.0)]
    assert value(student, teacher, temperatures=(1.0, 2.0, 6.0)) == pytest.approx(sum(each), rel=1e-9)


def test_a_small_difference_is_not_lost_among_large_products(logits):
    """Near the teacher the loss is the square of the difference: in float32 still right to 3 digits at 1e-3
    of the logits.
    """
    teacher = torch.tensor(logits[1])
    student = teacher + 1e-3 * torch.tensor(logits[0])
    for only in ({"beta": 1.0, "gamma": 0.0}, {"beta": 0.0, "gamma": 1.0}):
        exact = value(student, teacher, temperatures=(2.0,), alpha=0.0, **only)
        single = value(
            student.float(),
            student.float() - (student - teacher).float(),
            temperatures=(2.0,),
            alpha=0.0,
            **only,
        )
        assert single == pytest.approx(exact, rel=2e-2)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor any operation made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


@pytest.mark.parametrize("shape", [(2, 300), (300, 2)])
def test_memory_does_not_grow_with_the_square_of_the_larger_side(shape):
    student, teacher = torch.randn(2, *shape)
    with Largest() as largest:
        assert value(student, teacher, temperatures=(1.0,)) > 0
    assert largest.numel == 600


def test_the_defaults_are_those_of_the_reference():
    assert losses.settings_of("mlkd") == {
        "temperatures": (4.0, 2.0, 3.0, 5.0, 6.0),
        "alpha": 1.0,
        "beta": 1.0,
        "gamma": 1.0,
    }
