"""FitNets: the regressor that each pair of sizes gets, and its value by hand."""

import pytest
import torch

from distill import losses
from distill.losses.base import Outputs
from distill.losses.feature import fitnets
from runtime.errors import UsageError


def outputs(*maps):
    return Outputs(torch.zeros(len(maps[0]), 2), maps)


@pytest.mark.parametrize(
    ("student", "teacher", "kind", "weight"),
    [
        ((7, 7), (7, 7), "same", (5, 3, 1, 1)),
        ((14, 14), (7, 7), "down", (5, 3, 3, 3)),
        ((13, 14), (7, 7), "down", (5, 3, 3, 3)),
        ((7, 7), (14, 14), "up", (3, 5, 4, 4)),
        ((9, 8), (7, 7), "shrink", (5, 3, 3, 2)),
        ((56, 56), (7, 7), "resize", (5, 3, 1, 1)),  # a valid convolution would need a 50 x 50 kernel
        ((7, 7), (8, 8), "resize", (5, 3, 1, 1)),
        ((8, 6), (7, 7), "resize", (5, 3, 1, 1)),
    ],
)
def test_every_pair_of_sizes_has_its_regressor(student, teacher, kind, weight):
    s, t = torch.randn(2, 3, *student), torch.randn(2, 5, *teacher)
    assert fitnets.kind_of(s, t) == kind
    loss = losses.create("fitnets").prepare(outputs(s), outputs(t))
    assert loss.regressors[0].conv.weight.shape == weight
    assert torch.isfinite(loss(outputs(s), outputs(t), None))


def test_equals_the_value_worked_out_by_hand():
    s, t = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1), torch.tensor([0.5, 2.0]).view(2, 1, 1, 1)
    loss = losses.create("fitnets", relu="always").prepare(outputs(s), outputs(t))
    conv, bn = loss.regressors[0].conv, loss.regressors[0].bn
    with torch.no_grad():
        conv.weight.fill_(2.0)
        conv.bias.fill_(7.0)
        bn.weight.fill_(3.0)
        bn.bias.fill_(1.0)
    normal = 2 / (4 + 1e-5) ** 0.5  # convolved 9 and 13: mean 11, variance 4
    by_hand = ((max(0, -3 * normal + 1) - 0.5) ** 2 + (3 * normal + 1 - 2.0) ** 2) / 2
    assert loss(outputs(s), outputs(t), None).item() == pytest.approx(by_hand)


def test_the_pairs_are_added():
    torch.manual_seed(0)
    s, t = [torch.randn(4, 3, 4, 4) for _ in range(2)], [torch.randn(4, 5, 4, 4) for _ in range(2)]
    both = losses.create("fitnets").prepare(outputs(*s), outputs(*t))
    each = 0
    for i in range(2):
        one = losses.create("fitnets").prepare(outputs(s[i]), outputs(t[i]))
        one.regressors[0].load_state_dict(both.regressors[i].state_dict())
        each += one(outputs(s[i]), outputs(t[i]), None).item()
    assert both(outputs(*s), outputs(*t), None).item() == pytest.approx(each)


@pytest.mark.parametrize("regressor", ["same", "down", "up"])
def test_a_regressor_that_does_not_lead_to_the_teachers_size_is_refused(regressor):
    s, t = outputs(torch.randn(2, 3, 9, 9)), outputs(torch.randn(2, 5, 7, 7))
    with pytest.raises(UsageError, match="another projector"):
        losses.create("fitnets", regressor=regressor)(s, t, None)


def test_a_map_cannot_shrink_to_a_larger_one():
    s, t = outputs(torch.randn(2, 3, 7, 7)), outputs(torch.randn(2, 5, 9, 9))
    with pytest.raises(UsageError, match="cannot shrink"):
        losses.create("fitnets", regressor="shrink")(s, t, None)
