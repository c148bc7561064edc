"""`distill bench gate`: seeded regressions are found, and the exit code and files say so."""

import json
import sys
from xml.etree import ElementTree

import pytest

from bench import __main__ as cli
from bench.commands import gate
from runtime import UsageError

QUICK = ("--threads", "1", "--warmup", "1")
ALL_BLUE = [[1, 1, 1], [0, 0, 0], [0, 0, 0]]


@pytest.fixture
def gated(capsys):
    """gated(words): exit code, the object that --json prints."""

    def call(*words, seconds=0.3):
        capsys.readouterr()
        code = cli.main(["gate", *map(str, words), *QUICK, "--duration", str(seconds), "--json"])
        return code, json.loads(capsys.readouterr().out)

    return call


def test_a_seeded_loss_of_accuracy_is_found_against_artifact_and_saved_answers(
    tiny, student, photos, tmp_path, gated
):
    worse = tiny.write(tmp_path / "worse.onnx", ALL_BLUE, tiny.metadata())
    kept, junit = tmp_path / "old.json", tmp_path / "gate.xml"
    assert cli.main(["accuracy", str(student), str(photos), "--save", str(kept), "--threads", "1"]) == 0
    asked = (worse, "--data", photos, "--min-agreement", 90, "--max-slowdown", "900%")
    for more in (("--baseline", student), ("--baseline", kept, "--junit", junit)):
        code, found = gated(*asked[: 5 if kept in more else 7], *more)
        failed = {check["name"]: check["measured"] for check in found["checks"] if not check["passed"]}
        assert code == 1 and failed == {"drop": pytest.approx(200 / 3), "agreement": pytest.approx(100 / 3)}
    assert len(ElementTree.parse(junit).getroot().findall(".//failure")) == 2
    code, found = gated(student, "--baseline", kept, "--data", photos, "--min-agreement", 100)
    assert code == 0 and found["passed"]


def test_a_seeded_slowdown_is_found_between_two_environments(tiny, tmp_path, gated):
    """The same interpreter stands for the other one; the new file has 144 times the work."""
    old, new = tiny.write(tmp_path / "old.onnx"), tiny.write(tmp_path / "new.onnx", size=(512, 512))
    code, found = gated(new, "--baseline", old, "--python", sys.executable, seconds=0.0001)
    assert code == 2 and "than the 20 that an interval needs" in found["error"]
    new = tiny.write(tmp_path / "new.onnx", size=(96, 96))
    code, found = gated(new, "--baseline", old, "--python", sys.executable, seconds=2)
    (check,) = found["checks"]
    assert code == 1 and check["name"] == "slowdown" and check["measured"] > 10
    assert len(found["engines"]) == 2


def test_a_saved_latency_is_compared_on_the_same_machine_only(student, tmp_path, gated, capsys):
    kept = tmp_path / "old.json"
    argv = ["latency", str(student), "--iterations", "60", "--threads", "1", "--save", str(kept)]
    assert cli.main(argv) == 0
    capsys.readouterr()
    code, found = gated(student, "--baseline", kept, "--max-slowdown", "10000%", "--max-latency", "60s")
    assert code == 0 and [check["name"] for check in found["checks"]] == ["latency", "slowdown"]
    values = json.loads(kept.read_text())
    kept.write_text(json.dumps(values | {"fingerprint": values["fingerprint"] | {"cpu": "Another"}}))
    code, found = gated(student, "--baseline", kept)
    assert code == 2 and "another cpu" in found["error"]


def test_limits_that_do_not_hold_are_the_reasons(student, tmp_path, capsys):
    argv = [
        "gate",
        str(student),
        *QUICK,
        "--duration",
        "0.1",
        "--max-latency",
        "0.001us",
        "--max-memory",
        "1MB",
    ]
    kept = tmp_path / "gate.json"
    assert cli.main([*argv, "--save", str(kept)]) == 1
    out, err = capsys.readouterr()
    assert "median latency" in err and "; peak resident memory" in err and len(err.splitlines()) == 1
    assert out.count(" NO ") == 2
    assert json.loads(kept.read_text())["kind"] == "gate"
    assert cli.main([*argv, "--save", str(kept)]) == 2 and "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no limit given"),
        (["--max-drop", "1"], "--baseline old.onnx"),
        (["--max-slowdown", "5%"], "--baseline old.onnx"),
        (["--max-latency", "5"], "with its unit"),
        (["--max-latency", "0ms"], "above 0"),
        (["--max-memory", "many"], "such as 200MB"),
        (["--baseline", "old.onnx", "--max-slowdown", "fast"], "such as 5%"),
        (["--baseline", "old.onnx", "--min-agreement", "98"], "--data photos"),
        (["--baseline", "old.json", "--python", "python"], "is a saved result"),
        (["--max-memory", "1MB", "--split", "test"], "train, val"),
    ],
)
def test_what_cannot_be_is_refused_before_measuring(words, said, student, capsys):
    assert cli.main(["gate", str(student), *words]) == 2
    assert said in capsys.readouterr().err


def test_units():
    assert [gate.parse_time(text) for text in ("5ms", "800us", "0.1s")] == pytest.approx([5, 0.8, 100])
    assert [gate.parse_bytes(text) for text in ("200MB", "1GiB", "5")] == [200e6, 2**30, 5]
    with pytest.raises(UsageError):
        gate.parse_percent("-5%")
