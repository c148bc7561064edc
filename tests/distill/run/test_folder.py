"""Which folder a run gets, and what of it --overwrite may remove."""

from pathlib import Path

import pytest

from distill.commands import train
from distill.run.folder import choose_folder, remove_old_run, shared_out
from distill.run.options import TrainOptions
from runtime.errors import UsageError

NAMED = {
    "auto": "resnet18",
    "resnet18.a1_in1k": "resnet18.a1_in1k",
    "timm/resnet18": "resnet18",
    "hf-hub:me/mine": "mine",
    "hf-hub:me/mine@v1": "mine",
    "hf-hub:me/mine@feature/x": "mine",
    "local-dir:mine": "mine",
    "local-dir:mine/": "mine",
    "local-dir:a:b@c": "a:b@c",
    "local-dir:.": "here",
    "local-dir:sub/..": "here",
    "local-dir:../here/./mine": "mine",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, which is called so."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.parametrize("student", NAMED)
def test_a_run_is_called_after_its_student(here, student):
    assert choose_folder(TrainOptions(data="digits", student=student)) == Path("runs", NAMED[student])


def test_a_run_is_called_after_the_file_that_says_which_student_it_is(here):
    (here / "good.pth").write_bytes(b"")
    given = TrainOptions(data="digits", student_ckpt="good.pth")
    assert choose_folder(given) == Path("runs/good")


@pytest.mark.parametrize("student", ["local-dir:/", "hf-hub:me/..", "hf-hub:.", "hf-hub:me/"])
def test_a_student_without_a_name_of_its_own_needs_a_folder(here, student):
    with pytest.raises(UsageError, match=r"does not give the run a name\. Give one: --output DIR"):
        choose_folder(TrainOptions(data="digits", student=student, overwrite=True))
    given = TrainOptions(data="digits", student=student, output="other")
    assert choose_folder(given) == Path("other")


LOST = {
    "the run itself": (False, "student", "local-dir:runs/x"),
    "its control": (False, "teacher", "local-dir:runs/x/control"),
    "its best weights": (False, "teacher_ckpt", "runs/x/best.pth"),
    "its teacher": (True, "student", "local-dir:runs/x/teacher"),
    "its teacher's file": (True, "student_ckpt", "runs/x/teacher/best.pth"),
    "what it began with": (True, "teacher_ckpt", "runs/x/start.pth"),
}


@pytest.mark.parametrize("case", LOST)
def test_a_run_does_not_replace_what_it_begins_with(here, case):
    overwrite, flag, given = LOST[case]
    values = {"data": "digits", "student": "resnet20", "output": "runs/x", flag: given}
    for typed in (given, given.replace("runs", "runs/../runs")):
        with pytest.raises(UsageError, match="would be overwritten by this run"):
            choose_folder(TrainOptions(**values | {flag: typed, "overwrite": True}))
    if overwrite:  # what only --overwrite removes is left by a run without it
        assert choose_folder(TrainOptions(**values)) == Path("runs/x")


def test_overwriting_removes_what_a_run_wrote_and_nothing_else(tmp_path):
    written = ["args.yaml", "best.pth", "last.pth", "start.pth", "header.json", "loggers.json"]
    written += ["summary.csv", "metrics.jsonl", "result.json", "val-split.csv", "unreadable-images.txt"]
    written += ["report.html", "val_predictions.npz"]
    for name in (*written, "notes.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "teacher").mkdir()
    (tmp_path / "pictures").mkdir()
    remove_old_run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["args.yaml", "notes.txt", "pictures"]


def begin(folder, batch, processes, accum=2):
    """A run's settings, as so many processes begin it."""
    folder.mkdir(parents=True)
    (folder / "args.yaml").write_text(f"batch: {batch}\ngrad_accum: {accum}\ndata: digits\n")
    (folder / "header.json").write_text(f'{{"batch": {batch * accum * processes}, "processes": {processes}}}')


AUTO = ["--resume", "auto", "--output", "run", "--data", "digits"]


def test_auto_begins_a_run_where_there_is_none(here):
    options = train.parse([*AUTO, "--batch", "4"])
    assert (options.resume, options.batch) == ("", 4) and choose_folder(options) == Path("run")


@pytest.mark.parametrize("words", [AUTO, ["--resume=auto", "-o", "run"], ["--resume", "auto", "-orun"]])
def test_auto_continues_the_run_in_output(here, words):
    begin(here / "run", batch=4, processes=2)
    options = train.parse([*words, "--batch", "4"])
    assert options.resume == "run" and choose_folder(options) == Path("run")
    assert [shared_out(options, Path("run"), processes).batch for processes in (1, 2, 4)] == [8, 4, 2]


def test_auto_takes_the_batch_of_the_run_that_others_went_on_with(here, capsys):
    begin(here / "run", batch=8, processes=1)  # of 2 x 4 that one process goes on with
    options = train.parse([*AUTO, "--batch", "4"])
    assert [shared_out(options, Path("run"), processes).batch for processes in (1, 2)] == [8, 4]
    assert "a batch has 8 images in all processes" in capsys.readouterr().err
    assert train.parse([*AUTO, "--batch", "3"]).batch == 3  # refused when it resumes


def test_a_batch_is_that_of_the_run_where_its_files_are_of_two_moments(here):
    """A process that is killed while it begins may have written one of them."""
    begin(here / "run", batch=4, processes=2)
    (here / "run" / "args.yaml").write_text("batch: 8\ngrad_accum: 2\ndata: digits\n")
    options = train.parse(["--resume", "run"])
    assert [shared_out(options, Path("run"), processes).batch for processes in (1, 2)] == [8, 4]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--resume", "auto", "--data", "digits"], "Give --output DIR"),
        ([*AUTO, "--overwrite"], "Leave one of them out"),
    ],
)
def test_auto_needs_to_know_which_run(here, words, said):
    with pytest.raises(UsageError, match=said):
        train.parse(words)


def test_auto_continues_a_run_of_int8_training_as_one(here):
    begin(here / "run", batch=4, processes=1)
    assert train.instead(AUTO) is None
    with (here / "run" / "args.yaml").open("a") as file:
        file.write("qat: true\n")
    assert train.instead(AUTO) == "train --qat"
