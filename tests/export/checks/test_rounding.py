"""Rounding is told from another network by how far each is from float64."""

import numpy as np
import pytest
import torch
from torch import nn

from export.checks import verify
from export.checks.rounding import Exact, Rounding, torch_logits
from runtime.errors import GateError


@pytest.fixture
def canceling():
    """A layer whose sums are a millionth of their terms, and its images (N, C, 1, 1)."""
    chance = np.random.default_rng(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(512, 3))
    half = chance.normal(size=(3, 256)).astype(np.float32)
    with torch.no_grad():
        network[1].weight.copy_(torch.from_numpy(np.concatenate([1e4 * half, -1e4 * half], axis=1)))
        network[1].bias.copy_(torch.tensor([0.3, -0.2, 0.1]))
    first = chance.normal(size=(8, 256)).astype(np.float32)
    small = 1e-5 * chance.normal(size=(8, 256)).astype(np.float32)
    return network.eval(), np.concatenate([first, first + small], axis=1)[:, :, None, None]


def in_another_order(network, images):
    """The layer's fp32 sums, one term after the other, from the last one on."""
    weight, bias = (each.detach().numpy() for each in network[1].parameters())
    terms = (images.reshape(len(images), 1, -1) * weight)[:, :, ::-1]
    return np.cumsum(terms, axis=2, dtype=np.float32)[:, :, -1] + bias


def test_the_same_sums_in_another_order_are_the_same_network(canceling):
    network, images = canceling
    reference, others = torch_logits(network, images), in_another_order(network, images)
    with pytest.raises(GateError, match="largest logit difference"):
        verify.require_equal(others, reference, 1e-6, "test")
    # torch's sums are the more exact ones, so here they are the file's
    one = Exact(network, images).rounding(others, reference)
    assert one.explains and one.max_abs < one.torch_max_abs
    found = verify.require_equal(others, reference, 1e-6, "test", Exact(network, images))
    assert found.float64_max_abs == one.max_abs and found.torch_float64_max_abs == one.torch_max_abs
    assert found.to_record().float64_max_abs == one.max_abs


def test_float64_is_worked_out_apart(canceling):
    network, images = canceling
    weight, bias = (each.detach().numpy().astype(np.float64) for each in network[1].parameters())
    expected = images.reshape(8, -1).astype(np.float64) @ weight.T + bias
    assert Exact(network, images).logits == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert next(network.parameters()).dtype == torch.float32


def test_another_network_is_not_excused(canceling):
    network, images = canceling
    reference = torch_logits(network, images)
    far = 10 * np.abs(reference - Exact(network, images).logits).max() + 1
    with pytest.raises(GateError, match=r"From float64 torch is .* away, and this .*Not the same network"):
        verify.require_equal(reference, reference + far, 1e-6, "test", Exact(network, images))


def test_a_best_class_that_float64_has_not_is_not_excused():
    assert Rounding(1e-3, 1.9e-3, torch_flips=1, flips=1).explains
    assert not Rounding(1e-3, 1.9e-3, torch_flips=0, flips=1).explains
    assert not Rounding(1e-3, 2.1e-3, torch_flips=0, flips=0).explains


def test_float64_is_not_computed_where_fp32_agrees(canceling, monkeypatch):
    network, images = canceling
    monkeypatch.setattr(Exact, "rounding", lambda *_: pytest.fail("computed"))
    logits = torch_logits(network, images)
    assert verify.require_equal(logits, logits, 1e-6, "test", Exact(network, images)).float64_max_abs is None
