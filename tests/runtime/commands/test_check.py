"""`distill check`: what a person is told of a data set before a training."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from runtime.cli import front_door


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """train/ with 4 ants and 3 bees, val/ with 2 of each; the current folder is above it."""
    chance = np.random.default_rng(0)
    for split, counts in (("train", {"ant": 4, "bee": 3}), ("val", {"ant": 2, "bee": 2})):
        for name, count in counts.items():
            place = tmp_path / "photos" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = chance.integers(0, 256, (8, 12, 3), np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


@pytest.fixture
def check(capsys):
    """check(*words) -> (exit code, JSON)."""

    def run(*words):
        code = front_door.main(["check", "photos", *words, "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run


def test_a_clean_set_passes(photos, check):
    code, found = check()
    assert (code, found["problems"], found["warnings"]) == (0, [], [])
    assert found["sets"]["train"]["summary"]["counts"] == [4, 3]
    assert found["sets"]["val"]["smallest"] == [12, 8]


def test_what_would_stop_a_training_is_named(photos, check):
    (photos / "train" / "ant" / "0.png").write_bytes(b"junk")
    shutil.rmtree(photos / "val" / "bee")
    Image.new("RGB", (8, 8)).save(photos / "val" / "ant" / "9.png")
    (photos / "val" / "bee2").mkdir()
    Image.new("RGB", (8, 8)).save(photos / "val" / "bee2" / "1.png")
    code, found = check()
    assert code == 1
    words = " ".join(found["problems"])
    assert "val has no image of bee" in words and "train has no image of bee2" in words
    assert "photos/train/ant/0.png" in words


def test_the_same_images_in_both_sets_are_counted_and_named(photos, check):
    shutil.copy(photos / "train" / "ant" / "1.png", photos / "val" / "ant" / "copy.png")
    code, found = check()
    assert code == 0
    assert found["overlap"]["count"] == 1
    assert found["overlap"]["pairs"] == [["photos/train/ant/1.png", "photos/val/ant/copy.png"]]
    assert "1 validation images are training images as well" in found["warnings"][0]


def test_modes_orientation_and_imbalance_are_told(photos, check):
    exif = Image.Exif()
    exif[274] = 6
    for number in range(40):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(photos / "train" / "ant" / f"t{number}.jpg", exif=exif)
    Image.fromarray(np.zeros((5, 5), np.uint16)).save(photos / "val" / "ant" / "deep.png")
    Image.new("CMYK", (5, 5)).save(photos / "val" / "bee" / "ink.jpg")
    _, found = check()
    assert found["sets"]["train"]["orientations"] == {"6": 40}
    assert found["sets"]["val"]["modes"]["I;16"] == 1 and found["sets"]["val"]["modes"]["CMYK"] == 1
    words = " ".join(found["warnings"])
    assert "imbalanced 15 to 1" in words and "--sampler balanced" in words
    assert "40 images are turned" in words and "more than 8 bits" in words


def test_a_set_without_validation_images_names_the_flag(photos, capsys):
    assert front_door.main(["check", "photos/train"]) == 1
    assert "--val-split 0.2" in capsys.readouterr().out
    assert front_door.main(["check", "photos/train", "--val-split", "0.3"]) == 0


def test_what_cannot_be_opened_is_one_line(tmp_path, capsys):
    assert front_door.main(["check", str(tmp_path / "nothing")]) == 2
    assert front_door.main(["check", "torch/cifar10:x"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
