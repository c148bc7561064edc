"""`--exif apply`: every road from a file to the network sees the image upright, and says so in its file.

The pixels expected are those that tests/helpers/turned.py has by hand.
"""

import json

import numpy as np
import pytest
import torch
import turned
from augmented import augmented
from PIL import Image

import runtime
from bench import accuracy
from distill import checkpoint
from distill.__main__ import main
from distill.data import eval_loader, open_data
from distill.recipe import Recipe
from export.checks import samples
from export.stages.parity import same_pixels
from runtime import Preprocess
from runtime.images import open_images
from runtime.images.named import image_files


@pytest.fixture
def stored(tmp_path):
    """Sixteen files of two classes, each orientation as PNG and as lossless WebP; upright all are portrait or
    all are landscape.
    """
    for label, kind in (("ant", "png"), ("bee", "webp")):
        for number in range(1, 9):
            folder = tmp_path / ("portrait" if number > 4 else "landscape") / label
            folder.mkdir(parents=True, exist_ok=True)
            content = turned.FILES[kind](turned.STORED, turned.tiff(number))
            (folder / f"{number}.{kind}").write_bytes(content)
    return tmp_path


def roads(images, spec):
    """Name -> pixels (N, 3, H, W) of the whole set."""
    every = np.arange(len(images))
    width_to_height = spec.input_size[2] / spec.input_size[1]
    recipe = Recipe(scale=(1, 1), ratio=(width_to_height, width_to_height), hflip=0)
    (batch,) = eval_loader(images, spec, len(images), 0, torch.device("cpu"))
    return {
        "training": np.stack([augmented(images.image(i), recipe, spec).numpy() for i in every]),
        "validation": batch.images.numpy(),
        "calibration": np.concatenate([each for each, _ in samples.batches(images, every, spec, about="")]),
        "runtime": spec.batch(image_files([images.name])),
        "bench": spec.normalize(np.stack([accuracy._pixels(spec, images, i, False) for i in every])),
        "parity": np.concatenate(list(same_pixels(images, every, spec, spec))),
    }


@pytest.mark.parametrize(("shape", "numbers"), [("landscape", range(1, 5)), ("portrait", range(5, 9))])
def test_every_road_sees_the_pixels_written_by_hand(stored, shape, numbers):
    images = open_images(str(stored / shape), "val")
    by_hand = np.array([turned.UPRIGHT[number] for number in numbers] * 2, np.uint8)
    spec = Preprocess((3, *by_hand.shape[1:3]), crop_pct=1.0, exif="apply")
    for road, pixels in roads(images, spec).items():
        np.testing.assert_array_equal(pixels, spec.normalize(by_hand), err_msg=road)


def test_without_it_every_road_sees_what_is_stored(stored):
    images = open_images(str(stored / "landscape"), "val")
    spec = Preprocess((3, 2, 3), crop_pct=1.0)
    for road, pixels in roads(images, spec).items():
        expected = spec.normalize(np.stack([turned.STORED] * 8))
        np.testing.assert_array_equal(pixels, expected, err_msg=road)


def test_a_data_set_without_files_is_encoded_with_its_orientation(stored):
    """As the sets of torchvision are: what is handed to the runtime is the image encoded anew."""
    images = open_data(f"torch/image_folder:{stored / 'portrait'}", "val")
    spec = Preprocess((3, 3, 2), crop_pct=1.0, exif="apply")
    (pixels,) = same_pixels(images, np.arange(len(images)), spec, spec)
    by_hand = np.array([turned.UPRIGHT[number] for number in range(5, 9)] * 2, np.uint8)
    np.testing.assert_array_equal(pixels, spec.normalize(by_hand))


def photographs(folder):
    """folder/{train,val}/{ant,bee}/*.jpg of 20 x 30 pixels, stored turned every second time."""
    dice = np.random.default_rng(0)
    for split in ("train", "val"):
        for label, color in (("ant", 0), ("bee", 160)):
            (folder / split / label).mkdir(parents=True)
            for number in range(4):
                pixels = (dice.integers(0, 90, (20, 30, 3)) + color).astype(np.uint8)
                exif = turned.tiff(6 if number % 2 else 1)
                (folder / split / label / f"{number}.jpg").write_bytes(turned.jpeg(pixels, exif))
    return folder


def train(*more):
    words = ["--student", "resnet20", "--student-args", "width=0.25", "--img-size", "16", "--batch", "4"]
    end = ["--epochs", "1", "--device", "cpu", "--no-report"]
    return main(["train", *words, *end, *map(str, more)])


@pytest.mark.slow
def test_what_is_trained_with_it_carries_it_into_every_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "photos")
    assert train("--data", "photos", "--teacher", "none", "--exif", "apply", "--output", "teacher") == 0
    said = capsys.readouterr().err
    assert "8 of 16 images are turned or mirrored by their EXIF orientation, which is undone" in said
    assert checkpoint.load("teacher/best.pth").preprocess.exif == "apply"
    assert main(["export", "onnx", "--int8", "teacher", "--output", "a.onnx", "--max-drop", "100"]) == 0
    assert main(["parity", "teacher", "a.onnx", "--data", "photos", "--min-agreement", "0"]) == 0
    with runtime.load("a.onnx") as predictor:
        assert predictor.preprocess.exif == "apply"
        path = "photos/val/ant/1.jpg"
        with Image.open(path) as opened:
            upright = opened.convert("RGB").rotate(-90, expand=True)  # clockwise, by another road
        expected = predictor.classify(np.asarray(upright))
        assert predictor.classify(path) == predictor.classify(Image.open(path)) == expected
    capsys.readouterr()
    assert main(["inspect", "a.onnx"]) == 0
    assert "exif apply" in " ".join(capsys.readouterr().out.split())
    assert (
        train("--data", "photos", "--student-ckpt", "teacher", "--teacher", "none", "--output", "next") == 0
    )
    assert checkpoint.load("next/best.pth").preprocess.exif == "apply"
    capsys.readouterr()
    assert train("--data", "photos", "--teacher-ckpt", "teacher", "--output", "other") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "teacher: was trained on images turned as EXIF says, and these are not: give --exif apply" in said
    assert "which is ignored: give --exif apply" in said
    other = checkpoint.load("other/best.pth")
    assert other.preprocess.exif == "ignore" and "exif" not in other.preprocess.to_dict()
    header = json.loads((tmp_path / "other" / "header.json").read_text())
    assert header["exif"] == "ignore" and header["turned"].startswith("8 of 16 images")


def test_another_word_is_refused_before_anything_is_read(capsys):
    assert main(["train", "--data", "none", "--exif", "rotate"]) == 2
    assert "exif" in capsys.readouterr().err
    with pytest.raises(runtime.UsageError, match="exif 'rotate': expected one of ignore, apply"):
        Preprocess(exif="rotate")


def test_a_file_without_the_field_is_not_turned_and_is_written_as_before():
    old = Preprocess().to_dict()
    assert list(old) == ["input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std"]
    assert Preprocess.from_dict(old).exif == "ignore"
    assert Preprocess.from_dict(Preprocess(exif="apply").to_dict()).exif == "apply"
