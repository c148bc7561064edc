"""MGD: the mask, the sum over an image, the weight."""

import pytest
import torch

from distill import losses
from distill.losses.base import Outputs


def outputs(*maps):
    return Outputs(torch.zeros(len(maps[0]), 2), maps)


def test_equals_the_value_worked_out_by_hand():
    s, t = torch.randn(2, 3, 2, 2), torch.arange(8.0).view(2, 1, 2, 2)
    loss = losses.create("mgd", alpha_mgd=0.5).prepare(outputs(s), outputs(t))
    with torch.no_grad():
        loss.generators[0][2].weight.zero_()
        loss.generators[0][2].bias.fill_(1.0)  # restores 1 everywhere, whatever it is given
    assert loss(outputs(s), outputs(t), None).item() == pytest.approx(
        0.5 * sum((x - 1) ** 2 for x in range(8)) / 2
    )


def test_the_mask_drops_whole_channels_of_single_images_as_often_as_asked():
    loss = losses.create("mgd", lambda_mgd=0.3)
    torch.manual_seed(0)
    mask = loss.draw_mask(torch.zeros(100, 200, 3, 3))
    assert mask.shape == (100, 200, 1, 1)
    assert set(mask.unique().tolist()) == {0, 1}
    assert mask.mean().item() == pytest.approx(0.7, abs=0.015)  # 4 standard deviations
    assert not torch.equal(mask, loss.draw_mask(torch.zeros(100, 200, 3, 3)))


def test_dropped_channels_do_not_reach_the_generator(monkeypatch):
    torch.manual_seed(0)
    s, t = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 3, 4, 4)
    loss = losses.create("mgd").prepare(outputs(s), outputs(t))
    mask = torch.tensor([[1.0, 0, 1], [0, 1, 1]]).view(2, 3, 1, 1)
    monkeypatch.setattr(loss, "draw_mask", lambda x: mask)
    loss(outputs(s), outputs(t), None).backward()
    assert torch.equal((s.grad.abs().sum((2, 3)) > 0).float(), mask.flatten(1))


def test_without_a_mask_the_loss_is_the_same_at_every_step():
    torch.manual_seed(0)
    s, t = outputs(torch.randn(2, 3, 4, 4)), outputs(torch.randn(2, 5, 8, 8))
    loss = losses.create("mgd", lambda_mgd=0).prepare(s, t)
    assert torch.equal(loss(s, t, None), loss(s, t, None))
    masked = losses.create("mgd", lambda_mgd=0.5).prepare(s, t)
    assert not torch.equal(masked(s, t, None), masked(s, t, None))


@pytest.mark.parametrize(("channels", "convolutions"), [(5, 2), (3, 3)])
def test_channels_are_aligned_where_they_differ(channels, convolutions):
    loss = losses.create("mgd").prepare(
        outputs(torch.randn(2, channels, 4, 4)), outputs(torch.randn(2, 5, 4, 4))
    )
    assert len(list(loss.parameters())) == 2 * convolutions
