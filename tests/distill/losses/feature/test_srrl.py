"""SRRL: the teacher's head is found for every family, stays frozen, and is not part of the loss's state."""

import pytest
import timm
import torch
from torch import nn

from distill import losses, models
from distill.losses.base import Outputs
from distill.losses.feature import srrl
from distill.losses.feature.taps import Taps
from runtime.errors import UsageError

SWIN = {"img_size": 32, "embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "window_size": 2}


def teacher(name, settings, size=32):
    torch.manual_seed(0)
    model = models.build(name, 7, settings).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    taps = Taps(model, (3, size, size))
    taps.use(taps.stages[-1:])
    return model, taps(torch.randn(3, 3, size, size))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("resnet20", {"width": 0.25}),
        ("test_resnet", {}),
        ("test_convnext", {}),
        ("mobilenetv3_small_050", {}),
        ("swin_tiny_patch4_window7_224", SWIN),
        ("test_vit", {"img_size": 32, "class_token": False, "global_pool": "avg"}),
    ],
)
def test_the_head_turns_the_last_map_into_the_teachers_own_logits(name, settings):
    model, sample = teacher(name, settings)
    head = srrl.head_of(model, sample)
    assert torch.allclose(head(sample.features[-1]), sample.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("test_vit", {"img_size": 32}),
        ("deit_tiny_distilled_patch16_224", {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3}),
    ],
)
def test_the_mean_of_the_tokens_stands_for_a_class_token(name, settings):
    model, sample = teacher(name, settings)
    mean = model.norm(sample.features[-1].flatten(2).mT).mean(1)
    by_hand = (
        (model.head(mean) + model.head_dist(mean)) / 2
        if "distilled" in name
        else model.head(model.fc_norm(mean))
    )
    assert torch.allclose(srrl.head_of(model, sample)(sample.features[-1]), by_hand, atol=1e-5)


def test_layers_between_the_last_map_and_the_head_are_refused():
    model, sample = teacher("test_efficientnet", {})
    assert timm.is_model("test_efficientnet")
    with pytest.raises(UsageError, match="EfficientNet has layers between its last map, of 64 channels"):
        srrl.head_of(model, sample)


def test_equals_the_value_worked_out_by_hand():
    class Sum(nn.Module):
        def get_classifier(self):
            return lambda pooled: pooled.sum(1, keepdim=True).expand(-1, 2)

    s = torch.tensor([0.0, 2.0]).view(2, 1, 1, 1)
    t = torch.tensor([[1.0, 3.0], [2.0, 5.0]]).view(2, 1, 1, 2)  # means 2 and 3.5
    loss = losses.create("srrl", feature_weight=3, regression_weight=5)
    loss.prepare(Outputs(s, [s]), Outputs(t.mean((2, 3)).expand(-1, 2), [t]), Sum())
    nn.init.ones_(loss.connector.conv.weight)
    normal = (
        1 / (1 + 1e-5) ** 0.5
    )  # batch norm of 0 and 2: -normal and normal; rectified because the teacher's map is
    squares = ((0 - 2.0) ** 2 + (normal - 3.5) ** 2) / 2  # the same for features and logits here
    assert loss(Outputs(s, [s]), Outputs(s, [t]), None).item() == pytest.approx(3 * squares + 5 * squares)


def test_only_the_connector_is_learned_and_saved():
    model, sample = teacher("test_convnext", {})
    student = Outputs(sample.logits, [torch.randn(3, 4, 2, 2)])
    loss = losses.create("srrl").prepare(student, sample, model)
    assert {key.split(".")[0] for key in loss.state_dict()} == {"connector"}
    assert {name for name, _ in loss.named_parameters()} == {
        "connector.conv.weight",
        "connector.bn.weight",
        "connector.bn.bias",
    }
    loss(student, sample, None).backward()
    assert loss.connector.conv.weight.grad.abs().max() > 0


def test_the_teacher_is_needed_and_must_be_frozen():
    model, sample = teacher("test_resnet", {})
    with pytest.raises(UsageError, match="teacher's classifier: call prepare"):
        losses.create("srrl")(sample, sample, None)
    with pytest.raises(UsageError, match="not frozen"):
        losses.create("srrl").prepare(sample, sample, model.requires_grad_(True))
