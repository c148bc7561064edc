"""The front door: quick, quiet about what it does not need, and helpful when a word is wrong."""

import json
import os
import resource
import statistics
import subprocess
import sys
from importlib import metadata

import pytest

from distill import __main__ as cli
from runtime.cli import front_door

HEAVY = ("torch", "timm", "torchvision", "onnx", "onnxruntime", "PIL", "yaml", "rich", "tyro")


def test_help_imports_nothing_heavy():
    code = (
        f"import sys; from distill.__main__ import main; main(['--help']); print([m for m in {HEAVY} if m in"
        " sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_answers_in_under_half_a_second():
    """Median of five, in processor seconds, so that other work on the machine does not count."""
    taken = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "distill", "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert statistics.median(taken) < 0.5


@pytest.mark.parametrize("command", ["train", "eval"])
def test_help_of_a_command_needs_no_training_of_anything(command, capsys):
    assert cli.main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"distill {command}" in out and "--data" in out


def test_help_of_train_explains_every_setting(capsys):
    from dataclasses import fields

    from distill.training.options import TrainOptions

    assert cli.main(["train", "--help-all"]) == 0
    out = capsys.readouterr().out
    assert [
        f.name
        for f in fields(TrainOptions)
        if f"--{f.name.replace('_', '-')}" not in out and f"--no-{f.name.replace('_', '-')}" not in out
    ] == []


def test_help_of_train_imports_no_torch():
    code = (
        "import sys\nfrom distill.__main__ import main\nmain(['train', '--help'])\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_command(argv, capsys):
    assert cli.main(argv) == (0 if argv else 2)
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in front_door.COMMANDS)
    assert "exit codes" in out


def test_help_fits_a_terminal():
    assert max(map(len, front_door.overview().splitlines())) <= 110


def test_the_version_is_that_of_the_package(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == metadata.version("large2small")


@pytest.mark.parametrize(
    ("word", "nearest"), [("trian", "train"), ("evaluate", "eval"), ("exprot", "export"), ("benhc", "bench")]
)
def test_an_unknown_command_is_answered_with_the_nearest(word, nearest, capsys):
    assert cli.main([word]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith(f"error: no command '{word}'; did you mean {nearest}?")


@pytest.mark.parametrize(
    ("argv", "nearest"),
    [
        (["train", "--epoch", "3"], "--epochs"),
        (["train", "--temperature", "4"], "--kd-temperature"),
        (["train", "--no-chanels-last"], "--no-channels-last"),
        (["eval", "x.pth", "--dta", "d"], "--data"),
    ],
)
def test_an_unknown_flag_is_answered_with_the_nearest(argv, nearest, capsys):
    assert cli.main(argv) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"unknown flag {argv[-2] if len(argv) > 2 else argv[-1]}; did you mean {nearest}?" in err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["train", "--epochs", "ten"], "ten"),
        (["train", "--kd-loss", "dkt"], "kl"),
        (["train", "stray"], "stray"),
        (["eval"], "best.pth"),
        (["train", "--lr"], "--lr"),
    ],
)
def test_a_value_that_cannot_be_read_is_one_line(argv, words, capsys):
    assert cli.main(argv) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("error: ")
    assert words.lower() in err.lower()


def test_json_of_a_failure_is_one_object(capsys):
    assert cli.main(["eval", "none.pth", "--data", "x", "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": err.removeprefix("error: ").strip(), "exit_code": 2}


def test_a_bug_of_ours_is_told_from_a_mistake_of_the_user(monkeypatch, capsys):
    import distill.commands.eval

    def broken(options):
        raise ZeroDivisionError("one\ntwo")

    monkeypatch.setattr(distill.commands.eval, "run", broken)
    assert cli.main(["eval", "x.pth"]) == 70
    assert capsys.readouterr().err.startswith(
        "error: internal error: ZeroDivisionError: one two. Set L2S_TRACEBACK=1"
    )


def test_python_m_distill_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "distill", "nothing"], capture_output=True, text=True, env=os.environ.copy()
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no command 'nothing'")


def test_export_and_bench_are_loaded_only_when_called():
    code = (
        "import sys; from distill.__main__ import main; main(['nothing']); "
        "print([m for m in sys.modules if m.split('.')[0] in ('export', 'bench')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
