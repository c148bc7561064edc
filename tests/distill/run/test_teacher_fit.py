"""A teacher of other classes: its head is fitted to the data, kept, and used again by a resumed run."""

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from distill import checkpoint as checkpoints
from distill import models
from distill.__main__ import main
from distill.recipe import Recipe
from distill.run import teacher_fit
from distill.run.teacher_fit import Features
from runtime.images import ArraySet


def blobs(classes=3, each=40, seed=0):
    """Points around one center per class, (N, 5), of very different scales."""
    draw = np.random.default_rng(seed)
    centers = draw.normal(size=(classes, 5)) * 1.5
    x = np.concatenate([center + draw.normal(size=(each, 5)) for center in centers]) * [1, 10, 100, 1, 0.01]
    return x.astype(np.float32), np.repeat(np.arange(classes), each)


def test_the_fit_is_that_of_scikit_learn():
    x, y = blobs()
    weight, bias, decay, _ = teacher_fit.logistic_regression(
        Features(torch.from_numpy(x), torch.from_numpy(y), torch.arange(len(y))), 3
    )
    scaled = (x - x.mean(0)) / x.std(0, ddof=1)
    theirs = LogisticRegression(C=1 / (decay * len(y)), max_iter=10_000, tol=1e-8).fit(scaled, y)
    ours = torch.softmax(torch.from_numpy(x) @ weight.T + bias, 1).numpy()
    assert np.abs(ours - theirs.predict_proba(scaled)).max() < 5e-3


def test_an_image_and_its_mirror_image_are_held_out_together():
    labels = torch.tensor([0] * 10 + [1] * 10).repeat(2)
    images = torch.arange(20).repeat(2)
    held = teacher_fit._every_fifth_of_a_class(Features(torch.zeros(40, 1), labels, images))
    assert held[:20].equal(held[20:]) and held[:20].nonzero()[:, 0].tolist() == [4, 9, 14, 19]


def test_of_too_many_images_some_of_every_class_are_drawn(monkeypatch):
    """Sorted by class, as folders are: the first ones alone would leave classes out."""
    images = ArraySet("set", np.zeros((400, 2, 2, 3), np.uint8), np.repeat(np.arange(4), 100), list("abcd"))
    layers, recipe = {"fc": torch.nn.Linear(10, 4)}, Recipe(hflip=0.5)
    assert teacher_fit.as_many_as_fit(images, layers, recipe) is images
    monkeypatch.setattr(teacher_fit, "MOST_VALUES", 2 * 10 * 100)  # a quarter of them, mirrored as well
    drawn = teacher_fit.as_many_as_fit(images, layers, recipe)
    assert len(drawn) == 100 and np.bincount(drawn.labels, minlength=4).min() > 10
    assert drawn.labels.tolist() == teacher_fit.as_many_as_fit(images, layers, recipe).labels.tolist()


@pytest.fixture
def thousand(tmp_path):
    """A teacher of seven classes that no data here has."""
    torch.manual_seed(0)
    torch.save(models.build("resnet20", 7, {"width": 0.5}).state_dict(), tmp_path / "seven.pth")
    return str(tmp_path / "seven.pth")


def words(data, teacher, output, *more):
    return [
        *("train", "--data", str(data), "--student", "resnet20", "--student-args", "width=0.25"),
        *("--img-size", "16", "--batch", "8", "--epochs", "1", "--warmup-epochs", "0", "--device", "cpu"),
        *("--teacher", "resnet20", "--teacher-args", "width=0.5", "--teacher-ckpt", teacher),
        *("--output", str(output), *more),
    ]


def test_a_head_is_fitted_kept_and_used_again(tree, thousand, tmp_path, capsys):
    data = tree(names=("ant", "bee", "cat"))
    assert main(words(data, thousand, tmp_path / "run")) == 0
    said = capsys.readouterr().err
    assert "classifier linear: 7 classes -> new, 3 classes" in said and "classifier fitted to" in said
    kept = checkpoints.load(tmp_path / "run" / "teacher" / "best.pth")
    assert kept.class_names == ["ant", "bee", "cat"] and kept.role == "teacher"
    assert kept.state_dict["conv1.weight"].equal(torch.load(thousand, weights_only=True)["conv1.weight"])
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert "classifier fitted" in result["teacher"]["fitted"]
    assert result["teacher"]["top1_percent"] > 60  # the classes are plain colors; chance is 33
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert "fitted before" in capsys.readouterr().err
    assert main(["eval", str(tmp_path / "run" / "teacher"), "--data", str(data)]) == 0


def test_all_of_it_is_a_run_of_its_own(tree, thousand, tmp_path, capsys):
    data = tree(names=("ant", "bee"))
    more = ("--teacher-fit", "all", "--teacher-fit-epochs", "2", "--teacher-fit-lr", "0.001")
    assert main(words(data, thousand, tmp_path / "run", *more)) == 0
    assert len((tmp_path / "run" / "teacher" / "metrics.jsonl").read_text().splitlines()) == 2
    changed = checkpoints.load(tmp_path / "run" / "teacher" / "best.pth").state_dict["conv1.weight"]
    assert not changed.equal(torch.load(thousand, weights_only=True)["conv1.weight"])
    assert (
        "all of it fitted in 2 epochs"
        in json.loads((tmp_path / "run/result.json").read_text())["teacher"]["fitted"]
    )
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize("fit", ["head", "all"])
def test_erf_measures_the_fitted_teacher(tree, thousand, tmp_path, fit):
    run, alone = tmp_path / "run", tmp_path / "alone"
    more = ("--teacher-fit", fit, "--teacher-fit-epochs", "1", "--teacher-fit-lr", "0.01", "--no-report")
    data = tree(names=("ant", "bee"))
    assert main(words(data, thousand, run, *more, "--erf")) == 0
    assert main(["erf", str(run / "teacher"), "--data", str(data), "--output", str(alone)]) == 0
    found, expected = (np.load(folder / "erf.npz") for folder in (run / "erf", alone))
    assert found.files == ["teacher", "student"]
    assert np.array_equal(found["teacher"], expected[expected.files[0]])
    named = json.loads((run / "result.json").read_text())["erf"][0]["file"]
    assert named == str(run / "teacher" / "best.pth")


def test_nothing_is_fitted_where_the_user_says_so(tree, thousand, tmp_path, capsys):
    data = tree(names=("ant", "bee"))
    assert main(words(data, thousand, tmp_path / "run", "--teacher-fit", "none")) == 4
    assert "7 classes -> new, 2 classes, and --teacher-fit is none" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_teacher_with_nan_is_named_as_such(tree, tmp_path, capsys):
    data = tree(names=("ant", "bee"))
    weights = models.build("resnet20", 2, {"width": 0.5}).state_dict()
    weights["layer1.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    torch.save(weights, tmp_path / "nan.pth")
    assert main(words(data, str(tmp_path / "nan.pth"), tmp_path / "run")) == 4
    said = capsys.readouterr().err
    assert "teacher" in said and "layer1.0.conv1.weight holds NaN" in said and not (tmp_path / "run").exists()
