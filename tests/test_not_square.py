"""Images that are not square, 32 x 64 pixels, from training to a class: by every command, on ConvNets.

Pixels and classes expected are worked out with Pillow and numpy here.
"""

import json
import math

import numpy as np
import pytest
import torch
from augmented import augmented
from PIL import Image

import runtime
from distill import checkpoint, models
from distill.__main__ import main
from distill.recipe import Recipe
from distill.training.parts import open_start
from export.commands import train_qat
from runtime import Preprocess, UsageError
from runtime.images import open_images

pytestmark = pytest.mark.usefixtures("exports_once")

HEIGHT, WIDTH = 32, 64
SIZE = ["--input-size", str(HEIGHT), str(WIDTH)]
NETWORKS = {
    "resnet18": {},
    "resnet20": {"width": 0.25},
    "slak_tiny": {"dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "kernel_sizes": [13, 11, 9, 5]},
    "replknet_31b": {"channels": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "kernel_sizes": [13, 11, 9, 5]},
    "unireplknet_a": {"dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
}


def by_hand(image: Image.Image, spec: Preprocess) -> np.ndarray:
    """center, with sides that differ: the smaller ratio of the two sides fits, the middle is cut out."""
    target_h, target_w = math.floor(HEIGHT / spec.crop_pct), math.floor(WIDTH / spec.crop_pct)
    ratio = min(image.height / target_h, image.width / target_w)
    size = round(image.width / ratio), round(image.height / ratio)
    resized = np.asarray(image.resize(size, getattr(Image.Resampling, spec.interpolation.upper())))
    top, left = round((size[1] - HEIGHT) / 2), round((size[0] - WIDTH) / 2)
    pixels = resized[top : top + HEIGHT, left : left + WIDTH].astype(np.float32) / np.float32(255)
    return ((pixels - np.float32(spec.mean)) / np.float32(spec.std)).transpose(2, 0, 1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """photos/{train,val}/{left,right}/*.png of several shapes: the brighter half is the class."""
    folder = tmp_path_factory.mktemp("photos")
    dice = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 8)):
        for number in range(count):
            label = ("left", "right")[number % 2]
            height, width = ((40, 80), (64, 120), (50, 130), (100, 90))[number // 2 % 4]
            pixels = dice.integers(0, 100, (height, width, 3))
            half = slice(0, width // 2) if label == "left" else slice(width // 2, width)
            pixels[:, half] += 120
            place = folder / split / label
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")
    return folder


def write_checkpoint(path, name, photos):
    """Untrained, with statistics of batch norms that its own images gave."""
    torch.manual_seed(0)
    network = models.build(name, 2, NETWORKS[name])
    spec = Preprocess((3, HEIGHT, WIDTH), "bilinear", 0.875)
    images = open_images(str(photos), "train")
    batch = torch.from_numpy(spec.batch(images.image(i) for i in range(len(images))))
    network.train()
    for _ in range(20):
        network(batch)
    data = {"train_spec": str(photos), "val_spec": str(photos)}
    found = checkpoint.Checkpoint(
        name, NETWORKS[name], network.state_dict(), spec, ["left", "right"], lineage={"data": data}
    )
    checkpoint.save(found, path)
    return network.eval(), spec


def run(capsys, *words):
    """stdout of a command that must succeed; the last JSON object of it where --json is given."""
    capsys.readouterr()
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out) if "--json" in words else out


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.slow
def test_every_network_is_exported_and_gives_its_own_logits(name, photos, tmp_path, capsys):
    network, spec = write_checkpoint(tmp_path / "best.pth", name, photos)
    run(capsys, "export", "onnx", tmp_path / "best.pth", "--output", tmp_path / "a.onnx")
    images = open_images(str(photos), "val")
    pixels = np.stack([by_hand(images.image(i), spec) for i in range(len(images))])
    with torch.inference_mode():
        expected = network(torch.from_numpy(pixels)).numpy()
    with runtime.load(tmp_path / "a.onnx") as predictor:
        assert tuple(predictor.input_shape[1:]) == (3, HEIGHT, WIDTH)
        np.testing.assert_array_equal(spec.batch(images.image(i) for i in range(len(images))), pixels)
        np.testing.assert_allclose(predictor.logits(pixels), expected, atol=1e-3 * np.abs(expected).max())
        guesses = [guess[0].index for guess in predictor.classify([images.item_name(i) for i in range(8)])]
    assert guesses == expected.argmax(1).tolist()


@pytest.mark.slow
def test_every_command_takes_the_size_of_the_run(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny = ["--student", "resnet20", "--student-args", "width=0.5", "--batch", "8", "--device", "cpu"]
    train = ["train", "--data", photos, *tiny, "--lr", "0.01", "--epochs", "3", "--no-report", "--erf"]
    teacher = [*train, "--teacher", "none", "--input-size", "48", "48", "--output", "teacher"]
    run(capsys, *teacher)
    student = ["--teacher-ckpt", "teacher", "--feature-loss", "fitnets", "--control", "--output", "run"]
    run(capsys, *train, *SIZE, "--hflip", "0", *student)
    assert checkpoint.load("run/best.pth").preprocess.input_size == (3, HEIGHT, WIDTH)
    erf = json.loads((tmp_path / "run" / "erf" / "erf.json").read_text())
    assert [each["input_size"] for each in erf["networks"]][-1] == [HEIGHT, WIDTH]
    found = run(capsys, "eval", "run", "--json")
    for flags, name in (([], "fp32"), (["--int8"], "int8"), (["--fp16"], "fp16")):
        file = f"{name}.onnx"
        lax = ["--max-drop", "100"] if flags else []
        run(capsys, "export", "onnx", *flags, *lax, "run", "--output", file)
        run(capsys, "parity", "run", file, "--min-agreement", "50")
        measured = run(capsys, "bench", "accuracy", "--engine", file, "--data", photos, "--json")
        assert measured["n"] == 8
        if name == "fp32":
            assert measured["top1_percent"] == found["top1_percent"]
        timed = run(capsys, "bench", "latency", "--engine", file, "--iterations", "5", "--json")
        assert "1x3x32x64" in json.dumps(timed)
    table = ["int8.onnx", "--teacher", "fp32.onnx", "--data", photos, "--iterations", "5"]
    assert "int8" in run(capsys, "bench", "table", *table)
    lines = run(capsys, "predict", "fp32.onnx", photos / "val", "--csv", "--top", "1").splitlines()[1:]
    right = sum(f"/{line.split(',')[2]}/" in line for line in lines)
    assert (len(lines), 100 * right / 8) == (8, found["top1_percent"])
    run(capsys, "export", "triton", "fp32.onnx", "--repository", "models")
    config = next((tmp_path / "models").rglob("config.pbtxt")).read_text()
    assert "dims: [ 3, 32, 64 ]" in config or "dims: [3, 32, 64]" in config
    assert "3 x 32 x 64" in run(capsys, "inspect", "fp32.onnx")


@pytest.mark.slow
def test_weights_that_say_no_size_take_it_from_the_flag(photos, tmp_path, capsys):
    network, _ = write_checkpoint(tmp_path / "best.pth", "resnet20", photos)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    foreign = ["--model", "resnet20", "--model-args", "width=0.25", "--data", photos, *SIZE]
    file = tmp_path / "a.onnx"
    run(capsys, "export", "onnx", tmp_path / "weights.pth", *foreign, "--output", file)
    run(capsys, "parity", tmp_path / "weights.pth", file, *foreign)
    found = run(capsys, "eval", tmp_path / "weights.pth", *foreign, "--json")
    measured = run(capsys, "bench", "accuracy", "--engine", file, "--data", photos, "--json")
    assert found["top1_percent"] == measured["top1_percent"]
    with runtime.load(file) as predictor:
        assert tuple(predictor.input_shape[1:]) == (3, HEIGHT, WIDTH)
    erf = tmp_path / "erf"
    run(
        capsys, "erf", tmp_path / "best.pth", "--input-size", "64", "48", "--output", erf, "--num-images", "2"
    )
    (field,) = json.loads((erf / "erf.json").read_text())["networks"]
    assert field["input_size"] == [64, 48]


@pytest.mark.parametrize(
    ("words", "size"),
    [([], (HEIGHT, WIDTH)), (["--input-size", "24", "40"], (24, 40)), (["--img-size", "24"], (24, 24))],
)
def test_quantization_aware_training_keeps_the_size_unless_it_is_told(photos, tmp_path, words, size):
    write_checkpoint(tmp_path / "best.pth", "resnet20", photos)
    options = train_qat.parse(["--resume", str(tmp_path / "best.pth"), *words])
    assert open_start(options).preprocess.input_size == (3, *size)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("shape", [(40, 80), (100, 90), (20, 300), (300, 20)])
def test_the_rule_of_each_crop_mode_by_hand(crop_mode, shape):
    """Resized by Pillow, put on a canvas and cut out by numpy."""
    height, width = shape
    target_h, target_w = 36, 73  # floor(32 / 0.875), floor(64 / 0.875)
    scale = {
        "center": max(target_h / height, target_w / width),
        "border": min(target_h / height, target_w / width),
    }
    size = (target_w, target_h)
    if crop_mode != "squash":
        size = round(width * scale[crop_mode]), round(height * scale[crop_mode])
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8))
    spec = Preprocess((3, HEIGHT, WIDTH), "bicubic", 0.875, crop_mode, mean=(0.2, 0.4, 0.6))
    resized = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    canvas = np.zeros((max(HEIGHT, size[1]), max(WIDTH, size[0]), 3), np.uint8)
    if crop_mode == "border":
        canvas[:] = (51, 102, 153)  # 255 times the mean
    top, left = (max(0, HEIGHT - size[1]) // 2, max(0, WIDTH - size[0]) // 2)
    canvas[top : top + size[1], left : left + size[0]] = resized
    top, left = round((canvas.shape[0] - HEIGHT) / 2), round((canvas.shape[1] - WIDTH) / 2)
    np.testing.assert_array_equal(spec.pixels(image), canvas[top : top + HEIGHT, left : left + WIDTH])


def test_training_gives_the_same_size_with_every_kind_of_crop():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8))
    spec = Preprocess((3, HEIGHT, WIDTH))
    for settings in ({}, {"crop_padding": 4}, {"aa": "rand-m9-mstd0.5-inc1", "reprob": 1.0}):
        assert augmented(image, Recipe(**settings), spec).shape == (3, HEIGHT, WIDTH)


def test_two_sizes_and_half_a_size_are_refused():
    spec = Preprocess()
    with pytest.raises(UsageError, match="--img-size 64 and --input-size 32 64: two sizes"):
        models.sized(spec, 64, (32, 64))
    for wrong in ((32,), (32, 64, 3), (0, 64)):
        with pytest.raises(UsageError, match="expected height and width"):
            models.sized(spec, None, wrong)
    assert models.sized(spec, None, (32, 64)).input_size == (3, 32, 64)
    assert models.sized(spec, 0, ()).input_size == models.sized(spec, None, ()).input_size == (3, 224, 224)
    assert models.sized(spec, 48, ()).input_size == (3, 48, 48)


def test_a_network_built_for_one_size_is_built_for_this_one():
    assert models.size_argument("vit_tiny_patch16_224", (32, 64)) == {"img_size": [32, 64]}
    assert models.size_argument("vit_tiny_patch16_224", (32, 32)) == {"img_size": 32}
    assert models.size_argument("resnet18", (32, 64)) == {}
