"""Intervals against published values."""

import pytest
import torch

from distill.run.interval import paired


def table(both, first, second, neither):
    """(first right, second right) of a table of counts."""
    one = [1] * both + [1] * first + [0] * second + [0] * neither
    other = [1] * both + [0] * first + [1] * second + [0] * neither
    return torch.tensor(one, dtype=torch.bool), torch.tensor(other, dtype=torch.bool)


def test_the_paired_interval_is_newcombes():
    """Newcombe 1998, table II, method 10: 36, 12, 2, 0 gives 0.0569 to 0.3404."""
    found = paired(*table(36, 12, 2, 0))
    assert (found.low, found.high) == (pytest.approx(5.69, abs=0.01), pytest.approx(34.04, abs=0.01))
    assert (
        found.points == pytest.approx(20)
        and found.is_clear
        and (found.only_first, found.only_second) == (12, 2)
    )


def test_the_same_answers_cannot_tell():
    found = paired(*table(40, 0, 0, 10))
    assert found.points == 0 and not found.is_clear and found.low < 0 < found.high


def test_exchanging_the_networks_turns_the_interval_around():
    one, other = table(30, 9, 4, 12)
    there, back = paired(one, other), paired(other, one)
    assert (there.low, there.high) == (pytest.approx(-back.high), pytest.approx(-back.low))
