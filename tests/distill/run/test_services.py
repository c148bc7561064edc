"""Services that a run is sent to: asked for by a flag alone, known before anything is written, the same run
after a resume.
"""

import json
import sys
from types import SimpleNamespace

import pytest
from tiny_training import TINY

from distill.__main__ import main

FLAGS = ["--student", "resnet20", *TINY, "--no-report"]


class Wandb:
    """A double of the package wandb: what each run was told."""

    Settings = dict
    errors = SimpleNamespace(Error=RuntimeError)

    def __init__(self, fails_at=None):
        self.runs, self.fails_at = [], fails_at

    def setup(self):
        return SimpleNamespace(settings=SimpleNamespace(mode="online"))

    def login(self, prompt):
        return True

    def Image(self, pixels):
        return pixels

    def init(self, **given):
        told = SimpleNamespace(given=given, logged=[], exit_code=None)
        self.runs.append(told)

        def log(values, step):
            if step == self.fails_at:
                raise ConnectionError("the server is away")
            told.logged.append((step, values))

        def finish(exit_code):
            told.exit_code = exit_code

        run_id = given["id"] or f"id{len(self.runs)}"
        return SimpleNamespace(id=run_id, offline=False, url="https://x/run", log=log, finish=finish)


@pytest.fixture
def wandb(monkeypatch):
    made = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", made)
    return made


def test_student_and_control_are_sent_with_figures_and_pictures(npz, tmp_path, wandb):
    data = npz()
    teacher = ["train", "--data", data, *FLAGS, "--teacher", "none", "--output", str(tmp_path / "teacher")]
    assert main(teacher) == 0 and wandb.runs == []  # nobody asked
    words = [
        "train",
        "--data",
        f"npz:{tmp_path / 'set'}",
        *FLAGS,
        "--teacher-ckpt",
        str(tmp_path / "teacher"),
    ]
    assert main([*words, "--control", "--wandb", "team/birds", "--output", str(tmp_path / "run")]) == 0
    student, control = wandb.runs
    assert (student.given["entity"], student.given["project"]) == ("team", "birds")
    assert [each.given["name"] for each in wandb.runs] == ["run", "run-control"]
    for each in wandb.runs:
        figures = {name: value for _, values in each.logged for name, value in values.items()}
        assert {"train/loss", "val/top1", "lr/largest", "time/images_per_s"} <= set(figures)
        assert figures["train/augmented"].dtype == figures["val/worst"].dtype == "uint8"
        assert each.exit_code == 0
    assert "train/kl" in student.logged[1][1] and "train/kl" not in control.logged[1][1]


def test_a_resumed_run_is_the_same_one_if_it_is_asked_for_again(npz, tmp_path, wandb):
    run = str(tmp_path / "run")
    assert main(["train", "--data", npz(), *FLAGS, "--teacher", "none", "--output", run, "--wandb"]) == 0
    assert main(["train", "--resume", run]) == 0
    assert len(wandb.runs) == 1
    assert main(["train", "--resume", run, "--wandb"]) == 0
    assert [each.given["id"] for each in wandb.runs] == [None, "id1"]
    assert {each.given["project"] for each in wandb.runs} == {"large2small"}


def test_a_service_that_fails_is_named_once_and_the_training_goes_on(npz, tmp_path, wandb, capsys):
    wandb.fails_at = 8  # the first epoch's figures
    words = ["train", "--data", npz(), *FLAGS, "--epochs", "3", "--teacher", "none", "--wandb"]
    assert main([*words, "--output", str(tmp_path / "run")]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "wandb" in line]
    assert said[1:] == ["warning: wandb failed (the server is away); the training goes on without it"]
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_ends_the_command_before_anything_is_written(
    npz, tmp_path, monkeypatch, capsys, name
):
    monkeypatch.setitem(sys.modules, name, None)
    words = ["train", "--data", npz(), *FLAGS, "--teacher", "none", f"--{name}"]
    assert main([*words, "--output", str(tmp_path / "run")]) == 3
    assert f'pip install "large2small[{name}]"' in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_file_cannot_ask_for_it(npz, tmp_path, wandb, capsys):
    recipe = tmp_path / "theirs.yaml"
    recipe.write_text("wandb: their-project\n")
    words = ["train", "--data", npz(), *FLAGS, "--teacher", "none", "--output", str(tmp_path / "run")]
    assert main([*words, "--recipe", str(recipe)]) == 2
    assert "unknown key 'wandb'" in capsys.readouterr().err
    assert main(words) == 0
    for file in ("args.yaml", "loggers.json"):
        with (tmp_path / "run" / file).open("a") as saved:
            saved.write("wandb: their-project\n" if file == "args.yaml" else json.dumps({"wandb": "theirs"}))
    assert main(["train", "--resume", str(tmp_path / "run")]) == 2
    assert wandb.runs == []
