"""FD by hand: the normalizations of the target, both criteria, when there is a projector."""

import math

import pytest
import torch

from distill import losses
from distill.losses.base import Outputs
from runtime.errors import UsageError

T = torch.tensor([[3.0, 1.0], [8.0, 2.0]], dtype=torch.float64).view(
    1, 2, 1, 2
)  # channels (3, 8) and (1, 2) at two positions


def value(student, teacher=T, **settings):
    logits = torch.zeros(1, 2)
    return losses.create("fd", **settings)(
        Outputs(logits, [student]), Outputs(logits, [teacher]), None
    ).item()


def smooth(d, beta):
    return 0.5 * d**2 / beta if abs(d) < beta else abs(d) - 0.5 * beta


@pytest.mark.parametrize(("criterion", "beta"), [("smooth_l1", 2.0), ("smooth_l1", 0.1), ("mse", 2.0)])
@pytest.mark.parametrize("target_norm", ["position", "map", "none"])
def test_equals_the_value_worked_out_by_hand(target_norm, criterion, beta):
    if target_norm == "position":  # (3, 8): mean 5.5, variance 6.25; (1, 2): 1.5, 0.25
        wide, narrow = math.sqrt(6.25 + 1e-5), math.sqrt(0.25 + 1e-5)
        target = [-2.5 / wide, -0.5 / narrow, 2.5 / wide, 0.5 / narrow]
    elif target_norm == "map":  # (3, 1, 8, 2): mean 3.5, variance 7.25
        target = [d / math.sqrt(7.25 + 1e-5) for d in (-0.5, -2.5, 4.5, -1.5)]
    else:
        target = [3.0, 1.0, 8.0, 2.0]
    each = [d**2 if criterion == "mse" else smooth(d, beta) for d in target]  # the student's map is zero
    found = value(torch.zeros_like(T), target_norm=target_norm, criterion=criterion, beta=beta)
    assert found == pytest.approx(sum(each) / 4)


def test_a_student_that_has_the_normalized_target_has_nothing_to_learn():
    target = torch.nn.functional.layer_norm(T.movedim(1, -1), (2,)).movedim(-1, 1)
    assert value(target) == pytest.approx(0, abs=1e-20)


def test_the_students_map_is_resized_to_the_teachers():
    large = T.repeat_interleave(2, 2).repeat_interleave(2, 3)  # averages back to T
    assert value(large, target_norm="none") == 0


@pytest.mark.parametrize(
    ("projector", "channels", "parameters"), [("auto", 2, 0), ("auto", 3, 2), ("always", 2, 2)]
)
def test_the_projector_is_there_when_it_is_wanted(projector, channels, parameters):
    student = torch.randn(1, channels, 1, 2, dtype=torch.float64)
    loss = losses.create("fd", projector=projector).prepare(Outputs(T, [student]), Outputs(T, [T]))
    assert len(list(loss.parameters())) == parameters


def test_maps_of_other_channels_than_prepared_for_are_refused():
    loss = losses.create("fd").prepare(Outputs(T, [T]), Outputs(T, [T]))
    with pytest.raises(UsageError, match="another projector"):
        loss(Outputs(T, [T[:, :1]]), Outputs(T, [T]), None)
