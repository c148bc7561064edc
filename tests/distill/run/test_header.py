"""What is said before a training: counts that agree with the folder, and warnings that name a flag."""

import json
import shutil

import numpy as np
import pytest
import turned

from distill.__main__ import main
from distill.recipe import Recipe
from distill.run import header
from distill.training.parts import warmup_of
from runtime.images import ArraySet

pytestmark = pytest.mark.usefixtures("without_report")


def train(data, output, *more):
    words = ["train", "--data", str(data), "--output", str(output), "--student", "resnet20"]
    return main([*words, "--student-args", "width=0.25", "--img-size", "16", "--epochs", "1", *more])


def test_the_header_counts(tree, tmp_path, capsys):
    data = tree(names=("ant", "bee"))
    images = len(list((data / "train").rglob("*.png")))
    assert train(data, tmp_path / "run", "--batch", "3") == 0
    said = capsys.readouterr().err
    header = json.loads((tmp_path / "run" / "header.json").read_text())
    assert header["train_images"] == images and header["steps_per_epoch"] == images // 3
    assert header["left_over"] == images % 3 and header["classes"] == 2
    assert "teacher  none, because neither --teacher nor --teacher-ckpt is given" in said
    assert all(
        len(line) <= 100 for line in said.splitlines() if line.startswith(("data ", "run ", "student "))
    )


def test_few_steps_and_copies_are_warned_of(tree, tmp_path, capsys):
    data = tree(names=("ant", "bee"))
    one = next((data / "train" / "ant").iterdir())
    shutil.copy(one, data / "val" / "ant" / "copy.png")
    assert train(data, tmp_path / "run", "--batch", "8") == 0
    said = capsys.readouterr().err
    assert "warning: only" in said and "smaller --batch" in said
    assert "validation images are training images as well" in said


