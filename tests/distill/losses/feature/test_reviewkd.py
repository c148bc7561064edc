"""ReviewKD: the context loss by hand, and what the fusion joins."""

import pytest
import torch

from distill import losses
from distill.losses.base import Outputs
from distill.losses.feature import reviewkd


def outputs(*maps):
    return Outputs(torch.zeros(len(maps[0]), 2), maps)


def maps(*shapes, batch=4, seed=0):
    torch.manual_seed(seed)
    return outputs(*(torch.randn(batch, *shape) for shape in shapes))


def test_the_context_loss_equals_the_value_worked_out_by_hand():
    s, t = torch.zeros(1, 1, 2, 2), torch.tensor([[1.0, 0.0], [0.0, 0.0]]).view(1, 1, 2, 2)
    by_hand = (1 / 4 + 1 / 2 * (1 / 4) ** 2) / (
        1 + 1 / 2
    )  # 2 x 2, then its average; 4 and 2 are not smaller than the map
    assert reviewkd.hcl([s], [t]).item() == pytest.approx(by_hand)


def test_the_context_loss_of_a_large_map_uses_every_level():
    torch.manual_seed(0)
    s, t = torch.randn(2, 2, 3, 8, 8).unbind()
    d = s - t
    pooled = [d.view(2, 3, n, 8 // n, n, 8 // n).mean((3, 5)).square().mean() for n in (8, 4, 2, 1)]
    by_hand = sum(w * x for w, x in zip((1, 1 / 2, 1 / 4, 1 / 8), pooled, strict=True)) / (15 / 8)
    assert reviewkd.hcl([s], [t]).item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert reviewkd.hcl([s, s], [t, t]).item() == pytest.approx(2 * by_hand.item(), rel=1e-5)


def test_every_stage_and_the_pooled_one_has_a_fusion_with_one_width():
    s, t = maps((3, 8, 8), (6, 4, 4)), maps((5, 8, 8), (7, 4, 4))
    loss = losses.create("reviewkd").prepare(s, t)
    assert [f.expand.conv.weight.shape[:2] for f in loss.fusions] == [
        (7, 6),
        (7, 6),
        (5, 6),
    ]  # pooled, deep, shallow
    assert [f.attention is None for f in loss.fusions] == [True, False, False]
    assert len(losses.create("reviewkd", pooled=False).prepare(s, t).fusions) == 2
    assert losses.create("reviewkd", mid_channels=9).prepare(s, t).fusions[0].reduce.conv.out_channels == 9


def test_the_shallow_stage_sees_the_deep_ones():
    s, t = maps((3, 8, 8), (6, 4, 4)), maps((5, 8, 8), (7, 4, 4))
    loss = losses.create("reviewkd", pooled=False).prepare(s, t)
    deep = s.features[1].clone().requires_grad_()
    _, residual = loss.fusions[0](deep, None, (4, 4))
    output, _ = loss.fusions[1](s.features[0], residual, (8, 8))
    output.square().sum().backward()
    assert deep.grad.abs().max() > 0


def test_the_attention_weighs_the_stage_against_the_residual():
    fusion = reviewkd.Fusion(3, 2, 4, fused=True)
    with torch.no_grad():
        fusion.attention.weight.zero_()
        fusion.attention.bias.copy_(torch.tensor([100.0, -100.0]))  # all of the stage, none of the residual
    torch.manual_seed(0)
    x, residual = torch.randn(2, 3, 4, 4), torch.randn(2, 2, 2, 2)
    assert torch.equal(fusion(x, residual, (4, 4))[1], fusion.reduce(x))
    with torch.no_grad():
        fusion.attention.bias.copy_(torch.tensor([-1000.0, 0.0]))  # half of the residual alone
    assert torch.equal(
        fusion(x, residual, (4, 4))[1], residual.repeat_interleave(2, 2).repeat_interleave(2, 3) / 2
    )


@pytest.mark.parametrize(
    "teacher", [((5, 7, 7), (7, 3, 4)), ((5, 14, 14), (7, 7, 7)), ((5, 2, 2), (7, 1, 1))]
)
def test_maps_of_other_sizes_take_the_teachers(teacher):
    s, t = maps((3, 8, 8), (6, 4, 4)), maps(*teacher)
    assert torch.isfinite(losses.create("reviewkd")(s, t, None))
