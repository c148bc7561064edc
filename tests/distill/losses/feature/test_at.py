"""Attention transfer by hand: unit attention maps, the power, maps of two sizes, the sum over pairs."""

import math

import pytest
import torch

from distill import losses
from distill.losses.base import Outputs


def value(student, teacher, **settings):
    maps = [[torch.tensor(m, dtype=torch.float64) for m in maps] for maps in (student, teacher)]
    return losses.create("at", **settings)(*(Outputs(torch.zeros(1, 2), m) for m in maps), None).item()


ROW = [[[[3.0, 4.0]]]]  # one image, one channel, one row of two positions
CORNER = [[[[1.0, 0.0]]]]


def test_equals_the_value_worked_out_by_hand():
    length = math.hypot(9, 16)
    assert value([ROW], [CORNER]) == pytest.approx(((9 / length - 1) ** 2 + (16 / length) ** 2) / 2)


def test_channels_are_averaged_and_signs_do_not_count():
    two = [[[[3.0, 0.0]], [[-1.0, 2.0]]]]  # (9 + 1) / 2 and (0 + 4) / 2
    length = math.hypot(5, 2)
    assert value([two], [CORNER]) == pytest.approx(((5 / length - 1) ** 2 + (2 / length) ** 2) / 2)


def test_p_is_the_power_of_the_absolute_value():
    length = math.hypot(27, 64)
    assert value([[[[[-3.0, 4.0]]]]], [CORNER], p=3) == pytest.approx(
        ((27 / length - 1) ** 2 + (64 / length) ** 2) / 2
    )


def test_scale_does_not_count():
    assert value([[[[[300.0, 400.0]]]]], [ROW]) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("larger", ["student", "teacher"])
def test_the_larger_map_is_averaged_to_the_smaller_before_its_attention(larger):
    large, small = [[[[1.0, 5.0, 4.0, 4.0]]]], CORNER  # averaged to 3, 4
    length = math.hypot(9, 16)
    by_hand = ((9 / length - 1) ** 2 + (16 / length) ** 2) / 2
    pair = ([large], [small]) if larger == "student" else ([small], [large])
    assert value(*pair) == pytest.approx(by_hand)


def test_the_pairs_are_added():
    assert value([ROW, CORNER], [CORNER, ROW]) == pytest.approx(2 * value([ROW], [CORNER]))


def test_maps_of_zeros_send_back_no_gradient():
    s = torch.zeros(2, 3, 4, 4, requires_grad=True)
    losses.create("at")(
        Outputs(torch.zeros(2, 2), [s]), Outputs(torch.zeros(2, 2), [torch.randn(2, 3, 4, 4)]), None
    ).backward()
    assert torch.equal(s.grad, torch.zeros_like(s))
