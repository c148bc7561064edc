"""Results as files: what is in them, and that a damaged one is refused in one line."""

import json
import shlex
import shutil

import numpy as np
import pytest

from bench import __main__ as cli
from bench import accuracy
from bench.accuracy import Answers
from bench.commands import latency
from bench.results import saved
from bench.subject import RunOptions, open_artifact
from runtime import ArtifactError
from runtime.images import open_images

GOOD = {"large2small_result": 1, "kind": "accuracy"}


@pytest.fixture
def answered(student, photos, tmp_path):
    """The saved accuracy of an artifact that is always right."""
    path = tmp_path / "accuracy.json"
    assert cli.main(["accuracy", str(student), str(photos), "--save", str(path)]) == 0
    return path


def test_an_accuracy_keeps_every_answer_and_the_command(answered, student, photos, capsys):
    found = saved.read(answered)
    answers = saved.read_answers(found)
    assert found.kind == "accuracy" and found.values["top1_percent"] == 100
    assert answers.indices.tolist() == list(range(12)) and answers.right.all()
    assert answers.classes.tolist() == answers.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    words = shlex.split(found.command)
    assert words[:3] == ["distill", "bench", "accuracy"] and str(photos) in words
    capsys.readouterr()
    assert cli.main(words[2:]) == 2  # the same command again: the file is not overwritten
    assert "--overwrite" in capsys.readouterr().err


def test_the_command_holds_what_is_not_a_default(tmp_path):
    options = latency.Options(engine=tmp_path / "a b.onnx", threads=2, cuda_graph=False, percentiles="50")
    said = shlex.split(saved.command_line("bench latency", options))
    assert said == [
        *("distill", "bench", "latency", "--engine", str(tmp_path / "a b.onnx")),
        *("--percentiles", "50", "--threads", "2"),
    ] or set(said[3:]) == {"--engine", str(tmp_path / "a b.onnx"), "--percentiles", "50", "--threads", "2"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x89PNG", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "not a result of distill bench"),
        (b'{"kind": "latency"}', "format None of results; this version reads 1"),
        (b'{"kind": "latency", "large2small_result": 2}', "format 2 of results"),
        (b'{"kind": "latency", "compute": {"latency_p50_ms": 1' + b"0" * 400 + b"}}", "too large"),
        (b'{"kind": "latency", "compute": {"latency_p50_ms": 1e999}}', "too large"),
    ],
)
def test_another_file_is_refused(tmp_path, content, said):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=said):
        saved.read(path)


@pytest.mark.parametrize(
    "answers",
    [
        None,
        {"indices": [0]},
        {"indices": [], "labels": [], "classes": [], "right": []},
        {"indices": [0, 1], "labels": [0], "classes": [0], "right": [1]},
        {"indices": [0.5], "labels": [0], "classes": [0], "right": [1]},
        {"indices": [True], "labels": [0], "classes": [0], "right": [1]},
        {"indices": [2**70], "labels": [0], "classes": [0], "right": [1]},
    ],
)
def test_answers_that_are_none_are_refused(tmp_path, answers):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(GOOD | {"answers": answers}))
    with pytest.raises(ArtifactError, match=r"--save"):
        saved.read_answers(saved.read(path))


def test_other_images_are_told_apart(answered):
    one = saved.read_answers(saved.read(answered))
    other = Answers(one.indices + 1, one.labels, one.classes, one.right)
    assert one.same_images(one) and not one.same_images(other)
    assert not one.same_images(Answers(one.indices, np.roll(one.labels, 1), one.classes, one.right))


def test_another_folder_of_as_many_images_is_told_apart_and_a_moved_one_is_not(
    answered, student, photos, tmp_path
):
    def asked(folder):
        with open_artifact(student, RunOptions()) as predictor:
            return Answers.of(accuracy.evaluate(predictor, open_images(str(folder), "val")))

    one = saved.read_answers(saved.read(answered))
    moved, other = shutil.copytree(photos, tmp_path / "moved"), shutil.copytree(photos, tmp_path / "other")
    path = next(other.rglob("*.png"))
    path.write_bytes(path.read_bytes() + b"\0")  # the same pixels and names, but not the same file
    assert one.images_sha256 and one.same_images(asked(moved)) and not one.same_images(asked(other))
