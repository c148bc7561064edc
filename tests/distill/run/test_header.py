"""What is said before a training: counts that agree with the folder, and warnings that name a flag."""

import json
import shutil

import pytest

from distill.__main__ import main
from distill.recipe import Recipe
from distill.training.parts import warmup_of


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


@pytest.mark.parametrize("value", ["auto", "2"])
def test_one_of_several_processes_is_one_line(tree, tmp_path, capsys, monkeypatch, value):
    monkeypatch.setenv("WORLD_SIZE", value)
    assert train(tree(names=("ant", "bee")), tmp_path / "run") == 2
    assert f"WORLD_SIZE={value}" in capsys.readouterr().err
