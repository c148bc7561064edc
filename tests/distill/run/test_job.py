"""`distill train`: the run folder is complete, reproduces itself, is never replaced unasked, and says what
the teacher was good for.
"""

import csv
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from distill import checkpoint as checkpoints
from distill import models
from distill import recipe as recipes
from distill.__main__ import main
from distill.run import job
from distill.run.folder import absolute
from distill.run.result import TeacherResult
from distill.teacher import Origin
from runtime import files
from runtime.errors import ArtifactError, DataError, UsageError
from runtime.images import open_images

pytestmark = pytest.mark.usefixtures("without_report")

TINY = [
    "--student",
    "resnet20",
    "--student-args",
    "width=0.25",
    "--img-size",
    "16",
    "--batch",
    "8",
    "--epochs",
    "1",
    "--device",
    "cpu",
]


@pytest.fixture
def run(npz, tmp_path, capsys):
    """run(*flags) -> (exit code, stdout, stderr) of a tiny training into RUN = tmp_path / "run"."""
    data = npz()

    def call(*flags, output="run", base=TINY):
        capsys.readouterr()
        code = main(["train", "--data", data, *base, "--output", str(tmp_path / output), *flags])
        return (code, *capsys.readouterr())

    call.data = data
    return call


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A place for the folder of the teacher, which is trained once."""
    return tmp_path_factory.mktemp("taught") / "teacher"


@pytest.fixture
def teacher_file(run, tmp_path, taught):
    """A trained teacher's best.pth."""
    if not taught.exists():
        assert run("--teacher", "none", "--seed", "5", output="teacher")[0] == 0
        shutil.copytree(tmp_path / "teacher", taught)
    shutil.copytree(taught, tmp_path / "teacher", dirs_exist_ok=True)
    return str(tmp_path / "teacher" / "best.pth")


def test_a_run_folder_holds_all_there_is_to_know(run, tmp_path, with_report):
    code, out, _ = run("--teacher", "none", "--tensorboard")
    folder = tmp_path / "run"
    names = {path.name for path in folder.iterdir()}
    events = {name for name in names if name.startswith("events.out.tfevents")}
    assert code == 0
    assert events
    assert names - events == {
        "args.yaml",
        "best.pth",
        "header.json",
        "last.pth",
        "metrics.jsonl",
        "report.html",
        "result.json",
        "summary.csv",
        "val_predictions.npz",
    }
    best = checkpoints.load(folder / "best.pth")
    assert best.role == "plain"
    assert best.lineage["data"]["train_images"] == 32 and best.lineage["data"]["val_images"] == 16
    assert best.lineage["data"]["train_spec"] == run.data and len(best.lineage["data"]["train_sha256"]) == 64
    assert best.lineage["teacher"] is None
    assert best.lineage["recipe"]["student_args"] == ["width=0.25"]
    assert {"torch", "timm", "numpy"} <= set(best.lineage["versions"])
    result = json.loads((folder / "result.json").read_text())
    assert result["best"]["top1_percent"] == best.metrics["top1"] and result["control"] is None
    assert f"{folder}/best.pth: top-1 {best.metrics['top1']:.2f} %" in out and "(n=16)" in out


def test_args_yaml_reproduces_the_run(run, tmp_path, same_weights, capsys):
    run(
        "--teacher", "none", "--mixup", "0.4", "--drop-path", "0.1", "--lr", "0.01", "--recipe", "cifar10-cpu"
    )
    saved = tmp_path / "run" / "args.yaml"
    assert yaml.safe_load(saved.read_text())["lr"] == 0.01
    assert main(["train", "--recipe", str(saved), "--output", str(tmp_path / "again")]) == 0
    same_weights(*(checkpoints.load(tmp_path / name / "last.pth").state_dict for name in ("run", "again")))
    assert (tmp_path / "again" / "args.yaml").read_text() == saved.read_text()


