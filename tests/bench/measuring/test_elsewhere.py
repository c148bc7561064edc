"""An artifact in a new process: the same answers, its memory, and failures as one line."""

import io
import json
import re
import sys
import types
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

import bench
from bench import accuracy
from bench.accuracy import Answers
from bench.clock import calls
from bench.measuring import elsewhere as module
from bench.measuring import setup as setups
from bench.measuring import worker
from bench.measuring.elsewhere import elsewhere
from bench.measuring.setup import Setup, opened
from bench.subject import Description, RunOptions, open_artifact
from runtime import ArtifactError, DataError, MissingError, UsageError
from runtime.images import open_images

ONE = RunOptions(threads=1)


def test_another_interpreter_takes_turns_and_gives_the_same_answers(tiny, photos, tmp_path):
    held = b"\1" * 400_000_000  # more than the new process needs, which must not be said to be its own
    path = tiny.write(tmp_path / "a.onnx", [[0, 0, 1], [0, 1, 0], [0, 1, 0]], tiny.metadata())
    with elsewhere(Setup(path, ONE), Path(sys.executable)) as other:
        durations = other.turn(5, 1)
        assert durations.shape == (5,) and durations.dtype == np.int64 and (durations > 0).all()
        assert other.description.file == str(path) and other.description.threads == 1
        memory = other.memory()
        assert 5e6 < memory.before < memory.now <= memory.peak < len(held)
        found = other.answers(str(photos), "val", None)
        with pytest.raises(DataError, match="no such folder"):
            other.answers("nowhere", "val", None)
    with open_artifact(path, ONE) as predictor:
        own = Answers.of(accuracy.evaluate(predictor, open_images(str(photos), "val")))
    assert found.same_images(own) and found.classes.tolist() == own.classes.tolist()
    assert found.right.sum() == 8


def test_a_peak_is_read_where_linux_counts_this_process_alone(tmp_path, monkeypatch):
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t   20 kB\nVmRSS:\t   10 kB\n")
    monkeypatch.setattr(worker, "STATUS", tmp_path / "status")
    assert (worker.peak_bytes(), worker.memory_bytes()) == (20 * 1024, 10 * 1024)
    monkeypatch.setattr(worker, "STATUS", tmp_path / "none")
    assert worker.memory_bytes() is None


def test_the_start_counts_from_before_the_process_on_a_clock_that_nobody_sets(student, monkeypatch):
    """A double of the process: its first answer is at 12 ms of the clock, which was at 7 before the start."""
    happened = []
    description = {each.name: None for each in fields(Description)}
    said = {"ready": {"description": description, "fed": "", "first_answer_ns": 12e6}}

    def start(*_):
        happened.append("start")
        pipes = {"stdin": io.StringIO(), "stdout": io.StringIO(json.dumps(said))}
        return types.SimpleNamespace(**pipes, wait=lambda *_: 0)

    monkeypatch.setattr(module, "_start", start)
    monkeypatch.setattr(module.time, "monotonic_ns", lambda: happened.append("clock") or 7_000_000)
    with elsewhere(Setup(student, ONE)) as process:
        assert process.cold_ms == 5
    assert happened == ["clock", "start"]


def test_the_first_answer_waits_for_no_images_and_no_hash(student, monkeypatch):
    def forbidden(*_):
        raise AssertionError("not before the first answer")

    monkeypatch.setattr(calls, "_synthetic_jpeg", forbidden)
    monkeypatch.setattr(setups, "describe", forbidden)
    with open_artifact(student, ONE) as predictor:
        fed, call = setups.called(predictor, Setup(student, ONE))
        assert "synthetic" in fed and call().shape == (1, 3)


def test_what_fails_there_is_the_same_error_here(tmp_path, monkeypatch):
    """Also in a folder whose files have the names of modules."""
    for name in ("bench", "numpy", "runtime"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the file of a user was run')")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with (
        pytest.raises(ArtifactError, match=r"broken\.onnx: not an ONNX file"),
        elsewhere(Setup(tmp_path / "broken.onnx", ONE)),
    ):
        pass


def test_an_interpreter_that_is_none_is_named(student, tmp_path):
    with (
        pytest.raises(MissingError, match=r"nowhere/python: cannot be started \(No such file"),
        elsewhere(Setup(student, ONE), tmp_path / "nowhere" / "python"),
    ):
        pass


def test_a_process_that_ends_is_named_with_its_last_words(student, tmp_path):
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho first >&2\necho No module named numpy >&2\nexit 3\n")
    fake.chmod(0o755)
    with (
        pytest.raises(MissingError, match=r"ended with code 3 while .*\(No module named numpy\).*pip"),
        elsewhere(Setup(student, ONE), fake),
    ):
        pass


@pytest.mark.parametrize("said", ["Welcome!", "5", "{}"])
def test_a_line_that_an_interpreter_prints_is_quoted(student, tmp_path, said):
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\necho '{said}'\nexec sleep 60\n")
    fake.chmod(0o755)
    with (
        pytest.raises(MissingError, match=f"python printed '{re.escape(said)}' where"),
        elsewhere(Setup(student, ONE), fake),
    ):
        pass


def test_a_process_that_closes_its_output_and_goes_on_is_ended(student, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nexec sleep 60 >&-\n")
    fake.chmod(0o755)
    with pytest.raises(MissingError, match="ended with code -9"), elsewhere(Setup(student, ONE), fake):
        pass


def test_only_bench_and_runtime_are_put_where_the_other_looks(tmp_path):
    """What is installed beside them here would hide the other environment's own packages."""
    assert sorted(path.name for path in module.copied(tmp_path).iterdir()) == ["bench", "runtime"]
    assert Path(bench.__file__).read_bytes() == (tmp_path / "bench" / "__init__.py").read_bytes()


def test_a_setup_survives_json_and_an_impossible_boundary_is_said(tiny, tmp_path):
    path = tiny.write(tmp_path / "a.onnx")  # no preprocessing
    setup = Setup(path, ONE, boundary="end-to-end", batch=2)
    assert Setup.from_dict(setup.to_dict()) == setup
    with pytest.raises(UsageError, match="--boundary end-to-end: the file does not say"), opened(setup):
        pass
