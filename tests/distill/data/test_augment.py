"""Augmentation: every operation of every policy of timm at its extremes, whatever Pillow is installed."""

import copy
import json
import pickle
import random

import numpy as np
import pytest
import torch
from augmented import augmented, finished
from PIL import Image, ImageOps
from timm.data import auto_augment, create_transform

from distill.data import augment
from distill.data.augment import TransformError, operations, training_transform
from distill.recipe.reader import load
from runtime.cli import front_door
from runtime.preprocess import Preprocess

SPEC = Preprocess((3, 32, 32), "bicubic", 1.0)
POLICIES = [
    *("rand-m9-mstd0.5-inc1", "rand-m9", "rand-m15-mmax20-inc1", "rand-m10-mstd101-inc1-n3", "rand-mstd5"),
    *("rand-m10-tweights-inc1", "rand-m9-t3a", "rand-m10-t3aw-inc1"),
    *("augmix", "augmix-m10-mstd2", "augmix-m10-b1"),
    *("original", "originalr", "v0", "v0r", "3a"),
    *("original-mstd3", "originalr-mstd3", "v0-mstd3", "v0r-mstd3", "3a-mstd3"),
]
MAGNITUDES = (-5.0, 0.0, 0.01, 2.4, 5.0, 7.5, 9.0, 9.99, 10.0, 10.01, 13.0, 20.0, 1e6)


@pytest.fixture(scope="module")
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))


def policy_of(transform):
    return next(step for step in transform.transforms if list(operations(step)))


def at(operation, magnitude):
    """The operation applied always, with this magnitude before timm's clipping."""
    fixed = copy.copy(operation)
    fixed.prob, fixed.magnitude, fixed.magnitude_std = 1.0, magnitude, 0
    return fixed


def kept_bits(operation, magnitude):
    """How many bits of a channel timm's three posterize operations keep (its docstrings, by hand)."""
    level = int(min(max(magnitude, 0.0), operation.magnitude_max or 10.0) / 10 * 4)
    return {"Posterize": level, "PosterizeIncreasing": 4 - level, "PosterizeOriginal": 4 + level}[
        operation.name
    ]


@pytest.mark.parametrize("policy", POLICIES)
def test_posterize_keeps_the_highest_bits_and_none_is_black(policy, image, recipe):
    pixels = np.asarray(image)
    seen = set()
    for operation in operations(policy_of(training_transform(recipe(aa=policy), SPEC))):
        if "Posterize" not in operation.name:
            continue
        for magnitude in MAGNITUDES:
            bits = kept_bits(operation, magnitude)
            seen.add(bits)
            step = 2.0 ** max(8 - bits, 0)  # all values within a step become its lowest one
            expected = np.floor(pixels / step) * step if bits > 0 else np.zeros_like(pixels)
            assert np.array_equal(np.asarray(at(operation, magnitude)(image)), expected), (magnitude, bits)
    none_left = {bits for bits in seen if bits < 1}
    assert bool(none_left) == (policy not in NEVER_BLACK)
    assert ("mmax20" not in policy) or min(seen) == -4


NEVER_BLACK = {"rand-m9-t3a", "original", "original-mstd3", "3a", "3a-mstd3"}
"""Without a posterize operation, or only with the one that keeps four bits and more."""


@pytest.mark.parametrize("policy", POLICIES)
def test_every_other_operation_is_timms_own_at_every_extreme(policy, image, recipe):
    """The expected image is made by an operation that training_transform has not touched."""
    mine = training_transform(recipe(aa=policy), SPEC)
    untouched = create_transform(
        (3, 32, 32),
        is_training=True,
        auto_augment=policy,
        interpolation="bicubic",
        mean=SPEC.mean,
        std=SPEC.std,
        separate=True,
    )
    theirs = next(step for step in untouched[1].transforms if list(operations(step)))
    pairs = list(zip(operations(policy_of(mine)), operations(theirs), strict=True))
    assert len(pairs) >= 3
    for ours, other in pairs:
        assert (ours.name, ours.prob, ours.magnitude) == (other.name, other.prob, other.magnitude)
        for magnitude in MAGNITUDES:
            if "Posterize" in ours.name and kept_bits(ours, magnitude) < 1:
                continue  # what Pillow 13 refuses
            found, expected = (np.asarray(seeded(at(each, magnitude), image)) for each in (ours, other))
            if ours.name.startswith(("Shear", "Translate")):  # computed in another way, which rounds alike
                apart = np.abs(found.astype(int) - expected)
                assert apart.max() <= 1 and (apart > 0).mean() < 0.02, (ours.name, magnitude)
            else:
                assert np.array_equal(found, expected), (ours.name, magnitude)


def seeded(transform, image, seed=0):
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
    return transform(image)


