"""`distill search`: what it refuses, and one search from its first step to the page."""

import contextlib
import io
import json
import sys
import time

import pytest
from tiny_training import write_noise

from distill import __main__ as cli
from large2small.commands import search as command
from large2small.searching import processes, words, worker
from large2small.searching.candidates import Candidate
from large2small.searching.journal import Timed
from large2small.searching.result import Found, Point
from runtime.errors import GateError


def typed(*more, output):
    return cli.main(["search", "--output", str(output), *more])


DIGITS = ["--data", "digits"]
FAST = [*DIGITS, "--max-latency", "5ms"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["--max-latency", "5ms"], "no data given"),
        (DIGITS, "no limit given"),
        ([*DIGITS, "--max-latency", "5"], "--max-latency 5: expected a time above 0 with its unit"),
        ([*FAST, "--budget", "soon"], "--budget soon: expected a time"),
        ([*FAST, "--candidates", "nosuch*"], "no network matches nosuch*"),
        ([*DIGITS, "--student", "resnet20"], "--student: a search has candidates instead"),
        ([*DIGITS, "--pretrained"], "pretrained True: expected none"),
        ([*DIGITS, "--teacher-labels", "x"], "expected none: give the teacher"),
        (["--data", "nowhere", "--max-latency", "5ms"], "nowhere"),
        ([*FAST, "--teacher-ckpt", "no.pth"], "no.pth: no such checkpoint"),
        ([*FAST, "--engine-backend", "tensorrt"], "expected an engine that opens .onnx files"),
        ([*FAST, "--one-in", "1"], "one-in 1: expected 2 or more"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_and_nothing_is_written(line, said, tmp_path, capsys):
    assert typed(*line, output=tmp_path / "s") == 2
    captured = capsys.readouterr()
    lines = [each for each in captured.err.splitlines() if each.startswith("error: ")]
    assert len(lines) == 1 and said in lines[0] and captured.out == ""
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("missing", "line", "extras"),
    [
        (["onnx", "onnxslim", "onnxruntime"], FAST, "[export,cpu]"),
        (["openvino"], [*FAST, "--engine-backend", "openvino"], "[openvino]"),
    ],
)
def test_all_that_is_missing_is_said_at_once(missing, line, extras, tmp_path, monkeypatch, capsys):
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)  # what python does not import and does not find
    assert typed(*line, output=tmp_path / "s") == 3
    said = capsys.readouterr().err
    assert all(name in said for name in missing) and extras in said and not (tmp_path / "s").exists()


def test_json_is_one_object_also_without_a_winner(monkeypatch, tmp_path, capsys):
    points = [Point(Candidate("a", (), 32), "over 5 ms", Timed(1.0, 9.0, None, None), None)]
    found = Found(tmp_path, 5.0, points, None, "", 1.0, [], [], "digits")
    monkeypatch.setattr(command, "searched", lambda options: (found, GateError("none is within 5 ms")))
    assert typed(*FAST, "--json", output=tmp_path / "s") == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["search"]["candidates"][0]["latency_p50_ms"] == 9.0
    assert captured.err == "error: none is within 5 ms\n"
    assert typed(*FAST, output=tmp_path / "s") == 1
    captured = capsys.readouterr()
    assert "over 5 ms" in captured.out and captured.err == "error: none is within 5 ms\n"


@pytest.fixture
def in_this_process(monkeypatch, without_report):
    """Steps run here, where torch is loaded already; the report, too."""
    monkeypatch.setattr(worker, "_end_with", lambda starter: None)
    monkeypatch.setattr(words, "SECONDS", 0.05)

    def run(line, log, seconds=0.0):
        out, began = io.StringIO(), time.monotonic()
        monkeypatch.setattr(sys, "argv", ["-c", "1", *line])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()) as err:
            code = worker.main()
        printed = json.loads(out.getvalue()) if out.getvalue().startswith("{") else {}
        return processes.Finished(code, printed, err.getvalue() if code else "", time.monotonic() - began)

    monkeypatch.setattr(processes, "run", run)


@pytest.mark.slow
def test_a_whole_search_finds_a_winner_whose_command_trains_it_again(
    tmp_path, in_this_process, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_noise(tmp_path / "d", 16, 8)
    common = ["--data", "npz:d", "--img-size", "16", "--batch", "4", "--epochs", "1", "--device", "cpu"]
    line = [*common, "--max-latency", "10s", "--candidates", "resnet20 width=0.25", "resnet20 nothing=1"]
    assert typed(*line, output="s") == 0
    captured = capsys.readouterr()
    assert "resnet20 nothing=1 @16: failed: " in captured.err
    found = json.loads((tmp_path / "s" / "search.json").read_text())
    assert found["kind"] == "table" and len(found["rows"]) == 2
    outcomes = {each["name"]: each["outcome"] for each in found["search"]["candidates"]}
    winner = found["search"]["winner"]
    assert outcomes[winner["name"]] == "winner" and winner["images"] == 8
    assert outcomes["resnet20 nothing=1 @16"].startswith("failed: ")
    again = captured.out.splitlines()[-1]
    assert again == found["search"]["reproduce"] and again.startswith("distill train --data ")
    assert (tmp_path / "s" / "report.html").is_file() and (tmp_path / "s" / "winner.onnx").is_file()
    assert cli.main(["bench", "table", "s/search.json"]) == 0

    assert cli.main([*again.split()[1:], "--no-report"]) == 0
    folder = next((tmp_path / "runs").iterdir())
    one, other = (
        json.loads((each / "result.json").read_text()) for each in (folder, tmp_path / winner["run"])
    )
    assert one["best"]["loss_nats"] == other["best"]["loss_nats"]
