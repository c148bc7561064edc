"""`bench robustness` from its words to its output."""

import json

import pytest

from bench import __main__ as cli
from bench.results import saved

WRONG_RED = [[0, 0, 1], [0, 1, 0], [0, 1, 0]]
SHORT = ["--corruptions", "contrast,shot_noise", "--severities", "5,1", "--parts", "corruptions,shifts"]


@pytest.fixture
def other(tiny, tmp_path):
    """It takes red for blue: errors of 4 in 12."""
    return tiny.write(tmp_path / "other.onnx", WRONG_RED, tiny.metadata())


def test_the_result_is_saved_as_it_is_printed(student, other, photos, tmp_path, capsys):
    file = tmp_path / "r.json"
    argv = ["robustness", str(student), str(other), "--data", str(photos), *SHORT, "--save", str(file)]
    assert cli.main([*argv, "--relative-to", str(other), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n"], found["relative_to"]) == (12, str(other))
    assert found["asked"]["severities"] == [1, 5] and found["asked"]["constants"] == "cifar"
    first, second = found["artifacts"]
    assert first["file"] == str(other) and second["file"] == str(student)
    assert first["clean_error"]["percent"] == pytest.approx(100 / 3)
    assert second["clean_error_difference"]["percent"] == pytest.approx(-100 / 3)
    assert first["mce"]["percent"] == 100
    assert list(second["corruptions"]) == ["shot_noise", "contrast"]
    assert second["corruptions"]["contrast"] == {
        "error_percent": [0, 0],  # a solid color keeps its mean
        "mean_error_percent": 0,
        "ce_percent": 0,
        "relative_ce_percent": None,  # the reference loses nothing by contrast
    }
    assert second["shifts"]["mean_consistency_percent"] == 100
    read = saved.read(file)
    assert read.kind == "robustness" and read.values["artifacts"] == found["artifacts"]
    assert "--relative-to" in read.command and "bench robustness" in read.command
    assert cli.main(argv) == 2  # not overwritten
    assert "exists" in capsys.readouterr().err


def test_the_table_names_artifacts_conditions_and_intervals(student, other, photos, capsys):
    assert cli.main(["robustness", str(other), str(student), "--data", str(photos), *SHORT]) == 0
    out = capsys.readouterr().out
    assert "n=12" in out and "student.onnx" in out and "33.33" in out
    assert "CIFAR-10-C" in out and "error / that of other.onnx" in out
    assert "95 % intervals, student.onnx: clean error 0.00 to" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--parts", "oclusion"], "did you mean occlusion?"),
        (["--severities", "6"], "Expected all, or some of 1,2,3,4,5"),
        (["--corruptions", ","], "--corruptions is empty"),
        (["--images", "0"], "expected 1 or more"),
    ],
)
def test_words_that_are_not_known_are_refused(student, photos, words, said, capsys):
    assert cli.main(["robustness", str(student), "--data", str(photos), *words]) == 2
    assert said in capsys.readouterr().err


def test_a_result_of_robustness_is_not_one_of_latency(student, photos, tmp_path, capsys):
    file = tmp_path / "r.json"
    argv = ["robustness", str(student), "--data", str(photos), *SHORT, "--images", "3", "--save", str(file)]
    assert cli.main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 3
    assert cli.main(["table", str(file)]) == 2
    assert "a result of bench robustness" in capsys.readouterr().err