def test_timm_knows_no_operation_that_the_policies_here_leave_out(recipe):
    """Two of timm's operations are in none of its policies: shifts in pixels."""
    drawn = {
        op.name for aa in POLICIES for op in operations(policy_of(training_transform(recipe(aa=aa), SPEC)))
    }
    assert set(auto_augment.NAME_TO_OP) - drawn == {"TranslateX", "TranslateY"}


@pytest.mark.parametrize("policy", POLICIES)
def test_hundreds_of_images_pass_each_policy(policy, image, recipe):
    transform = training_transform(recipe(aa=policy, color_jitter=0.4, reprob=0.25), SPEC)
    for seed in range(200):
        found = finished(transform(image, (seed, 0, 0)), SPEC)
        assert found.shape == (3, 32, 32) and found.dtype == torch.float32 and torch.isfinite(found).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_transform_can_be_sent_to_a_process(policy, image, recipe):
    """Where processes do not begin as copies of this one (macOS, Windows, Python 3.14), it is pickled."""
    here = training_transform(recipe(aa=policy, color_jitter=0.4, reprob=0.25), SPEC)
    there = pickle.loads(pickle.dumps(here))
    one, other = (finished(each(image, (0, 0, 0)), SPEC) for each in (here, there))
    assert torch.equal(one, other)


def test_what_fails_is_named_with_what_was_drawn_and_its_flag(image, recipe, monkeypatch):
    def refuse(*_):
        raise ValueError("threshold must be\n odd")

    monkeypatch.setattr(ImageOps, "solarize", refuse)
    transform = training_transform(recipe(aa="3a"), SPEC)
    with pytest.raises(TransformError) as caught:
        for seed in range(20):
            transform(image, (seed, 0, 0))
    assert str(caught.value) == "Solarize(128): ValueError: threshold must be odd"
    assert caught.value.flags == "--aa"


FAILING = {
    "ResizedCrop": ({}, "--scale"),
    "RandomHorizontalFlip": ({}, "--hflip"),
    "Resize": ({"crop_padding": 2}, "--img-size"),
    "RandomCrop": ({"crop_padding": 2}, "--crop-padding"),
    "ColorJitter": ({"color_jitter": 0.4}, "--color-jitter"),
    "RandAugment": ({"aa": "rand-m9"}, "--aa"),
    "AugMixAugment": ({"aa": "augmix-m3"}, "--aa"),
    "AutoAugment": ({"aa": "v0"}, "--aa"),
    "Erased": ({"reprob": 1.0}, "--reprob"),
}


@pytest.mark.parametrize("step", FAILING)
def test_each_step_is_named_with_the_flag_it_comes_from(step, image, recipe):
    settings, flag = FAILING[step]
    transform = training_transform(recipe(**settings), SPEC)

    def refuse(_):
        raise RuntimeError("not today")

    for place, each in enumerate(transform.transforms):
        if type(each).__name__ == step:
            transform.transforms[place] = type(step, (), {"__call__": lambda self, *image: refuse(image)})()
    with pytest.raises(TransformError, match=f"{step}: RuntimeError: not today") as caught:
        transform(image, (0, 0, 0))
    assert flag in caught.value.flags


def test_three_thousand_images_pass_the_papers_augmentation(recipe, monkeypatch):
    """So many that its policy draws 0 bits for some: 1 image in 700 or so."""
    paper = load("paper", recipe())
    drawn = []

    def counting(image, bits, **unused):
        drawn.append(bits)
        return posterize(image, bits)

    posterize = augment.posterize
    monkeypatch.setattr(augment, "posterize", counting)
    x = np.random.default_rng(1).integers(0, 256, (100, 32, 32, 3), np.uint8)
    for seed in range(3000):
        found = augmented(Image.fromarray(x[seed % 100]), paper, SPEC, (seed, 0, 0))
        assert torch.isfinite(found).all()
    assert 0 < drawn.count(0) < 50 and min(drawn) == 0


@pytest.mark.slow
def test_the_papers_recipe_trains_on_three_thousand_images(tmp_path, made, capfd):
    for split, count in (("train", 3000), ("val", 40)):
        x, y = made(count, size=32)
        np.savez(tmp_path / f"{split}.npz", x=x, y=y, class_names=np.array(["ant", "bee", "cat", "dog"]))
    words = ["--recipe", "paper", "--data", f"npz:{tmp_path}", "--img-size", "32", "--teacher", "none"]
    words += ["--student", "resnet20", "--student-args", "width=0.25", "--batch", "100", "--grad-accum", "1"]
    words += ["--epochs", "1", "--warmup-epochs", "0", "--device", "cpu", "--output", str(tmp_path / "run")]
    assert front_door.main(["train", *words]) == 0
    assert "top-1" in capfd.readouterr().out
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["epoch"] == 1


def test_mending_posterize_leaves_timm_as_it_was(recipe):
    training_transform(recipe(aa="rand-m9-mstd0.5-inc1"), SPEC)
    assert auto_augment.NAME_TO_OP["Posterize"] is auto_augment.posterize
    assert auto_augment.posterize.__module__ == "timm.data.auto_augment"
