"""Runs that begin with weights from a hub or a file: read once, kept, resumed without a network, and never
followed out of a file.
"""

import collections
import json
import shutil

import pytest
import torch
import yaml

from distill import checkpoint as checkpoints
from distill import models
from distill.__main__ import main

SMALL = [
    "--img-size",
    "32",
    "--batch",
    "4",
    "--epochs",
    "1",
    "--device",
    "cpu",
    "--workers",
    "0",
    "--no-report",
]


@pytest.fixture
def train(tree, tmp_path, capsys):
    """train(*flags, names=...) -> (exit code, stderr) of a tiny training into RUN = tmp_path / "run"."""

    def call(*flags, names=("ant", "bee"), output="run"):
        data = tmp_path / "-".join(names)
        if not data.exists():
            tree(names=names, folder=data.name, size=32)
        capsys.readouterr()
        code = main(["train", "--data", str(data), *SMALL, "--output", str(tmp_path / output), *flags])
        return code, capsys.readouterr().err

    return call


def gone(hub, tmp_path):
    """The hub has nothing any more, and nothing was downloaded before."""
    hub.files.clear()
    hub.asked.clear()
    shutil.rmtree(tmp_path / "hub")


def test_a_student_of_the_hub_trains_resumes_and_is_used_without_it(mine, train, tmp_path, capsys):
    code, said = train("--student", "hf-hub:me/mine", "--freeze", "stem")
    run = tmp_path / "run"
    assert code == 0
    assert f"downloading hf-hub:me/mine, 1.5 MB, from {mine.host}\n" in said
    assert "classifier fc: 3 classes -> new, 2 classes" in said
    best = checkpoints.load(run / "best.pth")
    published = torch.load(run.parent / "run" / "start.pth", weights_only=True)["state_dict"]
    assert best.state_dict["conv1.0.weight"].equal(published["conv1.0.weight"])  # frozen: as it was published
    assert best.model == "test_resnet" and best.lineage["recipe"]["student"] == "hf-hub:me/mine"
    assert best.preprocess.mean == (0.5, 0.4, 0.3) and best.preprocess.input_size == (3, 32, 32)
    assert yaml.safe_load((run / "args.yaml").read_text())["student"] == "hf-hub:me/mine"
    first = checkpoints.load(run / "last.pth").state_dict
    gone(mine, tmp_path)
    assert main(["eval", str(run)]) == 0
    assert main(["train", "--resume", str(run), "--no-report"]) == 0
    for name in ("last.pth", "best.pth", "metrics.jsonl"):  # as stopped before anything was saved
        (run / name).unlink()
    assert main(["train", "--resume", str(run), "--no-report"]) == 0
    again = checkpoints.load(run / "last.pth").state_dict
    assert all(value.equal(again[key]) for key, value in first.items())
    assert mine.asked == []


@pytest.mark.parametrize("names", [("ant", "bee"), ("ant", "bee", "cow")])
@pytest.mark.parametrize("fit", ["head", "all"])
def test_a_teacher_of_the_hub_is_kept(mine, train, tmp_path, fit, names):
    flags = ("--teacher", "hf_hub:me/mine", "--teacher-fit", fit, "--teacher-fit-epochs", "1")
    student = ("--student", "resnet20", "--student-args", "width=0.25", "--control", "--erf")
    code, said = train(*flags, *student, names=names)
    assert code == 0, said
    measured = json.loads((tmp_path / "run" / "result.json").read_text())["erf"]
    assert [each["label"] for each in measured] == ["teacher", "control", "student"]
    assert ("classifier fc: 3 classes -> new, 2 classes" in said) == (len(names) == 2)
    assert (
        "kept; its 3 classes are taken to be in the order of the data's" in said
    ) == (len(names) == 3)  # fmt: skip
    lineage = checkpoints.load(tmp_path / "run" / "best.pth").lineage
    assert lineage["teacher"]["published"] == "hf-hub:me/mine" and lineage["teacher"]["file"] is None
    assert lineage["teacher"]["preprocess"]["input_size"] == [3, 96, 80]
    gone(mine, tmp_path)
    (tmp_path / "run" / "control" / "last.pth").unlink()
    (tmp_path / "run" / "control" / "metrics.jsonl").unlink()
    assert main(["train", "--resume", str(tmp_path / "run"), "--no-report"]) == 0
    assert mine.asked == []


