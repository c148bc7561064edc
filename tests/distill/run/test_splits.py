"""Validation images set apart from one set, kept in the run folder, and found again from a checkpoint."""

import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from runtime import DataError, UsageError
from runtime.cli import front_door
from runtime.images import ArraySet, open_images, split

pytestmark = pytest.mark.usefixtures("without_report")

TRAIN = ["train", "--student", "resnet20", "--student-args", "width=0.25", "--teacher", "none"]
TRAIN += ["--img-size", "16", "--batch", "8", "--epochs", "1", "--warmup-epochs", "0", "--device", "cpu"]


@pytest.fixture
def flat(tmp_path, monkeypatch):
    """Three classes in one folder, with one photograph twice in a class; the current folder is above it."""
    chance = np.random.default_rng(0)
    for name, count in (("ant", 8), ("bee", 6), ("cow", 7)):
        (tmp_path / "flat" / name).mkdir(parents=True)
        for number in range(count):
            pixels = chance.integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "flat" / name / f"{number}.png")
    shutil.copy(tmp_path / "flat" / "ant" / "0.png", tmp_path / "flat" / "ant" / "again.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "flat"


def run(*words):
    return front_door.main([str(word) for word in words])


def test_a_flat_folder_without_the_flag_names_it(flat, capsys):
    assert run(*TRAIN, "--data", "flat", "--output", "r") == 2
    assert "--val-split 0.2" in capsys.readouterr().err
    assert not (flat.parent / "r").exists()


def test_the_split_is_kept_and_found_by_eval_and_by_a_resume_of_moved_data(flat, capsys):
    assert run(*TRAIN, "--data", "flat", "--val-split", "0.25", "--output", "r") == 0
    kept = flat.parent / "r" / "val-split.csv"
    before = [(row.place, row.split) for row in split_rows(kept)]
    assert run("eval", "r/best.pth") == 0
    val = sum(where == "val" for _, where in before)
    assert f"n={val} val images" in capsys.readouterr().out
    flat.rename(flat.parent / "moved")
    assert run("train", "--resume", "r", "--data", "moved") == 0
    assert [(row.place, row.split) for row in split_rows(kept)] == before
    assert "/moved/ant/" in kept.read_text()
    assert yaml.safe_load((flat.parent / "r" / "args.yaml").read_text())["data"] == str(flat.parent / "moved")
    capsys.readouterr()
    Image.new("RGB", (16, 16)).save(flat.parent / "moved" / "ant" / "more.png")
    assert run("train", "--resume", "r", "--data", "moved") == 2
    assert "made for other images" in capsys.readouterr().err


def split_rows(path):
    from runtime.images.lists import read

    return read(str(path))


def test_images_of_equal_content_stay_together_and_every_class_is_on_both_sides(flat):
    images = open_images(str(flat), "train")
    sides = set()
    for seed in range(10):
        is_val = split.choose(images, 0.2, seed)
        by_name = {images.place(i): bool(is_val[i]) for i in range(len(images))}
        assert by_name["ant/0.png"] == by_name["ant/again.png"]
        sides.add(by_name["ant/0.png"])
        assert set(images.labels[is_val]) == set(images.labels[~is_val]) == {0, 1, 2}
        np.testing.assert_array_equal(is_val, split.choose(images, 0.2, seed))
    assert sides == {True, False}


def test_a_class_with_one_image_cannot_be_split():
    images = ArraySet("x", np.arange(3 * 12, dtype=np.uint8).reshape(3, 2, 2, 3), np.array([0, 0, 1]), "ab")
    with pytest.raises(DataError, match="class 'b' has 1 of different content"):
        split.choose(images, 0.2, 0)


def test_an_image_in_two_classes_cannot_be_split():
    images = ArraySet("x", np.zeros((4, 2, 2, 3), np.uint8), np.array([0, 0, 1, 1]), "ab")
    with pytest.raises(DataError, match="in more than one class"):
        split.choose(images, 0.2, 0)


def test_the_flag_is_refused_where_there_are_validation_images(tree):
    from distill.run.options import TrainOptions
    from distill.run.splits import open_splits

    with pytest.raises(UsageError, match="holds validation images"):
        open_splits(TrainOptions(data=str(tree()), val_split=0.2))


def test_an_npz_file_keeps_its_order_of_classes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), np.uint8)
    np.savez("a.npz", x=x, y=np.arange(24) % 3, class_names=np.array(["z", "b", "10"]))
    assert run(*TRAIN, "--data", "npz:a.npz", "--val-split", "0.25", "--output", "r") == 0
    train, val = (open_images("r/val-split.csv", name) for name in ("train", "val"))
    assert train.class_names == val.class_names == ["z", "b", "10"]
    assert len(train) + len(val) == 24
    ours, theirs = ({images.item_sha256(i) for i in range(len(images))} for images in (train, val))
    assert not ours & theirs


def test_a_moved_teacher_of_the_same_content_resumes_and_another_one_does_not(flat, capsys):
    assert run(*TRAIN, "--data", "flat", "--val-split", "0.25", "--output", "t") == 0
    shutil.copy("t/best.pth", "teacher.pth")
    words = [word for word in TRAIN if word not in ("--teacher", "none")]
    given = ("--data", "flat", "--val-split", "0.25", "--teacher-ckpt", "teacher.pth", "--output", "r")
    assert run(*words, *given) == 0
    shutil.move("teacher.pth", "elsewhere.pth")
    assert run("train", "--resume", "r", "--teacher-ckpt", "elsewhere.pth") == 0
    assert run("train", "--resume", "r", "--teacher-ckpt", "r/best.pth") == 2
