"""Which layer makes the logits, and what becomes of a file's where its classes are others."""

import pytest
import torch

from distill import models
from distill.models import classifier

NAMES = ["ant", "bee", "cow"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet10t", ["fc"]),
        ("mobilenetv2_050", ["classifier"]),
        ("convnext_atto", ["head.fc"]),
        ("deit_tiny_distilled_patch16_224", ["head", "head_dist"]),
        ("resnet20", ["linear"]),
        ("unireplknet_a", ["head"]),
    ],
)
def test_the_layers_that_make_the_logits_are_found(name, expected):
    network = models.build(name, 3)
    assert classifier.layers_of(network) == expected
    assert all(network.get_submodule(layer).weight.shape[0] == 3 for layer in expected)


def build(classes):
    torch.manual_seed(classes)
    return models.build("resnet20", classes, {"width": 0.25})


def test_other_classes_get_a_new_classifier_and_a_line():
    network, weights = build(3), build(10).state_dict()
    found, notes = classifier.fitted(network, weights, None, NAMES)
    assert notes == ["classifier linear: 10 classes -> new, 3 classes"]
    assert torch.equal(found["linear.weight"], network.linear.weight)
    assert torch.equal(found["conv1.weight"], weights["conv1.weight"])


def test_a_file_without_its_classifier():
    weights = {key: value for key, value in build(10).state_dict().items() if not key.startswith("linear")}
    found, notes = classifier.fitted(build(3), weights, None, NAMES)
    assert notes == ["classifier linear: not in the file -> new, 3 classes"]
    build(3).load_state_dict(found)


def test_a_head_of_another_name_is_left_out():
    weights = {key: value for key, value in build(10).state_dict().items() if not key.startswith("linear")}
    found, notes = classifier.fitted(build(3), weights | {"head.x.weight": torch.ones(2)}, None, NAMES)
    assert notes[1] == "left out: 1 weights of another head (first: head.x.weight)"
    build(3).load_state_dict(found)


def test_as_many_classes_without_names_are_kept_and_said():
    weights = build(3).state_dict()
    found, notes = classifier.fitted(build(3), weights, None, NAMES)
    assert all(torch.equal(found[key], value) for key, value in weights.items())
    assert "kept; its 3 classes are taken to be in the order of the data's" in notes[0]


def test_as_many_classes_of_other_names_are_new():
    network = build(3)
    torch.manual_seed(9)
    weights = models.build("resnet20", 3, {"width": 0.25}).state_dict()
    found, notes = classifier.fitted(network, weights, ["ant", "bee", "dog"], NAMES)
    assert notes == ["classifier linear: 3 classes -> new, 3 classes (of other names)"]
    assert torch.equal(found["linear.bias"], network.linear.bias)


def test_another_order_of_the_same_classes_is_put_right():
    """Logit i of the result is the logit of class i's name in the file."""
    source, images = build(3).eval(), torch.randn(2, 3, 32, 32)
    found, notes = classifier.fitted(build(3), source.state_dict(), ["cow", "ant", "bee"], NAMES)
    network = build(3).eval()
    network.load_state_dict(found)
    assert torch.equal(network(images), source(images)[:, [1, 2, 0]])
    assert notes == ["classifier linear: its classes are put into the order of the data's"]


def test_the_same_classes_say_nothing():
    weights = build(3).state_dict()
    assert classifier.fitted(build(3), weights, NAMES, NAMES) == (dict(weights), [])


def test_a_classifier_without_dimensions_is_replaced():
    weights = build(3).state_dict() | {"linear.weight": torch.tensor(1.0)}
    found, notes = classifier.fitted(build(3), weights, None, NAMES)
    assert notes == ["classifier linear: not in the file -> new, 3 classes"]
    build(3).load_state_dict(found)
