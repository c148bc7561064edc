"""A run's folder, its data and its teacher that moved: all is found again, or given anew and compared."""

import json
import shutil
from pathlib import Path

import pytest

from runtime import files
from runtime.cli import front_door
from runtime.images import lists
from runtime.images.lists import file_of
from runtime.recorded import found_again, local_data, parts_of

TRAIN = ["train", "--student", "resnet20", "--student-args", "width=0.25", "--img-size", "16", "--batch", "8"]
TRAIN += ["--epochs", "1", "--warmup-epochs", "0", "--device", "cpu", "--no-report"]


@pytest.fixture
def place(tmp_path, tree, monkeypatch):
    """project/ with photos/ (one folder of three classes), which is the current folder."""
    (tmp_path / "project").mkdir()
    tree(per_class=8, names=("ant", "bee", "cow"), folder="made")
    shutil.move(tmp_path / "made" / "train", tmp_path / "project" / "photos")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def run(capsys):
    """run(*words) -> stdout, after an exit code of 0."""

    def do(*words):
        capsys.readouterr()
        code = front_door.main([str(word) for word in words])
        found = capsys.readouterr()
        assert code == 0, found.err
        return found.out

    return do


@pytest.fixture
def fails(capsys):
    """fails(*words) -> stderr, after an exit code of 2."""

    def do(*words):
        capsys.readouterr()
        assert front_door.main([str(word) for word in words]) == 2
        return capsys.readouterr().err

    return do


def plain(run):
    run(*TRAIN, "--teacher", "none", "--data", "photos", "--val-split", "0.25", "--output", "runs/r")


def images(out):
    return json.loads(out)["images"]


@pytest.mark.parametrize("move", [shutil.move, shutil.copytree])
def test_a_run_with_its_own_split_is_found_where_it_is_now(place, run, move, tmp_path):
    plain(run)
    before = json.loads(run("eval", "runs/r/best.pth", "--json"))
    move("runs/r", tmp_path / "elsewhere")
    if move is shutil.copytree:  # then nothing may be read from the first one
        shutil.rmtree("runs/r")
    here = tmp_path / "elsewhere"
    after = json.loads(run("eval", here / "best.pth", "--json"))
    assert (after["images"], after["loss_nats"]) == (before["images"], before["loss_nats"])
    assert after["data"] == str(here / "val-split.csv")
    run("train", "--resume", here, "--no-report")
    assert json.loads((here / "header.json").read_text())["run"] == str(here)
    pytest.importorskip("matplotlib")
    run("report", here)
    assert "The validation images are not shown" not in (here / "report.html").read_text()


def test_a_run_of_a_version_that_did_not_say_where_it_was(place, run, tmp_path):
    plain(run)
    header = json.loads(Path("runs/r/header.json").read_text())
    del header["run"]
    Path("runs/r/header.json").write_text(json.dumps(header))
    shutil.move("runs/r", tmp_path / "elsewhere")
    assert images(run("eval", tmp_path / "elsewhere" / "best.pth", "--json")) == 6


def test_a_project_that_moved_as_a_whole(place, run, tmp_path, monkeypatch):
    run(*TRAIN, "--teacher", "none", "--data", "photos", "--val-split", "0.25", "--output", "runs/t")
    given = ("--data", "photos", "--val-split", "0.25", "--teacher-ckpt", "runs/t/best.pth", "--control")
    run(*TRAIN, *given, "--student-ckpt", "runs/t/best.pth", "--output", "runs/r")
    monkeypatch.chdir(tmp_path)
    shutil.move(place, tmp_path / "other")
    assert images(run("eval", "other/runs/r/control/best.pth", "--json")) == 6
    run("train", "--resume", "other/runs/r", "--no-report")
    assert f"data: {tmp_path}/other/photos\n" in Path("other/runs/r/args.yaml").read_text()


@pytest.mark.parametrize("what", ["data", "teacher", "start", "all"])
def test_data_teacher_and_start_weights_that_moved_are_given_anew(place, run, fails, what):
    run(*TRAIN, "--teacher", "none", "--data", "photos", "--val-split", "0.25", "--output", "t")
    for name in ("teacher", "start"):
        shutil.copy("t/best.pth", f"{name}.pth")
    given = ("--data", "photos", "--val-split", "0.25", "--teacher-ckpt", "teacher.pth")
    run(*TRAIN, *given, "--student-ckpt", "start.pth", "--output", "r")
    flags = {
        "data": ("photos", "--data", "moved"),
        "teacher": ("teacher.pth", "--teacher-ckpt", "moved.pth"),
        "start": ("start.pth", "--student-ckpt", "begun.pth"),
    }
    words = []
    for name, (old, flag, new) in flags.items():
        if what in (name, "all"):
            shutil.move(old, new)
            words += [flag, new]
    said = fails("train", "--resume", "r")
    assert any(old in said for name, (old, _, _) in flags.items() if what in (name, "all"))
    run("train", "--resume", "r", "--no-report", *words)
    if what == "teacher":
        assert "not the one the run began with" in fails(
            "train", "--resume", "r", "--teacher-ckpt", "r/best.pth"
        )


