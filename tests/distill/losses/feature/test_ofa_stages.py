"""OFA-KD's stages: one branch per map, down to the deepest map's size, each taught the teacher's logits."""

import pytest
import torch

from distill import losses
from distill.losses.base import Outputs
from distill.losses.feature.base import ConvNorm

TARGET = torch.tensor([0, 2, 1])


def outputs(*shapes, classes=5):
    torch.manual_seed(0)
    return Outputs(torch.randn(3, classes), [torch.randn(3, *shape) for shape in shapes])


@pytest.mark.parametrize(
    ("shapes", "halvings"),
    [
        (((4, 16, 16), (8, 8, 8), (16, 4, 4)), [2, 1, 0]),
        (((4, 7, 7), (8, 7, 7)), [0, 0]),
        (((4, 28, 28), (8, 7, 7)), [2, 0]),
        (((4, 15, 15), (8, 8, 8)), [1, 0]),
    ],
)
def test_each_branch_halves_its_map_to_the_deepest_ones_size(shapes, halvings):
    student = outputs(*shapes)
    loss = losses.create("ofa_stages").prepare(student, student)
    assert [sum(isinstance(block, ConvNorm) for block in branch) for branch in loss.branches] == halvings
    for branch, x in zip(loss.branches, student.features, strict=True):
        assert branch(x).shape == (3, 5)
        assert branch[:-3](x).shape[2] == shapes[-1][1]


def test_channels_double_up_to_those_of_the_deepest_map():
    student = outputs((4, 32, 32), (10, 4, 4))
    branch = losses.create("ofa_stages").prepare(student, student).branches[0]
    assert [block.conv[1].weight.shape[:2] for block in branch[:3]] == [(8, 4), (10, 8), (10, 10)]


@pytest.mark.parametrize("settings", [{}, {"eps": 1.5}, {"temperature": 2.0}])
def test_is_the_ofa_loss_of_every_branch_added_up(settings):
    student, teacher = outputs((4, 8, 8), (8, 4, 4)), Outputs(torch.randn(3, 5))
    loss = losses.create("ofa_stages", **settings).prepare(student, teacher)
    alone = losses.create("ofa", **settings)
    by_hand = sum(
        alone(Outputs(branch(x)), teacher, TARGET)
        for branch, x in zip(loss.branches, student.features, strict=True)
    )
    assert loss(student, teacher, TARGET).item() == pytest.approx(by_hand.item())


def test_the_deepest_branch_is_a_linear_classifier_of_the_mean():
    student = outputs((4, 4, 4))
    branch = losses.create("ofa_stages").prepare(student, student).branches[0]
    linear = branch[-1]
    by_hand = student.features[0].mean((2, 3)) @ linear.weight.T + linear.bias
    assert torch.allclose(branch(student.features[0]), by_hand, atol=1e-6)


def test_mixed_labels_follow_the_rule_that_was_asked_for():
    student, mixed = outputs((4, 4, 4)), torch.tensor([[0.6, 0.4, 0, 0, 0]]).expand(3, 5)
    torch.manual_seed(0)
    loss = losses.create("ofa_stages", eps=1.5).prepare(student, student)
    both = losses.create("ofa_stages", eps=1.5, mixed_labels="both").prepare(student, student)
    both.load_state_dict(loss.state_dict())
    one, other = (loss(student, student, torch.full((3,), y)).item() for y in (0, 1))
    assert loss(student, student, mixed).item() == pytest.approx(one)
    assert both(student, student, mixed).item() == pytest.approx(0.6 * one + 0.4 * other)
