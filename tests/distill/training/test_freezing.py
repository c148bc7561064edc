"""What is frozen does not move, neither weights nor statistics; the rest does."""

import pytest
import torch
from torch import nn

from distill import models
from distill.training.freezing import freeze
from runtime.errors import UsageError


def changed(network, what, norms=False):
    """Names of parameters and buffers that one step of SGD moves."""
    before = {key: value.clone() for key, value in network.state_dict().items()}
    frozen = freeze(network, what, norms, (3, 32, 32))
    network.train()
    frozen.hold()
    network(torch.randn(4, 3, 32, 32)).square().sum().backward()
    torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.1).step()
    return {key for key, value in network.state_dict().items() if not value.equal(before[key])}


def first_parts(names):
    return {name.split(".")[0] for name in names}


def test_nothing_is_frozen_unless_asked_for():
    assert first_parts(changed(models.build("resnet10t", 3), "")) >= {"conv1", "bn1", "layer1", "fc"}


def test_the_stem():
    assert first_parts(changed(models.build("resnet10t", 3), "stem")) == {
        *("layer1", "layer2", "layer3", "layer4", "fc")
    }


def test_the_first_stages():
    assert first_parts(changed(models.build("resnet10t", 3), "stages:2")) == {"layer3", "layer4", "fc"}
    moved = changed(models.build("replknet_31b", 3, {"channels": [8] * 4, "depths": [1] * 4}), "stages:1")
    assert {name for name in moved if name.startswith("stages.0")} == set()


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv2_035", "resnet20", "convnext_atto"])
def test_all_but_the_head(name):
    network = models.build(name, 3)
    assert first_parts(changed(network, "all-but-head")) <= {"fc", "classifier", "linear", "head"}


def test_norms_keep_their_statistics_but_not_their_weights():
    moved = changed(models.build("resnet10t", 3), "", norms=True)
    assert not any("running" in name or "num_batches" in name for name in moved) and "bn1.weight" in moved


def test_a_part_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="this network has 4 stages"):
        freeze(models.build("resnet10t", 3), "stages:9", False, (3, 32, 32))
    plain = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.LazyLinear(3))
    plain(torch.zeros(1, 3, 4, 4))
    with pytest.raises(UsageError, match="does not say what its stages are"):
        freeze(plain, "stem", False, (3, 4, 4))


SMALL_VIT = {"depth": 3, "embed_dim": 16, "num_heads": 2, "img_size": 32, "patch_size": 8}
SLAK = {"dims": [4, 4, 8, 8], "depths": [1, 1, 1, 1], "kernel_sizes": 5, "small_kernel": 3}
UNIREPLKNET = {"dims": [4, 4, 8, 8], "depths": [1, 1, 1, 1]}
FAMILIES = {
    "resnet20": ({"width": 0.25}, "conv1 bn1", ["layer1", "layer2", "layer3"]),
    "resnet10t": ({}, "conv1 bn1", ["layer1", "layer2", "layer3", "layer4"]),
    "convnext_atto": ({}, "stem", ["stages.0", "stages.1", "stages.2", "stages.3"]),
    "mobilenetv2_035": ({}, "conv_stem bn1", [f"blocks.{i}" for i in range(7)]),
    "mobilenetv3_small_050": ({}, "conv_stem bn1", [f"blocks.{i}" for i in range(6)]),
    "efficientnet_lite0": ({}, "conv_stem bn1", [f"blocks.{i}" for i in range(7)]),
    "regnetx_002": ({}, "stem", ["s1", "s2", "s3", "s4"]),
    "vit_tiny_patch16_224": (SMALL_VIT, "cls_token pos_embed patch_embed", [f"blocks.{i}" for i in range(3)]),
    # of VGG's stages the first layer counts as stem, as timm has it; between them are poolings
    "vgg11": (
        {"mlp_ratio": 0.01},
        "features.0",
        ["", "features.3", "features.6 features.8", "features.11 features.13", "features.16 features.18"],
    ),
    "vgg11_bn": (
        {"mlp_ratio": 0.01},
        "features.0",
        [
            "features.1",
            "features.4 features.5",
            "features.8 features.9 features.11 features.12",
            "features.15 features.16 features.18 features.19",
            "features.22 features.23 features.25 features.26",
        ],
    ),
    "slak_tiny": (
        SLAK,
        "downsample_layers.0",
        ["stages.0", *(f"downsample_layers.{i} stages.{i}" for i in (1, 2, 3))],
    ),
    "unireplknet_a": (
        UNIREPLKNET,
        "downsample_layers.0",
        ["stages.0", *(f"downsample_layers.{i} stages.{i}" for i in (1, 2, 3))],
    ),
    # a transition belongs to the stage before it
    "replknet_31b": (
        {"channels": [8] * 4, "depths": [1] * 4, "kernel_sizes": [5] * 4},
        "stem",
        [*(f"stages.{i} transitions.{i}" for i in (0, 1, 2)), "stages.3"],
    ),
}
"""Name -> arguments, stem, what each stage adds; written down from the definitions of the networks."""


@pytest.mark.parametrize("name", FAMILIES)
def test_a_stage_is_what_the_family_calls_one(name):
    arguments, stem, stages = FAMILIES[name]
    frozen = stem.split()
    for number, more in enumerate(["", *stages]):
        frozen = [*frozen, *more.split()]
        network = models.build(name, 3, arguments)
        freeze(network, f"stages:{number}" if number else "stem", False, (3, 32, 32))
        for each, parameter in network.named_parameters():
            inside = any(each == part or each.startswith(f"{part}.") for part in frozen)
            assert parameter.requires_grad != inside, (number, each)
    with pytest.raises(UsageError, match=f"this network has {len(stages)} stages"):
        freeze(models.build(name, 3, arguments), f"stages:{len(stages) + 1}", False, (3, 32, 32))


def test_looking_for_the_stages_leaves_the_network_as_it_was():
    network = models.build("resnet10t", 3).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    freeze(network, "stages:2", False, (3, 32, 32))
    assert torch.rand(1) == expected and all(module.training for module in network.modules())
    assert all(value.equal(before[key]) for key, value in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