def test_the_moved_data_of_a_split_run_is_judged_on_its_validation_images_alone(place, run):
    plain(run)
    before = json.loads(run("eval", "runs/r/best.pth", "--json"))
    shutil.move("photos", "moved")
    after = json.loads(run("eval", "runs/r/best.pth", "--data", "moved", "--json"))
    assert (after["images"], after["loss_nats"]) == (6, before["loss_nats"])
    assert images(run("eval", "runs/r/best.pth", "--data", "moved", "--split", "train", "--json")) == 18
    shutil.copy("moved/ant/0.png", "moved/ant/more.png")  # now it is another set, of which all are meant
    assert images(run("eval", "runs/r/best.pth", "--data", "moved", "--json")) == 25


@pytest.mark.parametrize("fit", ["head", "all"])
def test_a_fitted_teacher_moves_with_its_run(place, run, tree, tmp_path, fit):
    others = tree(per_class=8, names=("red", "blue"), folder="others")
    run(*TRAIN, "--teacher", "none", "--data", others, "--output", "t")
    given = ("--data", "photos", "--val-split", "0.25", "--teacher-ckpt", "t/best.pth", "--teacher-fit", fit)
    run(*TRAIN, *given, "--teacher-fit-epochs", "1", "--output", "r")
    shutil.move("r", tmp_path / "elsewhere")
    if fit == "head":  # it is kept whole, and the file it began with is not needed any more
        shutil.rmtree("t")
    run("train", "--resume", tmp_path / "elsewhere", "--no-report")
    assert images(run("eval", tmp_path / "elsewhere" / "teacher" / "best.pth", "--data", "photos", "--json"))


def test_data_that_moved_away_from_a_split_is_named_with_the_way_out(place, run, fails):
    plain(run)
    shutil.move("photos", "moved")
    said = fails("eval", "runs/r/best.pth")
    assert "none of its 6 images is there" in said and "--data DIR" in said
    run("train", "--resume", "runs/r", "--data", "moved", "--no-report")
    assert images(run("eval", "runs/r/best.pth", "--json")) == 6


@pytest.mark.parametrize("columns", ["", "#image=a", "#label=b", "#image=a&label=b"])
def test_a_list_in_a_folder_with_a_number_sign_is_found_again(tmp_path, columns):
    """Run and list moved from old#1/ to new#1/."""
    run = tmp_path / "new#1" / "run"
    run.mkdir(parents=True)
    (run / "header.json").write_text(json.dumps({"run": str(tmp_path / "old#1" / "run")}))
    (tmp_path / "new#1" / "all.csv").write_text("a,b\n")
    found = found_again(f"csv:{tmp_path}/old#1/all.csv{columns}", run)
    assert found == f"csv:{tmp_path}/new#1/all.csv{columns}"
    assert local_data(found, "a.pth", "--data") == found
    assert file_of(found) == tmp_path / "new#1" / "all.csv"


def test_a_file_whose_name_looks_like_columns_is_taken_as_it_is(tmp_path):
    (tmp_path / "a#label=b").write_text("path,label\n")
    assert parts_of(f"csv:{tmp_path}/a#label=b") == ("csv:", f"{tmp_path}/a#label=b", "")
    assert parts_of(f"csv:{tmp_path}/a#label=c") == ("csv:", f"{tmp_path}/a", "label=c")


def test_the_place_of_a_run_is_read_once_for_all_rows_of_a_list(tmp_path, monkeypatch):
    run, reads, open_regular = tmp_path / "now", [], files.open_regular
    run.mkdir()
    (run / "header.json").write_text('{"run": "/was/here/run"}')
    (run / "val-split.csv").write_text("".join(f"/was/here/photos/{n}.png,{n % 2}\n" for n in range(50)))
    for number in range(50):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / f"{number}.png").write_bytes(b"x")
    monkeypatch.setattr(
        files, "open_regular", lambda path: (reads.append(Path(path).name), open_regular(path))[1]
    )
    rows = lists.read(str(run / "val-split.csv"))
    assert {row.path for row in rows} == {str(path) for path in (tmp_path / "photos").iterdir()}
    assert reads.count("header.json") == 1


def test_only_paths_that_are_gone_are_looked_for(tmp_path):
    (tmp_path / "now").mkdir()
    (tmp_path / "now" / "header.json").write_text('{"run": "/was/here/run"}')
    (tmp_path / "photos").mkdir()
    assert found_again("/was/here/photos", tmp_path / "now") == str(tmp_path / "photos")
    assert found_again("npz:/was/here/photos", tmp_path / "now") == f"npz:{tmp_path / 'photos'}"
    assert found_again("csv:/was/here/photos#image=a", tmp_path / "now") == f"csv:{tmp_path}/photos#image=a"
    for kept in (str(tmp_path), "/was/here/other", "digits", "torch/cifar10:/was/here/photos", "", "photos"):
        assert found_again(kept, tmp_path / "now") == kept
    for damaged in ("{", "[]", '{"run": 3}', '{"run": "here"}'):
        (tmp_path / "now" / "header.json").write_text(damaged)
        assert found_again("/was/here/photos", tmp_path / "now") == "/was/here/photos"
