"""Every failure of a command is one line with an exit code."""

from __future__ import annotations

import errno
import json
import os
import sys

import pytest

from runtime import ArtifactError, DataError, GateError, MissingError, UsageError
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
