"""FGSM and PGD on a linear network, whose gradient is known; what is written is what artifacts see."""

import json
import tracemalloc

import numpy as np
import pytest
import torch
from torch import nn

from distill import checkpoint as checkpoints
from distill import models
from distill.__main__ import main
from distill.checkpoint import Checkpoint
from distill.data import attack as attacks
from distill.data.attack import Attack
from runtime.errors import UsageError
from runtime.images import ArraySet, open_images
from runtime.preprocess import Preprocess

CPU = torch.device("cpu")
SPEC = Preprocess((3, 4, 4), "bilinear", 1.0)


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).eval()


@pytest.fixture
def pixels():
    made = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3)).astype(np.uint8)
    made[0, 0], made[1, 0] = 0, 255  # where there is no room
    return made


LABELS = np.array([0, 1, 0, 1, 1])


def uphill(linear):
    """With two classes the loss grows along the other class's weights minus the label's."""
    weights = linear[1].weight.detach().numpy().reshape(2, 3, 4, 4).transpose(0, 2, 3, 1)
    return np.sign(np.stack([weights[1 - y] - weights[y] for y in LABELS]))


def test_fgsm_moves_every_value_along_the_sign_of_the_gradient(linear, pixels):
    attack = Attack("fgsm", 3, 1, 1.0, 0)
    made = attacks.attacked(linear, pixels, LABELS, range(5), SPEC, attack, CPU)
    assert np.array_equal(made, np.clip(pixels + 3 * uphill(linear), 0, 255))


def test_pgd_ends_in_the_same_corner_of_a_linear_network(linear, pixels):
    attack = Attack("pgd", 3, 7, 1.0, 0)  # from any start within 3 it gets there in 6 steps
    made = attacks.attacked(linear, pixels, LABELS, range(5), SPEC, attack, CPU)
    assert np.array_equal(made, np.clip(pixels + 3 * uphill(linear), 0, 255))


def test_pgd_stays_within_epsilon_and_starts_by_seed_and_place_alone(linear, pixels):
    attack = Attack("pgd", 4, 1, 0.5, 0)
    made = attacks.attacked(linear, pixels, LABELS, range(5), SPEC, attack, CPU)
    assert np.abs(made.astype(int) - pixels).max() in (3, 4)
    one = attacks.attacked(linear, pixels[3:4], LABELS[3:4], [3], SPEC, attack, CPU)
    assert np.array_equal(one[0], made[3])
    other = Attack("pgd", 4, 1, 0.5, 1)
    assert not np.array_equal(attacks.attacked(linear, pixels, LABELS, range(5), SPEC, other, CPU), made)


@pytest.mark.parametrize(
    "spec",
    [
        Preprocess((3, 24, 24), "bicubic", 0.875),
        Preprocess((3, 24, 31), "bicubic", 0.9),
        Preprocess((3, 24, 31), "bilinear", 0.9, "squash"),
        Preprocess((3, 25, 24), "bilinear", 0.95, "border"),
        Preprocess((3, 24, 24), "bilinear", 1.0),
    ],
)
def test_preprocessing_cuts_the_border_off_and_nothing_else(spec):
    made = np.random.default_rng(1).integers(0, 256, (2, *spec.input_size[1:], 3)).astype(np.uint8)
    for whole, image in zip(attacks.framed(made, spec), made, strict=True):
        assert np.array_equal(spec.pixels(whole), image)


def test_a_network_that_enlarges_less_than_its_input_is_refused():
    with pytest.raises(UsageError, match="crop_pct 2"):
        attacks.framed(np.full((1, 8, 8, 3), 9, np.uint8), Preprocess((3, 8, 8), "bilinear", 2.0))


def test_all_images_are_held_once_and_refused_before_the_first_is_read():
    """numpy tells tracemalloc what it holds; of one copy more it would be twice the images."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
    images = ArraySet("made", np.zeros((100, 64, 64, 3), np.uint8), np.zeros(100, int), ["a", "b"])
    spec, attack = Preprocess((3, 64, 64), "bilinear", 1.0), Attack("none", 1, 1, 1.0, 0)
    tracemalloc.start()
    try:
        made, *_ = attacks.on_set(model, images, np.arange(100), spec, attack, CPU, 5)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert made.shape == (100, 64, 64, 3) and made.nbytes < peak < 1.7 * made.nbytes
    seen = []
    images.image = seen.append
    with pytest.raises(UsageError, match="crop_pct 2"):
        attacks.on_set(model, images, np.arange(9), Preprocess((3, 8, 8), "bilinear", 2.0), attack, CPU, 5)
    assert seen == []


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    model = models.build("resnet20", 4, {"width": 0.25})
    spec = Preprocess((3, 16, 16), "bilinear", 0.9)
    names = ["ant", "bee", "cat", "dog"]
    path = tmp_path / "best.pth"
    checkpoints.save(Checkpoint("resnet20", {"width": 0.25}, model.state_dict(), spec, names), path)
    return str(path)


def test_the_file_holds_the_same_images_changed_by_at_most_epsilon(checkpoint, npz, tmp_path, capsys):
    data, out = npz(val=20), [tmp_path / "plain.npz", tmp_path / "pgd.npz"]
    results = []
    for path, kind in zip(out, ("none", "pgd"), strict=True):
        argv = ["attack", checkpoint, "--data", data, "--output", str(path), "--attack", kind, "--steps", "3"]
        assert main([*argv, "--images", "9", "--epsilon", "5", "--batch", "4", "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out))
    plain, changed = (open_images(f"npz:{path}", "val") for path in out)
    assert len(plain) == len(changed) == 9 and plain.class_names == ["ant", "bee", "cat", "dog"]
    assert np.array_equal(plain.labels, changed.labels)
    spec = Preprocess((3, 16, 16), "bilinear", 0.9)
    given = open_images(data, "val")
    indices = np.load(out[0])["indices"]
    for number, index in enumerate(indices):
        before = spec.pixels(given.image(int(index)))
        assert np.array_equal(spec.pixels(plain.image(number)), before)
        off = np.abs(spec.pixels(changed.image(number)).astype(int) - before)
        assert 0 < off.max() <= 5
    assert results[0]["clean_right"] == results[0]["attacked_right"] == results[1]["clean_right"]
    assert results[1]["attacked_right"] <= results[1]["clean_right"] and results[1]["step"] == 1.25


def test_an_existing_file_and_another_ending_are_refused(checkpoint, npz, tmp_path, capsys):
    (tmp_path / "a.npz").write_bytes(b"mine")
    data = npz(val=8)
    for name, said in (("a.npz", "exists already"), ("a.png", "ends in .npz")):
        assert main(["attack", checkpoint, "--data", data, "--output", str(tmp_path / name)]) == 2
        assert said in capsys.readouterr().err
    assert (tmp_path / "a.npz").read_bytes() == b"mine"