def test_a_control_gets_the_same_budget_and_the_difference_is_given(run, teacher_file, tmp_path):
    code, out, err = run("--teacher-ckpt", teacher_file, "--control")
    folder = tmp_path / "run"
    assert code == 0
    result = json.loads((folder / "result.json").read_text())
    roles = {name: checkpoints.load(folder / name / "best.pth") for name in (".", "control")}
    assert (roles["."].role, roles["control"].role) == ("student", "control")
    assert result["best"]["top1_percent"] == roles["."].metrics["top1"]
    assert result["control"]["top1_percent"] == roles["control"].metrics["top1"]
    assert result["gain_points"] == pytest.approx(
        result["best"]["top1_percent"] - result["control"]["top1_percent"]
    )
    gain = result["gain_points"]
    if abs(gain) < 0.005:
        assert "the student is as accurate with the teacher as without it; 95 % interval" in out
    else:
        words = f"{abs(gain):.2f} points {'more' if gain > 0 else 'less'} accurate"
        assert f"the student is {words} with the teacher than without it; 95 % interval" in out
    assert result["gain_low_points"] <= gain <= result["gain_high_points"]
    ours, theirs = roles["."].lineage["recipe"], roles["control"].lineage["recipe"]
    assert {key for key in ours if ours[key] != theirs[key]} == {"teacher", "teacher_ckpt"}
    assert (
        roles["."].lineage["teacher"]["file"] == teacher_file and roles["control"].lineage["teacher"] is None
    )
    assert len((folder / "control" / "metrics.jsonl").read_text().splitlines()) == 1
    teachers_own = checkpoints.load(teacher_file).metrics["top1"]
    assert result["teacher"]["top1_percent"] == pytest.approx(teachers_own)
    assert f"teacher: top-1 {teachers_own:.2f} % on 16 validation images" in err


def test_json_is_exactly_one_object_on_stdout(run, teacher_file):
    code, out, _ = run("--teacher-ckpt", teacher_file, "--control", "--json")
    assert code == 0
    assert out.count("\n") == 1
    result = json.loads(out)
    assert result["control"]["images"] == 16 and "gain_points" in result


def test_json_of_a_failure_is_one_object_too(run):
    code, out, err = run("--teacher-ckpt", "none.pth", "--json")
    assert json.loads(out) == {"error": err.removeprefix("error: ").rstrip("\n"), "exit_code": code}
    assert code == 2


def test_a_report_shows_the_run_unless_it_is_not_wanted(run, teacher_file, tmp_path, with_report):
    _, _, err = run("--teacher-ckpt", teacher_file, "--control", output="shown")
    page = (tmp_path / "shown" / "report.html").read_text()
    assert f"report: {tmp_path / 'shown' / 'report.html'}\n" in err
    assert "On 16 validation images" in page and "control" in page
    _, _, err = run("--teacher", "none", "--no-report", output="bare")
    assert "report" not in err and not (tmp_path / "bare" / "report.html").exists()


def test_an_existing_run_is_refused_and_untouched(run, tmp_path):
    run("--teacher", "none")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    code, out, err = run("--teacher", "none", "--seed", "2")
    assert code == 2 and out == ""
    assert "holds a run already" in err and "--resume" in err and "--overwrite" in err
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.skipif(os.name == "nt", reason="flock")
@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_a_second_training_in_the_same_folder_is_refused(run, tmp_path, more):
    with files.only_one(tmp_path / "run", "is training"):
        code, _, said = run("--teacher", "none", *more)
        assert code == 2 and "another process is training there" in said
        assert list((tmp_path / "run").iterdir()) == []


def test_a_run_that_another_process_has_made_meanwhile_is_kept(tmp_path):
    (tmp_path / "args.yaml").write_text("theirs")
    with pytest.raises(UsageError, match="holds a run already"):
        job.run(SimpleNamespace(overwrite=False, resume=""), tmp_path)
    assert (tmp_path / "args.yaml").read_text() == "theirs"


