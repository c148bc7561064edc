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
    frozen = freeze(network, what, norms)
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
        freeze(models.build("resnet10t", 3), "stages:9", False)
    with pytest.raises(UsageError, match="does not say what its stages are"):
        freeze(nn.Linear(2, 2), "stem", False)
