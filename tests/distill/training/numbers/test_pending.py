"""Losses on the device become the numbers of their steps."""

import math

import pytest
import torch

from distill.training.numbers.finite import Flags
from distill.training.numbers.pending import Pending, Step
from distill.training.records import StepLosses


def batch(total, distill, task, each, finite=(True, True)):
    scalars = [torch.tensor(value) for value in (total, distill, task)]
    return StepLosses(*scalars, [torch.tensor(value) for value in each], torch.tensor(finite))


def test_a_step_is_the_mean_of_its_batches():
    pending = Pending(batches_a_step=2)
    for total in (1.0, 3.0, 5.0, 9.0):
        pending.add(batch(total, total / 2, total / 4, [total * 2, 0.0]))
    assert len(pending) == 4
    assert pending.take() == [
        Step(2.0, 1.0, 0.5, [4.0, 0.0], Flags()),
        Step(7.0, 3.5, 1.75, [14.0, 0.0], Flags()),
    ]
    assert not pending and pending.take() == []


def test_the_flags_of_a_step_are_those_of_all_its_batches_and_of_its_gradients():
    pending = Pending(batches_a_step=2)
    for finite in ((True, True), (True, False), (True, True), (False, True)):
        pending.add(batch(1.0, 0.0, 1.0, [], finite))
    for norm in (math.inf, 1.0):
        pending.add_norm(torch.tensor(norm))
    assert [step.finite for step in pending.take()] == [Flags(True, False, False), Flags(False, True, True)]


@pytest.mark.parametrize("norms", [[], [0.5]])
def test_what_was_taken_is_not_taken_again(norms):
    pending = Pending(batches_a_step=1)
    for total in (1.0, 2.0):
        pending.add(batch(total, 0.0, total, []))
        for norm in norms:
            pending.add_norm(torch.tensor(norm))
        assert [step.loss for step in pending.take()] == [total]
