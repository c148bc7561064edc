"""An artifact in a new process: the same answers, its memory, and failures as one line."""

import sys
from pathlib import Path

import numpy as np
import pytest

import bench
from bench import accuracy
from bench.accuracy import Answers
from bench.measuring import elsewhere as module
from bench.measuring.elsewhere import elsewhere
from bench.measuring.setup import Setup, opened
from bench.subject import RunOptions, open_artifact
from runtime import ArtifactError, DataError, MissingError, UsageError
from runtime.images import open_images

ONE = RunOptions(threads=1)


def test_another_interpreter_takes_turns_and_gives_the_same_answers(tiny, photos, tmp_path):
    path = tiny.write(tmp_path / "a.onnx", [[0, 0, 1], [0, 1, 0], [0, 1, 0]], tiny.metadata())
    with elsewhere(Setup(path, ONE), Path(sys.executable)) as other:
        durations = other.turn(5, 1)
        assert durations.shape == (5,) and durations.dtype == np.int64 and (durations > 0).all()
        assert other.description.file == str(path) and other.description.threads == 1
        assert other.cold_ms > 10 * durations.max() / 1e6  # starting an interpreter takes longer than a call
        memory = other.memory()
        assert 5e6 < memory.before < memory.now and memory.peak > 1.5 * memory.before
        found = other.answers(str(photos), "val", None)
        with pytest.raises(DataError, match="no such folder"):
            other.answers("nowhere", "val", None)
    with open_artifact(path, ONE) as predictor:
        own = Answers.of(accuracy.evaluate(predictor, open_images(str(photos), "val")))
    assert found.same_images(own) and found.classes.tolist() == own.classes.tolist()
    assert found.right.sum() == 8


def test_what_fails_there_is_the_same_error_here(tmp_path):
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