def test_overwrite_leaves_nothing_of_the_old_run(run, teacher_file, tmp_path):
    run("--teacher-ckpt", teacher_file, "--control")
    code, _, _ = run("--teacher", "none", "--seed", "2", "--overwrite")
    assert code == 0
    assert checkpoints.load(tmp_path / "run" / "best.pth").lineage["recipe"]["seed"] == 2
    assert not (tmp_path / "run" / "control" / "best.pth").exists()
    with open(tmp_path / "run" / "summary.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 1


def test_overwrite_keeps_the_old_run_until_the_new_one_can_start(run, tmp_path):
    assert run("--teacher", "none")[0] == 0
    before = (tmp_path / "run" / "best.pth").read_bytes()
    assert run("--teacher", "none", "--overwrite", "--data", str(tmp_path / "typo"))[0] == 2
    assert (tmp_path / "run" / "best.pth").read_bytes() == before


def test_resume_with_another_teacher_in_the_same_file_is_refused(run, teacher_file, tmp_path):
    assert run("--teacher-ckpt", teacher_file)[0] == 0
    assert run("--teacher", "none", "--seed", "6", output="other")[0] == 0
    (tmp_path / "other" / "best.pth").replace(teacher_file)
    code, _, err = run("--teacher-ckpt", teacher_file, "--resume", str(tmp_path / "run"))
    assert code == 2 and "teacher's file is not the one" in err


def test_weights_to_start_from_get_the_order_of_the_datas_classes(run, tmp_path):
    """The file with its rows and names reversed is the same network, so training goes the same way."""
    assert run("--teacher", "none")[0] == 0
    found = checkpoints.load(tmp_path / "run" / "best.pth")
    code, _, _ = run("--teacher", "none", "--student-ckpt", str(tmp_path / "run"), output="second")
    assert code == 0
    found.class_names = found.class_names[::-1]
    for key in ("linear.weight", "linear.bias"):
        found.state_dict[key] = found.state_dict[key].flip(0)
    checkpoints.save(found, tmp_path / "swapped.pth")
    code, _, err = run("--teacher", "none", "--student-ckpt", str(tmp_path / "swapped.pth"), output="third")
    assert code == 0 and "classifier linear: its classes are put into the order of the data's" in err
    records = [(tmp_path / name / "summary.csv").read_text().split(",")[:6] for name in ("second", "third")]
    assert records[0] == records[1]


def test_a_setting_that_was_refused_can_be_corrected_with_the_same_output(run):
    assert run("--teacher", "none", "--batch", "64")[0] == 2  # more than the 32 training images
    assert run("--teacher", "none", "--opt", "adamww")[0] == 2
    assert run("--teacher", "none")[0] == 0


def test_a_folder_with_other_files_is_kept(run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert run("--teacher", "none", "--overwrite")[0] == 0
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_resume_takes_the_folder_or_its_last_pth_and_needs_no_other_flag(run, tmp_path):
    run("--teacher", "none")
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    for path in ("run", "run/last.pth"):
        assert main(["train", "--resume", str(tmp_path / path)]) == 0
        assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_resume_finishes_the_control_as_well(run, teacher_file, tmp_path, same_weights):
    run("--teacher-ckpt", teacher_file, "--control", output="whole")
    run("--teacher-ckpt", teacher_file, "--control", output="run")
    shutil.rmtree(tmp_path / "run" / "control")  # as if killed between the two
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    same_weights(
        *(checkpoints.load(tmp_path / name / "control" / "last.pth").state_dict for name in ("whole", "run"))
    )
    assert json.loads((tmp_path / "run" / "result.json").read_text())["control"]


@pytest.mark.parametrize("flag", ["--teacher-ckpt", "--student-ckpt"])
@pytest.mark.parametrize("output", ["run", "run/../run"])
def test_a_run_does_not_overwrite_the_weights_it_reads(run, tmp_path, flag, output):
    assert run("--teacher", "none")[0] == 0
    best = tmp_path / "run" / "best.pth"
    before = best.read_bytes()
    code, _, err = run(flag, str(best), "--overwrite", output=output)
    assert code == 2 and f"{flag} {best} would be overwritten by this run. Choose another --output" in err
    assert best.read_bytes() == before


def test_a_run_whose_last_pth_is_gone_is_not_begun_again_in_silence(run, tmp_path, capsys):
    assert run("--teacher", "none")[0] == 0
    folder = tmp_path / "run"
    (folder / "last.pth").unlink()
    before = (folder / "best.pth").read_bytes()
    assert main(["train", "--resume", str(folder)]) == 2
    assert "last.pth is gone" in capsys.readouterr().err and (folder / "best.pth").read_bytes() == before
    for name in (
        "best.pth",
        "metrics.jsonl",
        "summary.csv",
        "result.json",
    ):  # as if it was killed before the first save
        (folder / name).unlink()
    assert main(["train", "--resume", str(folder)]) == 0
    assert "plain: nothing was saved yet, so it starts from the beginning" in capsys.readouterr().err
    again = torch.load(folder / "best.pth", weights_only=True)["state_dict"]
    (tmp_path / "old.pth").write_bytes(before)
    old = torch.load(tmp_path / "old.pth", weights_only=True)["state_dict"]
    assert all(torch.equal(again[key], old[key]) for key in old)


def test_weights_alone_are_not_a_run_to_resume(run, tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "resnet20.th")
    before = sorted(tmp_path.rglob("*"))
    for name in ("weights.pth", "resnet20.th", "no_such_folder/last.pth", "."):
        code, _, err = run("--teacher", "none", "--resume", str(tmp_path / name))
        assert code == 2 and "is not a run that can be resumed" in err and "--student-ckpt" in err
    assert main(["train", "--resume", str(tmp_path / "no_such_folder")]) == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_a_script_that_always_says_resume_starts_in_a_new_folder(run, tmp_path):
    code, _, err = run("--teacher", "none", "--resume", str(tmp_path / "new"))
    assert code == 0 and "nothing was saved yet, so it starts from the beginning" in err
    assert (tmp_path / "new" / "last.pth").is_file()


def test_resume_measures_the_field_again_and_a_failure_of_it_keeps_the_result(
    run, tmp_path, monkeypatch, capsys
):
    from distill.erf import report

    def fails(options):
        raise DataError("no map")

    with monkeypatch.context() as patch:
        patch.setattr(report, "measure_and_write", fails)
        assert run("--teacher", "none", "--erf")[0] != 0
    folder = tmp_path / "run"
    assert "erf" not in json.loads((folder / "result.json").read_text())
    assert main(["train", "--resume", str(folder)]) == 0
    result = json.loads((folder / "result.json").read_text())
    assert [network["label"] for network in result["erf"]] == ["plain"] and (folder / "erf").is_dir()


def test_overwrite_removes_the_events_of_the_old_run(run, tmp_path):
    assert run("--teacher", "none", "--tensorboard")[0] == 0
    old = {path.name for path in (tmp_path / "run").glob("events.out.tfevents.*")}
    assert run("--teacher", "none", "--overwrite")[0] == 0
    assert old and not list((tmp_path / "run").glob("events.out.tfevents.*"))


def test_resume_clears_what_a_killed_process_left(run, teacher_file, tmp_path):
    run("--teacher-ckpt", teacher_file, "--control")
    leftovers = [tmp_path / "run" / place / ".last.pth.tmp-1" for place in (".", "control")]
    for leftover in leftovers:
        leftover.write_bytes(b"half")
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert not any(leftover.exists() for leftover in leftovers)


def test_resume_from_another_folder_finds_the_data(run, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(run.data.removeprefix("npz:")).parent)
    assert (
        main(
            ["train", "--data", "npz:set", *TINY, "--teacher", "none", "--output", str(tmp_path / "relative")]
        )
        == 0
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["train", "--resume", str(tmp_path / "relative")]) == 0


def test_resume_with_a_changed_setting_is_refused(run, tmp_path, capsys):
    run("--teacher", "none", "--lr", "0.01")
    assert main(["train", "--resume", str(tmp_path / "run"), "--lr", "0.02"]) == 2
    assert "--lr is 0.02, the run to resume has 0.01" in capsys.readouterr().err
    assert (
        yaml.safe_load((tmp_path / "run" / "args.yaml").read_text())["lr"] == 0.01
    )  # and a later --resume still works
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0


def test_the_default_output_is_named_after_the_student(npz, tmp_path, monkeypatch):
    data = npz()
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--data", data, *TINY, "--teacher", "none"]) == 0
    assert (tmp_path / "runs" / "resnet20" / "best.pth").exists()


def test_progress_goes_to_stderr_and_the_result_to_stdout(run):
    _, out, err = run("--teacher", "none")
    assert [line.split(" ")[0].rstrip(":") for line in out.splitlines()][-2:] == ["files", "next"]
    assert "images/s" not in out
    assert err.startswith("data     ") and "\nplain: epoch 1/1  loss " in err
    assert "images/s" in err


# data


def options(**settings):
    return recipes.Recipe(**settings)


def test_specs_are_made_absolute(tree, tmp_path, monkeypatch, npz):
    tree()
    npz()
    monkeypatch.chdir(tmp_path)
    assert job.open_splits(options(data="tree")).train_spec == str(tmp_path / "tree")
    assert job.open_splits(options(data="npz:set")).train_spec == f"npz:{tmp_path / 'set'}"
    (tmp_path / "digits").mkdir()
    for spec in ("digits", "", "hfds/name", "torch/cifar10:missing"):
        assert absolute(spec) == spec
    assert absolute("torch/image_folder:tree") == f"torch/image_folder:{tmp_path / 'tree'}"


def test_training_images_are_never_the_validation_images(tree):
    root = tree()
    with pytest.raises(UsageError, match="--val-data"):
        job.open_splits(options(data=str(root / "train")))
    assert len(job.open_splits(options(data=str(root / "train"), val_data=str(root / "val"))).val) == 8


def test_a_tar_file_needs_validation_images_of_its_own(tree, tmp_path):
    import tarfile

    root = tree()
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as archive:
            archive.add(root / split, ".")
    with pytest.raises(UsageError, match="--val-data"):
        job.open_splits(options(data=str(tmp_path / "train.tar")))
    found = job.open_splits(options(data=str(tmp_path / "train.tar"), val_data=str(tmp_path / "val.tar")))
    assert (len(found.train), len(found.val)) == (8, 8)
    assert found.train_spec == str(tmp_path / "train.tar")


def test_other_classes_in_the_two_splits_are_refused(tree):
    root = tree(names=("ant", "bee", "cat"))
    (root / "val" / "bee").rename(root / "val" / "bug")
    with pytest.raises(ArtifactError, match=r"classes differ.*bee.*bug"):
        job.open_splits(options(data=str(root)))
    shutil.rmtree(root / "val" / "bug")
    with pytest.raises(DataError, match=r"val has no image of bee \(2 of 3 classes\)"):
        job.open_splits(options(data=str(root)))


def test_erf_measures_every_network_of_the_run(run, teacher_file, tmp_path):
    """Teacher, control and student, in this order, in result.json, in metrics.jsonl after the epochs, and as
    pictures.
    """
    code, out, _ = run("--teacher-ckpt", teacher_file, "--control", "--erf")
    folder = tmp_path / "run"
    assert code == 0
    networks = json.loads((folder / "result.json").read_text())["erf"]
    assert [network["label"] for network in networks] == ["teacher", "control", "student"]
    assert [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][-1] == {
        "erf": networks
    }
    assert {path.name for path in (folder / "erf").iterdir()} == {
        "erf.png",
        "erf.json",
        "erf.npz",
        "teacher.png",
        "control.png",
        "student.png",
    }
    alone = tmp_path / "alone"
    assert main(["erf", str(folder / "best.pth"), "--output", str(alone), "--num-images", "50"]) == 0
    assert (
        json.loads((alone / "erf.json").read_text())["networks"][0]["reference"] == networks[2]["reference"]
    )
    assert "receptive field of the student" in out and f"figures are in {folder / 'erf'}" in out


def test_erf_measures_the_weights_that_taught(run, tmp_path):
    """Of a file with averaged weights beside others, those of --teacher-checkpoint-key."""
    raw, averaged = (models.build("resnet20", 4, {"width": 0.5}).state_dict() for _ in range(2))
    torch.save({"model": raw, "model_ema": averaged}, tmp_path / "both.pth")
    torch.save(raw, tmp_path / "raw.pth")
    flags = ("--teacher", "resnet20", "--teacher-args", "width=0.5", "--teacher-checkpoint-key", "model")
    assert run(*flags, "--teacher-ckpt", str(tmp_path / "both.pth"), "--erf")[0] == 0
    words = ["--model", "resnet20", "--model-args", "width=0.5", "--data", run.data, "--num-classes", "4"]
    assert main(["erf", str(tmp_path / "raw.pth"), *words, "--output", str(tmp_path / "alone")]) == 0
    found, alone = np.load(tmp_path / "run" / "erf" / "erf.npz"), np.load(tmp_path / "alone" / "erf.npz")
    assert np.array_equal(found["teacher"], alone[alone.files[0]])


def test_erf_says_that_a_teacher_without_a_file_is_left_out(capsys):
    published = Origin("resnet18", published="resnet18.a1_in1k")
    task = SimpleNamespace(labels=None)
    found = SimpleNamespace(teacher=TeacherResult(published, 50.0), kept_teacher=None, tasks=(task,))
    assert job._teacher_file(found) == []
    assert "erf: the teacher resnet18 is left out, because its weights are not" in capsys.readouterr().err


def test_agreement_with_the_teacher_is_counted_image_by_image(run, teacher_file, tmp_path):
    code, out, _ = run("--teacher-ckpt", teacher_file, "--control", "--epochs", "2")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert code == 0
    images = open_images(run.data, "val")
    classes = {}
    for name, path in (
        ("teacher", teacher_file),
        ("student", tmp_path / "run" / "best.pth"),
        ("control", tmp_path / "run" / "control" / "best.pth"),
    ):
        found = checkpoints.load(path)
        network = models.build(found.model, 4, found.model_args).eval()
        network.load_state_dict(found.state_dict)
        pixels = found.preprocess.batch([images.image(i) for i in range(len(images))])
        classes[name] = network(torch.from_numpy(pixels)).argmax(1)
    for name, key in (("student", "best"), ("control", "control")):
        expected = 100 * (classes[name] == classes["teacher"]).float().mean().item()
        assert result[key]["teacher_agreement_percent"] == pytest.approx(expected)
    share = result["best"]["teacher_agreement_percent"]
    assert f"predict the same class on {share:.2f} % of the validation images" in out
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert 0 <= first["val_teacher_agreement_percent"] <= 100


def test_several_losses_in_yaml(run, teacher_file, tmp_path):
    recipe = tmp_path / "losses.yaml"
    recipe.write_text(
        "losses:\n- {name: nkd, temperature: 2.0}\n- {name: fd, weight: 0.5, target_norm: map}\n"
    )
    code, _, err = run("--teacher-ckpt", teacher_file, "--config", str(recipe))
    assert code == 0
    assert "fd: stage 2: student layer3 16x4x4 (stride 4) learns from teacher layer3 16x4x4 (stride 4)" in err
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert record["train_distill_loss"] == pytest.approx(
        record["train_nkd_loss"] + 0.5 * record["train_fd_loss"]
    )


def test_sparse_training_leaves_zeros_in_the_file(run, tmp_path):
    code, _, _ = run(
        "--teacher", "none", "--sparsity", "0.4", "--sparse-update-every", "2", "--amp", "--model-ema"
    )
    assert code == 0
    last = checkpoints.load(tmp_path / "run" / "last.pth").state_dict
    weights = {key: value for key, value in last.items() if value.ndim in (2, 4)}
    zeros = sum(int((value == 0).sum()) for value in weights.values()) / sum(
        value.numel() for value in weights.values()
    )
    assert 0.36 < zeros < 0.44
    averaged = checkpoints.load(tmp_path / "run" / "best.pth").state_dict
    assert all(((averaged[key] == 0) >= (value == 0)).all() for key, value in weights.items())


def test_weights_to_start_from_bring_what_their_network_was_built_with(run, tmp_path):
    assert run("--teacher", "none")[0] == 0
    again = ("--teacher", "none", "--student-ckpt", str(tmp_path / "run" / "best.pth"))
    plain = [word for word in TINY if word not in ("--student-args", "width=0.25")]
    assert run(*again, output="second", base=plain)[0] == 0
    assert checkpoints.load(tmp_path / "second" / "best.pth").model_args == {"width": 0.25}
    code, _, err = run(*again, "--student-args", "width=0.5", output="third", base=plain)
    assert code == 4 and "does not fit resnet20" in err  # what is given counts


VIT = [
    "--student",
    "vit_tiny_patch16_224",
    "--batch",
    "8",
    "--epochs",
    "1",
    "--device",
    "cpu",
    "--teacher",
    "none",
    "--student-args",
    "patch_size=8",
    "embed_dim=24",
    "depth=1",
    "num_heads=3",
]


def test_a_student_built_for_a_size_sees_images_of_that_size(run, tmp_path):
    assert run(base=[*VIT, "img_size=16"])[0] == 0
    assert checkpoints.load(tmp_path / "run" / "best.pth").preprocess.input_size == (3, 16, 16)
    code, _, err = run(output="second", base=[*VIT, "img_size=16", "--img-size", "32"])
    assert code == 2 and "--img-size 32 and --student-args img_size=16: two sizes. Give one" in err


def test_one_of_several_processes_is_refused(run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = run("--teacher", "none")
    assert code == 2 and "WORLD_SIZE=2" in err and "torchrun --nproc-per-node" in err


def test_the_result_says_what_chose_the_epoch_and_when_it_ended(run, teacher_file, tmp_path, with_report):
    words = (
        "--teacher-ckpt",
        teacher_file,
        "--control",
        "--epochs",
        "40",
        "--lr",
        "1e-9",
        "--early-stop",
        "1",
    )
    code, out, _ = run(*words, "--select", "balanced")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert code == 0
    for role, name in (("best", "student"), ("control", "control")):
        found = result[role]
        assert found["select"] == "balanced" and found["balanced_percent"] == found["top1_percent"]
        assert found["epochs"] == found["epoch"] + 1 < 40
        ended = f"{name}: stopped after epoch {found['epochs']} of 40: no better balanced accuracy in 1 epoch"
        assert ended in out and found["early_end"] in ended + " (--early-stop 1)"
    assert out.count(", chosen by balanced accuracy (n=16)") == 2
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<dt>best epoch chosen by</dt><dd>balanced accuracy</dd>" in page and "(--early-stop 1)" in page


def test_weights_from_a_file_are_kept_in_the_run(run, tmp_path):
    (tmp_path / "w.csv").write_text("ant,2\n")
    assert run("--teacher", "none", "--class-weights", str(tmp_path / "w.csv"))[0] == 0
    (tmp_path / "w.csv").unlink()
    assert yaml.safe_load((tmp_path / "run" / "args.yaml").read_text())["class_weights"] == ["ant=2"]
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--class-weights", "1", "2"), "2 of 4 numbers for the classes (ant, bee, cat, dog)"),
        (("--class-weights", "nowhere.csv"), "nowhere.csv: no such file"),
        (("--early-stop", "-1"), "early-stop -1"),
    ],
)
def test_weights_that_do_not_fit_leave_nothing_behind(run, tmp_path, words, message):
    code, _, err = run("--teacher", "none", *words)
    assert code == 2 and message in err and not (tmp_path / "run").exists()
