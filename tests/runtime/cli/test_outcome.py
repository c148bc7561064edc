"""Every failure of a command is one line with an exit code."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import ArtifactError, DataError, GateError, MissingError, UsageError, files
from runtime.cli import outcome


def failing(error: BaseException):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GateError("g"), 1),
        (UsageError("u"), 2),
        (DataError("d"), 2),
        (MissingError("m"), 3),
        (ArtifactError("a"), 4),
        (KeyboardInterrupt(), 130),
        (OSError(errno.ENOSPC, "full"), 3),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 3),
        (OSError(errno.EFBIG, "File too large", "x.rows"), 3),
        (ModuleNotFoundError("no torch", name="torch"), 3),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300), 2),
        (PermissionError(errno.EACCES, "Permission denied", b"/srv/secret"), 2),
        (OSError(errno.ENAMETOOLONG, "no file is named"), 70),
        (MemoryError(), 3),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 3),
        (ValueError("two\nlines"), 70),
        (OSError(errno.EIO, "i/o"), 70),
    ],
)
def test_a_failure_is_one_line_on_stderr_and_its_exit_code(error, code, capsys):
    assert outcome.run(failing(error)) == code
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert err.startswith("error: ")


def test_a_path_that_cannot_be_opened_is_named_and_kept_short(capsys):
    outcome.run(failing(OSError(errno.ENAMETOOLONG, "File name too long", "x" * 5000)))
    assert (
        capsys.readouterr().err == f"error: {'x' * 40}...{'x' * 20}: cannot be opened (File name too long)\n"
    )


def test_a_missing_package_names_the_extra(capsys):
    outcome.run(failing(ModuleNotFoundError("no", name="torch.nn")))
    assert 'pip install "large2small[train]"' in capsys.readouterr().err


def test_with_json_a_failure_is_one_object_on_stdout(capsys):
    assert outcome.run(failing(ArtifactError("a.onnx: broken")), as_json=True) == 4
    assert json.loads(capsys.readouterr().out) == {"error": "a.onnx: broken", "exit_code": 4}


def test_a_command_that_returns_nothing_succeeds():
    assert outcome.run(lambda: None) == 0
    assert outcome.run(lambda: 1) == 1


def test_only_stdout_may_break_in_silence(monkeypatch, capsys):
    """A pipe to another process that breaks is a failure; one to `head` is not."""

    def breaks():
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(outcome, "_is_stdout_closed", lambda: False)
    assert outcome.run(breaks) == outcome.INTERNAL_ERROR
    assert "Broken pipe" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs pipes of POSIX")
def test_a_pipe_that_nobody_reads_is_known(monkeypatch):
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert not outcome._is_stdout_closed()
        os.close(reading)
        assert outcome._is_stdout_closed()
        monkeypatch.undo()


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("number", outcome.STOPS)
def test_a_signal_ends_a_command_and_takes_its_temporary_file_along(number, tmp_path, capsys):
    before = signal.getsignal(number)

    def command():
        with files.replacing(tmp_path / "out.bin") as file:
            file.write(b"half")
            os.kill(os.getpid(), number)

    assert outcome.run(command) == {signal.SIGTERM: 143, signal.SIGHUP: 129}[number]
    assert capsys.readouterr().err == f"error: stopped by {signal.Signals(number).name}\n"
    assert os.listdir(tmp_path) == []
    assert signal.getsignal(number) == before


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_second_signal_does_not_stop_the_tidying():
    tidied = []

    def command():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
            tidied.append(True)

    assert outcome.run(command) == 143
    assert tidied == [True]


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_signal_that_the_caller_ignores_stays_ignored():
    """As nohup leaves SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert outcome.run(lambda: os.kill(os.getpid(), signal.SIGHUP)) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_was_forked_meanwhile_ends_by_the_signal_itself():
    def command():
        child = os.fork()
        if not child:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(5)  # not reached
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert outcome.run(command) == -signal.SIGTERM


FULL = Path("/dev/full")


def program(words, **streams):
    """distill WORDS in a process of its own."""
    command = [sys.executable, "-m", "distill", *words.split()]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60, **streams)


@pytest.mark.skipif(not FULL.exists(), reason="a disk that is full, on Linux")
@pytest.mark.parametrize("words", ["--help", "env --json", "eval --help"])
def test_a_full_disk_behind_stdout_is_one_line(words):
    with FULL.open("w") as full:
        done = program(words, stdout=full)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert "no space left on the disk" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="a shell of POSIX")
@pytest.mark.parametrize(
    ("shell", "code", "said"),
    [
        ("{} recipes >&-", 0, ""),
        ("{} recipes >&- 2>&-", 0, ""),
        ("{} bench latency no.onnx 2>&-", 2, ""),
        ("mkdir d; cd d; rmdir ../d; {} eval no.pth", 2, "error: the working folder was removed. "),
        ("{} env | true; exit ${{PIPESTATUS[0]}}", 0, ""),
    ],
)
def test_streams_and_folders_that_are_not_there(shell, code, said, tmp_path):
    line = shell.format(f"{sys.executable} -m distill")
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == code and done.stderr.startswith(said) and len(done.stderr) < 200


def test_too_little_memory_for_the_libraries_is_said():
    found = outcome.as_ours(ImportError("libtorch.so: failed to map segment from shared object"))
    assert found.exit_code == 3 and "out of memory while libraries are loaded" in str(found)