def test_classes_are_compared_before_weights_are_fetched(mine, train, tmp_path):
    code, said = train("--teacher", "hf-hub:me/mine", "--teacher-fit", "none", "--student", "resnet20")
    assert code == 2 and "its published weights know 3 classes, the data has 2" in said
    code, said = train("--teacher", "resnet18.a1_in1k", "--teacher-fit", "none", "--student", "resnet20")
    assert code == 2 and "its published weights know 1000 classes, the data has 2" in said
    assert not [each for each in mine.asked if "pytorch_model" in each or "resnet18" in each]
    assert not (tmp_path / "run").exists()


def test_without_a_hub_nothing_is_left_behind(hub, train, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for flags, way_out in (
        (("--student", "resnet18.a1_in1k"), "--student-ckpt FILE"),
        (("--student", "timm/resnet18", "--pretrained"), "--student-ckpt FILE"),
        (("--student", "resnet20", "--teacher", "resnet18.a1_in1k"), "--teacher-ckpt FILE"),
        (("--student", "resnet20", "--teacher", "hf-hub:me/mine"), "--teacher-ckpt FILE"),
    ):
        code, said = train(*flags)
        assert code == 3
        line = said.splitlines()[-1]
        assert "(HF_HUB_OFFLINE is set)" in line and way_out in line
        assert sum("error" in each for each in said.splitlines()) == 1
        assert not (tmp_path / "run").exists()


NAMES = ["hf-hub:me/mine", "hf_hub:me/mine", "local-dir:mine", "me/mine", "HF-HUB:me/mine"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["student", "teacher"])
def test_a_recipe_names_no_hub_and_no_folder(mine, train, tmp_path, key, name):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump({"student": "resnet20", "teacher": "none"} | {key: name}))
    code, said = train("--recipe", str(recipe))
    assert code == 2 and f"r.yaml: names {name!r} as its network" in said
    assert mine.asked == [] and not (tmp_path / "run").exists()
    if key == "student":
        assert train("--recipe", str(recipe), "--student", "resnet20", "--student-args", "width=0.25")[0] == 0


@pytest.mark.parametrize("key", ["student", "teacher"])
def test_a_run_folder_names_nothing_that_it_does_not_hold(mine, train, tmp_path, key, capsys):
    assert train("--student", "resnet20", "--student-args", "width=0.25", "--teacher", "none")[0] == 0
    args = tmp_path / "run" / "args.yaml"
    values = yaml.safe_load(args.read_text())
    for name in NAMES[:3]:
        args.write_text(yaml.safe_dump(values | {key: name, "student_args": []}))
        for more in (
            (),
            ("--student", "hf-hub:me/mine") if key == "student" else ("--teacher", "hf-hub:me/mine"),
        ):
            assert main(["train", "--resume", str(tmp_path / "run"), *more]) == 2
            assert "what a run folder names is not fetched" in capsys.readouterr().err
    assert mine.asked == []


def test_a_teacher_that_is_fitted_again_is_the_one_that_was_kept(mine, train, tmp_path, capsys):
    """Stopped after RUN/teacher/start.pth, before RUN/teacher/args.yaml: its name is still not followed."""
    run = tmp_path / "run"
    flags = ("--teacher", "hf-hub:me/mine", "--teacher-fit", "all", "--teacher-fit-epochs", "1")
    assert train("--student", "resnet20", "--student-args", "width=0.25", *flags)[0] == 0
    gone(mine, tmp_path)
    for place in (run, run / "teacher"):
        for name in ("last.pth", "best.pth", "metrics.jsonl"):
            (place / name).unlink()
    for name in ("hf-hub:me/mine", "hf-hub:e/vil"):
        values = yaml.safe_load((run / "args.yaml").read_text())
        (run / "args.yaml").write_text(yaml.safe_dump(values | {"teacher": name}))
        (run / "teacher" / "args.yaml").unlink()
        (run / "teacher" / "start.pth").rename(tmp_path / "kept.pth")
        assert main(["train", "--resume", str(run), "--no-report"]) == 2
        assert "what a run folder names is not fetched" in capsys.readouterr().err
        (tmp_path / "kept.pth").rename(run / "teacher" / "start.pth")
        assert main(["train", "--resume", str(run), "--no-report"]) == 0
        assert checkpoints.load(run / "best.pth").lineage["teacher"]["published"] == name
        for file in ("last.pth", "best.pth", "metrics.jsonl"):
            (run / file).unlink()
            (run / "teacher" / file).unlink()
    assert mine.asked == []