@pytest.mark.parametrize(
    ("epochs", "asked", "expected"), [(3, None, 0.6), (100, None, 5), (3, 2.0, 2.0), (10, None, 2)]
)
def test_the_warm_up_is_at_most_a_fifth_unless_it_is_asked_for(epochs, asked, expected):
    assert warmup_of(Recipe(epochs=epochs, warmup_epochs=asked)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("WORLD_SIZE", "auto"),
        ("WORLD_SIZE", "2"),
        ("SLURM_STEP_NUM_TASKS", "2"),
        ("OMPI_COMM_WORLD_SIZE", "4"),
        ("PMI_SIZE", "2"),
    ],
)
def test_one_of_several_processes_is_one_line(tree, tmp_path, capsys, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    assert train(tree(names=("ant", "bee")), tmp_path / "run") == 2
    assert f"({variable}={value})" in capsys.readouterr().err


def lopsided(tree, folder="lopsided"):
    """38 ants and 2 bees to train on, 95 to 5; 19 and 1 to validate."""
    data = tree(per_class=38, names=("ant", "bee"), folder=folder)
    for split, ants, bees in (("train", 38, 2), ("val", 19, 1)):
        for name, count in (("ant", ants), ("bee", bees)):
            for extra in sorted((data / split / name).iterdir())[count:]:
                extra.unlink()
    return data


def test_imbalance_is_warned_of_and_both_remedies_are_named(tree, tmp_path, capsys):
    data = lopsided(tree)
    assert train(data, tmp_path / "run", "--batch", "8", "--epochs", "2") == 0
    err = capsys.readouterr().err
    (warning,) = [line for line in err.splitlines() if "times the images of the smallest" in line]
    assert "19.0 times" in warning
    assert all(f"{flag} balanced" in warning for flag in ("--sampler", "--class-weights", "--select"))
    epochs = [line for line in err.splitlines() if line.startswith("plain: epoch") and "top-1" in line]
    assert len(epochs) == 2 and all("  balanced " in line for line in epochs)


def test_what_makes_up_for_imbalance_is_said_and_ends_the_warning(tree, tmp_path, capsys):
    data = lopsided(tree)
    words = ["--batch", "8", "--sampler", "balanced", "--select", "balanced"]
    assert train(data, tmp_path / "sampled", *words) == 0
    err = capsys.readouterr().err
    assert "sampler  balanced: 40 images an epoch, about 20 of each class" in err
    assert "times the images of the smallest" not in err
    words = ["--batch", "8", "--class-weights", "balanced", "--select", "balanced"]
    assert train(data, tmp_path / "weighted", *words) == 0
    err = capsys.readouterr().err
    assert "weights  of the labels' loss: 0.526 (ant) to 10 (bee)" in err  # 40 / (2 * 38), 40 / (2 * 2)
    assert "times the images of the smallest" not in err
    header = json.loads((tmp_path / "weighted" / "header.json").read_text())
    assert header["class_weights"] == [["ant", pytest.approx(40 / 76)], ["bee", 10.0]]
    assert train(data, tmp_path / "both", *words, "--sampler", "balanced") == 0
    assert "both make up for rare classes" in capsys.readouterr().err


def test_weights_are_said_of_classes_that_have_images():
    """Half of the images are ants, a quarter bees and cats each, and no dog: 16 / (3 * 8), 16 / (3 * 4)."""
    labels = np.repeat([0, 1, 2], [8, 4, 4])
    images = ArraySet("set", np.zeros((16, 2, 2, 3), np.uint8), labels, ["ant", "bee", "cat", "dog"])
    (low, least), (_, most) = header._range_of_weights(Recipe(class_weights=("balanced",)), images)
    assert (low, least, most) == ("ant", pytest.approx(2 / 3), pytest.approx(4 / 3))


def test_layer_decay_says_its_groups_and_rates(tree, tmp_path, capsys):
    data = tree(names=("ant", "bee"))
    words = ["--batch", "4", "--layer-decay", "0.5", "--lr", "0.01"]
    assert train(data, tmp_path / "run", *words) == 0
    found = json.loads((tmp_path / "run" / "header.json").read_text())["layers"]
    assert found["largest"] == pytest.approx(0.01)
    assert found["smallest"] == pytest.approx(0.01 * 0.5 ** (found["groups"] - 1))
    said = f"layer decay 0.5: {found['groups']} groups of layers, peak rates {found['smallest']:.3g} to 0.01"
    assert found["groups"] > 2 and said in capsys.readouterr().err


def test_turned_images_are_counted_and_the_flag_is_named(tree, tmp_path, capsys):
    data = tree(names=("ant", "bee"))
    exif = turned.tiff(8)
    for split, label in (("train", "ant"), ("val", "bee")):
        pixels = np.zeros((16, 16, 3), np.uint8)
        (data / split / label / "turned.jpg").write_bytes(turned.jpeg(pixels, exif))
    images = len([*data.rglob("*.png"), *data.rglob("*.jpg")])
    words = f"2 of {images} images are turned or mirrored by their EXIF orientation"
    assert train(data, tmp_path / "run", "--batch", "3") == 0
    assert f"warning: {words}, which is ignored: give --exif apply" in capsys.readouterr().err
    assert train(data, tmp_path / "other", "--batch", "3", "--exif", "apply") == 0
    said = capsys.readouterr().err
    assert f"{words}, which is undone" in said and "--exif" not in said


def test_of_very_many_images_some_are_looked_at(tree, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(header, "MOST_OPENED", 5)
    data = tree(per_class=8, names=("ant", "bee"))
    for file in data.rglob("*.png"):
        file.write_bytes(turned.png(np.zeros((16, 16, 3), np.uint8), turned.tiff(3)))
    assert train(data, tmp_path / "run", "--batch", "3") == 0
    words = "6 of 6 images looked at (of 32) are turned or mirrored"  # numbers 0, 7 and 14 of each 16
    assert words in capsys.readouterr().err
