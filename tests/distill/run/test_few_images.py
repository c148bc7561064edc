"""A few images and no flags about the training: what a first run usually is."""

import json

import numpy as np
import pytest
from PIL import Image

from distill.__main__ import main

COLORS = {"ant": (200, 60, 60), "bee": (60, 200, 60), "cow": (60, 60, 200), "dog": (130, 130, 130)}
COUNT = 166


@pytest.fixture
def photos(tmp_path):
    """COUNT images in four folders of classes: noise around a color, nothing set apart for validation."""
    random = np.random.default_rng(0)
    for number in range(COUNT):
        name = list(COLORS)[number % 4]
        pixels = np.clip(random.normal(COLORS[name], 60, (24, 24, 3)), 0, 255).astype(np.uint8)
        place = tmp_path / "photos" / name
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return tmp_path / "photos"


@pytest.fixture
def trained(photos, tmp_path, capsys):
    """trained(*flags) -> (result.json, what was said before the first epoch, stdout); a small network, the
    training's own defaults.
    """

    def call(*flags):
        small = ["--student", "resnet20", "--student-args", "width=0.25", "--img-size", "16", "--no-report"]
        words = ["train", "--data", str(photos), "--val-split", "0.2", *small, "--device", "cpu", *flags]
        assert main([*words, "--output", str(tmp_path / "run")]) == 0
        out, err = capsys.readouterr()
        result = json.loads((tmp_path / "run" / "result.json").read_text())
        return result, err[: err.index("plain: epoch 1/")], out

    return call


@pytest.mark.slow
def test_the_defaults_give_a_network_that_is_better_than_the_commonest_class(trained):
    result, before, out = trained()
    assert "epochs of 1 step of 128 images" in before and "only 1 step an epoch, 100 in all" in before
    assert result["best"]["top1_percent"] > 50  # the commonest class has a quarter
    assert "commonest class" not in out


def test_a_run_that_cannot_learn_says_why_before_it_starts_and_that_it_did_not_at_the_end(trained):
    result, before, out = trained("--epochs", "2", "--lr", "1e-9")
    assert "warning: only 1 step an epoch, 2 in all: give a smaller --batch (now 128)" in before
    assert result["best"]["top1_percent"] <= 50
    assert ("commonest class" in out) == (result["best"]["top1_percent"] <= 100 / 4 + 1)