BAD = {
    "a schedule": ("--sched", "nonsense"),
    "an optimizer": ("--opt", "nonsense"),
    "stages that are not there": ("--feature-loss", "fitnet", "--feature-stages", "9:9"),
    "a loss that needs another batch": ("--losses", "nkd:nonsense=1"),
}


@pytest.mark.parametrize("fit", ["head", "all"])
@pytest.mark.parametrize("case", BAD)
def test_a_bad_flag_of_the_student_is_said_before_its_teacher_is_fitted(train, tmp_path, case, fit):
    torch.manual_seed(0)
    torch.save(models.build("resnet20", 7, {"width": 0.25}).state_dict(), tmp_path / "seven.pth")
    teacher = ("--teacher", "resnet20", "--teacher-args", "width=0.25", "--teacher-fit", fit)
    code, said = train(
        "--student", "resnet20", *teacher, "--teacher-ckpt", str(tmp_path / "seven.pth"), *BAD[case]
    )
    assert code == 2, said
    assert "fitted" not in said.splitlines()[-1] and "epoch" not in said
    assert not (tmp_path / "run").exists()


def test_a_file_is_read_once(train, tmp_path, monkeypatch):
    torch.save(models.build("resnet20", 7, {"width": 0.25}).state_dict(), tmp_path / "w.pth")
    torch.save(models.build("resnet20", 2, {"width": 0.5}).state_dict(), tmp_path / "t.pth")
    reads = collections.Counter()
    read = checkpoints.read_file
    monkeypatch.setattr(
        checkpoints, "read_file", lambda path, *more: (reads.update([str(path)]), read(path, *more))[1]
    )
    student = (
        "--student",
        "resnet20",
        "--student-args",
        "width=0.25",
        "--student-ckpt",
        str(tmp_path / "w.pth"),
    )
    teacher = (
        "--teacher",
        "resnet20",
        "--teacher-args",
        "width=0.5",
        "--teacher-ckpt",
        str(tmp_path / "t.pth"),
    )
    assert train(*student, *teacher, "--control", "--freeze", "stem")[0] == 0
    assert reads[str(tmp_path / "w.pth")] == 1 and reads[str(tmp_path / "t.pth")] == 1


def test_a_student_with_nan_is_named_as_such(train, tmp_path):
    weights = models.build("resnet20", 2, {"width": 0.25}).state_dict()
    weights["layer2.0.bn1.running_var"][0] = float("inf")
    torch.save(weights, tmp_path / "w.pth")
    begin = (
        "--student",
        "resnet20",
        "--student-args",
        "width=0.25",
        "--student-ckpt",
        str(tmp_path / "w.pth"),
    )
    code, said = train(*begin)
    assert code == 4
    assert f"student {tmp_path / 'w.pth'}: its weight layer2.0.bn1.running_var holds NaN" in said
    assert not (tmp_path / "run").exists()


def test_a_tag_is_not_part_of_the_architecture(hub, train, tmp_path):
    """What was trained from resnet18.a1_in1k is a resnet18."""
    spec = models.preprocess_of("test_resnet", 32)
    weights = models.build("test_resnet", 2).state_dict()
    best = checkpoints.Checkpoint("test_resnet.r160_in1k", {}, weights, spec, ["ant", "bee"])
    checkpoints.save(best, tmp_path / "best.pth")
    for name in ("test_resnet", "timm/test_resnet", "test_resnet.r160_in1k", "auto"):
        begin = ("--student", name, "--student-ckpt", str(tmp_path / "best.pth"), "--overwrite")
        assert train(*begin)[0] == 0
    assert checkpoints.load(tmp_path / "run" / "best.pth").model == "test_resnet.r160_in1k"
    code, said = train("--student", "test_vit", "--student-ckpt", str(tmp_path / "best.pth"), "--overwrite")
    assert code == 4 and "holds test_resnet.r160_in1k, not test_vit" in said
    assert hub.asked == []


def test_classes_are_not_an_argument(train):
    code, said = train("--student", "resnet20", "--student-args", "num_classes=3")
    assert code == 2 and "the classes are those of the data" in said
