"""`distill bench gate`: seeded regressions are found, and the exit code and files say so."""

import contextlib
import json
import sys
import types
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from bench import __main__ as cli
from bench.gating import measured, options, timing
from bench.measuring.setup import opened
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


def test_a_seeded_slowdown_is_found_between_two_environments(tiny, tmp_path, gated, monkeypatch):
    """Doubles of the processes, whose calls take 1 ms and 1.2 ms."""
    old, new = tiny.write(tmp_path / "old.onnx"), tiny.write(tmp_path / "new.onnx")
    asked = []

    @contextlib.contextmanager
    def doubled(setup, python):
        asked.append((setup.path, python))
        taken = 1_200_000 if setup.path == new else 1_000_000
        with opened(setup) as here:
            yield types.SimpleNamespace(
                description=here.description, fed=here.fed, turn=lambda calls, _: np.full(calls, taken)
            )

    monkeypatch.setattr(timing, "elsewhere", doubled)
    code, found = gated(new, "--baseline", old, "--python", sys.executable, seconds=60)
    (check,) = found["checks"]
    assert code == 1 and check["name"] == "slowdown" and check["measured"] == pytest.approx(20)
    assert len(found["engines"]) == 2
    assert asked == [(new, None), (old, Path(sys.executable)), (old, Path(sys.executable))]
    code, found = gated(new, "--baseline", old, "--python", sys.executable, seconds=1e-9)
    assert code == 2 and "than the 20 that an interval needs" in found["error"]


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


@pytest.fixture
def timed(student, tmp_path):
    """timed(changes): a saved latency of the artifact with 60 durations, on this machine."""

    def write(**changes):
        kept = tmp_path / "latency.json"
        words = ["latency", str(student), "--iterations", "1", "--warmup", "0", "--boundary", "compute"]
        assert cli.main([*words, "--threads", "1", "--save", str(kept), "--overwrite"]) == 0
        values = json.loads(kept.read_text()) | {"samples_ms": {"compute": [1.0, 1.1] * 30}}
        kept.write_text(json.dumps(values | changes))
        return kept

    return write


@pytest.fixture
def untimed(monkeypatch):
    """Whatever is timed fails the test."""

    def forbidden(*_):
        raise AssertionError("timed before it was refused")

    monkeypatch.setattr(timing, "play", forbidden)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"threads": 8}, "another number of threads (8 against 1)"),
        ({"device": "cuda"}, "another device (cuda against cpu)"),
        ({"provider": "CUDAExecutionProvider"}, "another provider"),
        ({"hint": "throughput"}, "another hint"),
        ({"batch": 2}, "another batch"),
        ({"compute": {"input": "photos, preprocessed, 1x3x9x9 float32"}}, "another input (photos"),
        ({"compute": None}, "compute is not what distill bench latency writes"),
        ({"samples_ms": {"compute": [1.0] * 3}}, "3 durations make no interval"),
        ({"samples_ms": {}}, "holds no durations of the boundary compute"),
    ],
)
def test_durations_of_another_kind_are_refused_before_timing(timed, student, gated, untimed, changes, said):
    code, found = gated(student, "--baseline", timed(**changes))
    assert code in (2, 4) and said in found["error"]


def test_another_version_of_an_engine_is_compared_and_what_is_not_judged_is_said(
    timed, student, photos, gated
):
    kept = timed(engine="onnxruntime 0.1")
    fed = json.loads(kept.read_text())["compute"]["input"]
    words = (student, "--baseline", kept, "--max-slowdown", "1000000%")
    code, found = gated(*words)
    assert code == 0 and "onnxruntime 0.1" in found["engines"][1] and len(found["engines"]) == 2
    fed = fed.replace(fed.split(", 1x")[0], f"{photos}, preprocessed")
    code, found = gated(*words[:2], timed(compute={"input": fed}), *words[3:], "--data", photos)
    assert code == 0 and found["engines"][2] == "latency.json holds no answers, so accuracy is not judged"


@pytest.mark.parametrize("kind", ["table", "compare", "gate", "robustness"])
def test_a_result_that_holds_nothing_to_compare_with_is_refused(
    tmp_path, student, photos, gated, untimed, kind
):
    kept = tmp_path / "kept.json"
    kept.write_text(json.dumps({"large2small_result": 1, "kind": kind}))
    code, found = gated(student, "--baseline", kept, "--data", photos, "--max-latency", "1s")
    assert code == 2 and f"a result of bench {kind}, which is not compared with" in found["error"]


def test_answers_are_held_against_the_images_before_timing(
    student, photos, tmp_path, gated, untimed, monkeypatch
):
    kept = tmp_path / "old.json"
    assert cli.main(["accuracy", str(student), str(photos), "--save", str(kept), "--threads", "1"]) == 0
    asked = (student, "--baseline", kept)
    for words, said in (
        ((), "Add --data photos"),
        (("--max-latency", "1s"), "Add --data photos"),
        (("--data", photos, "--max-slowdown", "5"), "holds no latency"),
        (("--data", photos, "--limit", 6), "answers are to other images"),
    ):
        code, found = gated(*asked, *words)
        assert code == 2 and said in found["error"]
    (tmp_path / "other").mkdir()
    for folder in photos.iterdir():
        folder.rename(tmp_path / "other" / folder.name)
    path = next((tmp_path / "other").rglob("*.png"))
    path.write_bytes(path.read_bytes() + b"\0")
    code, found = gated(*asked, "--data", tmp_path / "other")
    assert code == 2 and "answers are to other images" in found["error"]
    values = json.loads(kept.read_text())
    del values["answers"]["images_sha256"]  # as an older version wrote it
    kept.write_text(json.dumps(values))
    code, found = gated(*asked, "--data", tmp_path / "other")
    assert code == 2 and "answers are to other images" in found["error"]
    monkeypatch.setattr(measured.worker, "peak_bytes", lambda: None)
    code, found = gated(student, "--max-memory", "1GB")
    assert code == 3 and "does not tell the memory" in found["error"]


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
        (["--max-latency", "9" * 400 + "s"], "such as 5ms"),
        (["--max-memory", "9" * 400], "such as 200MB"),
        (["--baseline", "old.onnx", "--max-slowdown", "9" * 400], "such as 5%"),
        (["--max-latency", "1s", "--junit", "x/../a", "--save", "a"], "both write a"),
    ],
)
def test_what_cannot_be_is_refused_before_measuring(words, said, student, capsys):
    assert cli.main(["gate", str(student), *words]) == 2
    assert said in capsys.readouterr().err


def test_units():
    assert [options.parse_time(text) for text in ("5ms", "800us", "0.1s")] == pytest.approx([5, 0.8, 100])
    assert [options.parse_bytes(text) for text in ("200MB", "1GiB", "5")] == [200e6, 2**30, 5]
    with pytest.raises(UsageError):
        options.parse_percent("-5%")
