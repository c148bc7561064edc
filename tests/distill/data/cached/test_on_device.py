"""Batches cropped and flipped on the device are those of the reading processes, bit for bit."""

import numpy as np
import pytest
import torch
from PIL import Image

from distill.data import TrainLoader, open_data
from runtime.errors import UsageError
from runtime.preprocess import Preprocess

SPEC = Preprocess((3, 16, 16), "bilinear", 1.0)
CROPPED = {"crop_padding": 2, "aa": "", "color_jitter": 0.0, "batch": 4}
CPU = torch.device("cpu")


def batches(images, recipe, spec=SPEC, count=2):
    loader = TrainLoader(images, recipe, spec, CPU)
    return [batch for epoch in range(count) for batch in loader.epoch(epoch)]


def same(found, expected):
    return len(found) == len(expected) and all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and a.bad == b.bad
        for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"hflip": 0.0},
        {"reprob": 0.7},
        {"reprob": 0.7, "remode": "const", "crop_padding": 5},
        {"sampler": "balanced", "workers": 2},
    ],
)
def test_every_batch_is_the_one_without_it(images, recipe, settings):
    mine = CROPPED | settings
    expected = batches(images(24), recipe(**mine))
    assert same(batches(images(24), recipe(**mine, cache="device")), expected)
    assert not same(batches(images(24), recipe(**mine, cache="device", seed=1)), expected)


def test_an_input_that_is_not_square(recipe, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 10, 3), np.uint8)
    np.savez(tmp_path / "train.npz", x=pixels, y=np.arange(8) % 2)
    found, spec = open_data(f"npz:{tmp_path}", "train"), Preprocess((3, 6, 10), "bilinear", 1.0)
    expected = batches(found, recipe(**CROPPED), spec)
    assert same(batches(found, recipe(**CROPPED, cache="device"), spec), expected)


def test_files_are_read_once_and_unreadable_ones_are_named(recipe, tmp_path):
    for number in range(8):
        place = tmp_path / "train" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    (tmp_path / "train" / "a" / "2.png").write_bytes(b"nothing")
    found = open_data(str(tmp_path), "train")
    settings = CROPPED | {"skip_bad_images": True}
    expected = batches(found, recipe(**settings))
    assert sum(len(batch.bad) for batch in expected) >= 1
    assert same(batches(found, recipe(**settings, cache="device")), expected)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"crop_padding": 0}, "--scale"),
        ({"aa": "rand-m9"}, "--aa"),
        ({"color_jitter": 0.4}, "--color-jitter"),
        ({"cache_limit": 1e-9}, "--cache-limit"),
    ],
)
def test_what_the_device_does_not_do_is_refused_by_its_flag(images, recipe, settings, words):
    with pytest.raises(UsageError, match="--cache device") as caught:
        batches(images(8), recipe(**CROPPED | {"cache": "device"} | settings))
    assert words in str(caught.value) and "--cache ram" in str(caught.value)


def test_images_of_another_size_are_refused_by_name(images, recipe):
    with pytest.raises(UsageError, match=r"made:0\[0\] has 20 x 20 pixels, and the input 16 x 16"):
        batches(images(8, size=20), recipe(**CROPPED, cache="device"))
