"""Names, shapes, order and types of every tensor of the original networks, and their numbers of parameters.

Networks are built on the meta device: nothing is computed, and the largest takes no memory.
"""

import pytest
import timm
import torch

from distill import models  # noqa: F401  (registers the families)
from distill.models import convert
from distill.models.merge import reparameterize


@pytest.fixture(autouse=True)
def no_values(monkeypatch):
    """On the meta device there is nothing to clamp; torch takes a second per network to find that out."""
    monkeypatch.setattr(torch.Tensor, "clamp_", lambda tensor, *_, **__: tensor)


def rows(state_dict):
    return [
        [key, list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
        for key, tensor in state_dict.items()
    ]


def count(tensors):
    return sum(tensor.numel() for tensor in tensors)


def test_state_dict(state_dict_case, read, ours):
    expected = read(state_dict_case)
    name, arguments = ours(expected["constructor"])
    with torch.device("meta"):
        network = timm.create_model(name, **arguments)
        published = {
            key: torch.empty(shape, dtype=getattr(torch, dtype)) for key, shape, dtype in expected["keys"]
        }
    if expected["form"] == "merged":
        reparameterize(network, inplace=True, fold_batch_norm=False)
    assert count(network.parameters()) == expected["parameters"] == state_dict_case["parameters"]
    assert count(network.buffers()) == expected["buffers"]
    assert len(network.state_dict()) == state_dict_case["tensors"]
    of_the_user = {key: value for key, value in arguments.items() if key not in ("num_classes", "deploy")}
    if name.startswith("convnext"):  # timm's names are its own, so the published ones are converted
        weights, _, (note,) = convert.convert(name, of_the_user, published)
        assert sorted(rows(weights)) == sorted(rows(network.state_dict()))
        assert note.startswith(
            f"renamed {len(published)} names (first: downsample_layers.0.0.weight -> stem.0.weight)"
        )
        return
    assert rows(network.state_dict()) == expected["keys"]
    assert [key for key, _ in network.named_parameters()] == expected["parameter_keys"]
    if expected["form"] != "train":  # a file of this form says so itself
        weights, found, notes = convert.convert(name, of_the_user, published)
        assert found == of_the_user | {"deploy": True} and notes == [
            "arguments read from the weights: deploy=true"
        ]
        assert list(weights) == list(published)
