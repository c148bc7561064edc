"""Alternating blocks on simulated clocks, contestants in processes of their own, and `bench compare`."""

import json
import os
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import __main__ as cli
from bench.commands import compare as command
from bench.comparing import isolated, race
from bench.comparing.race import Effort, play
from bench.subject import RunOptions
from runtime import ArtifactError, MissingError, UsageError

sys.path.insert(0, str(Path(__file__).parents[3] / "measurements"))
import compare_coverage


@dataclass
class Clock:
    seconds: float = 0.0
    calls: list[Any] = field(default_factory=list)


@dataclass
class Steady:
    """A contestant whose every call takes the same time, on a shared clock."""

    clock: Clock
    name: str
    seconds: float
    description: Any = None
    fed: str = ""

    def turn(self, calls, settle):
        self.clock.calls.append((self.name, calls, settle))
        self.clock.seconds += (calls + settle) * self.seconds
        return np.full(calls, round(self.seconds * 1e9), np.int64)


def run(*seconds, effort=None):
    clock = Clock()
    contestants = [Steady(clock, name, each) for name, each in zip("ABCD", seconds, strict=False)]
    taken = play(contestants, effort or Effort(0.01, 1e9, 5), clock=lambda: clock.seconds)
    return taken, clock.calls


def test_every_block_goes_there_and_back_and_begins_with_the_next():
    _, calls = run(0.01, 0.02, 0.01)
    names = "".join(name for name, _, _ in calls)
    assert names[:3] == "ABC"  # how long they take
    assert names[3:21] == "ABCCBA" + "BCAACB" + "CABBAC"


def test_equal_calls_stop_at_the_least_number_of_blocks():
    taken, _ = run(0.01, 0.02, 0.01)
    assert [each.shape for each in taken] == [(20, 10), (20, 4), (20, 10)]  # a turn takes 50 ms
    assert (taken[1] == 20_000_000).all()


def test_slow_calls_take_turns_of_one_and_settle_once():
    taken, calls = run(2.0, 0.001, 2.0)
    assert calls[3][1:] == (1, 1) and calls[4][1:] == (20, 2)
    assert taken[0].shape == (20, 2)


def test_time_ends_a_race_that_does_not_become_precise():
    machine = compare_coverage.Machine("autocorrelated", 0)
    contestants = [compare_coverage.Simulated(machine, factor) for factor in (1.0, 1.05, 1.0)]
    effort = Effort(1e-6, 30, 5)
    taken = play(contestants, effort, clock=lambda: machine.seconds)
    assert len(taken[0]) >= 20 and 30 < machine.seconds < 60


def test_a_race_that_is_far_too_slow_is_given_up_without_an_interval():
    taken, _ = run(5.0, 5.0, 5.0, effort=Effort(0.01, 10, 1))
    assert 2 <= len(taken[0]) < 20
    assert race.against(taken[1], taken[0], None).verdict == "cannot tell"


@pytest.mark.slow
@pytest.mark.parametrize("kind", compare_coverage.KINDS)
def test_on_simulated_machines_it_is_right_as_often_as_it_says(kind, monkeypatch):
    """100 runs; the bounds are three standard deviations of the binomial distribution below the shares that
    1,000 runs must reach (92 to 98, 93 and 90 %).
    """
    monkeypatch.setattr(race, "collector_off", nullcontext)  # collecting costs more than a simulated race
    found = compare_coverage.coverage(kind, 100, 0.05)
    assert 84 <= found["covered_percent"] <= 100
    assert found["cannot_tell_alike_percent"] >= 86
    assert found["found_percent"] >= 81


def test_an_interval_that_is_too_narrow_would_be_seen(monkeypatch):
    """The simulation is a check that can fail: with intervals a quarter as wide it does."""
    real = race.ratios.t_quantile
    monkeypatch.setattr(race.ratios, "t_quantile", lambda freedom: real(freedom) / 4)
    found = [compare_coverage.compare_once("autocorrelated", 1.05, seed)[0].median for seed in range(20)]
    assert sum(ratio.low <= 1.05 <= ratio.high for ratio in found) < 15


def opened_here(seconds):
    @contextmanager
    def inner():
        yield Steady(Clock(), str(os.getpid()), seconds, description="described", fed="fed")

    return inner()


def refuses():
    raise ArtifactError("this file is damaged")


def dies():
    os._exit(7)


class Dying:
    """A contestant whose process ends in its second turn."""

    description, fed, turns = "described", "fed", 0

    def turn(self, calls, settle):
        self.turns += 1
        return np.ones(calls, np.int64) if self.turns == 1 else os._exit(7)


@contextmanager
def dies_later():
    yield Dying()


def test_an_isolated_contestant_runs_in_another_process():
    with isolated.isolated(opened_here, 0.25) as contestant:
        assert (contestant.description, contestant.fed) == ("described", "fed")
        assert contestant.turn(3, 1).tolist() == [250_000_000] * 3
        assert contestant._process.pid != os.getpid() and contestant._process.is_alive()
    assert contestant._process.exitcode == 0


def test_an_isolated_failure_is_the_same_error_here():
    with pytest.raises(ArtifactError, match="this file is damaged"), isolated.isolated(refuses):
        pass
    with pytest.raises(MissingError, match="ended with code 7"), isolated.isolated(dies):
        pass


def test_a_process_that_dies_between_or_in_its_turns_is_named():
    """Not as the broken pipe that it is, which at the end of a command means that nobody reads stdout."""
    with isolated.isolated(dies_later) as contestant:
        assert contestant.turn(2, 0).tolist() == [1, 1]
        with pytest.raises(MissingError, match="ended with code 7 while it was timed"):
            contestant.turn(2, 0)
        with pytest.raises(MissingError, match="ended with code 7"):  # it is gone already
            contestant.turn(2, 0)


@pytest.mark.parametrize(
    ("text", "path", "threads"),
    [
        ("a.onnx", "a.onnx", 4),
        ("a.onnx@threads=1", "a.onnx", 1),
        ("user@host/a.onnx", "user@host/a.onnx", 4),
        ("user@host/a.onnx@threads=2,device=cpu", "user@host/a.onnx", 2),
    ],
)
def test_flags_of_one_artifact_stand_behind_an_at(text, path, threads):
    subject = command.parse_subject(text, RunOptions(threads=4))
    assert (str(subject.path), subject.on.threads) == (path, threads)


def test_a_file_of_that_very_name_is_meant(tmp_path):
    odd = tmp_path / "a.onnx@threads=1"
    odd.write_bytes(b"")
    subject = command.parse_subject(str(odd), RunOptions())
    assert (subject.path, subject.on.threads) == (odd, None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["STUDENT"], "artifacts to compare: 1 given, expected two or more"),
        (["STUDENT", "STUDENT@thread=1"], "unknown flag --thread; did you mean --threads"),
        (["STUDENT", "STUDENT@threads=x"], "threads"),
        (["STUDENT", "STUDENT@hint=latency"], "read by openvino only"),
        (["STUDENT", "STUDENT@help"], "help is not a flag of one artifact"),
        (["STUDENT", "STUDENT", "--precision", "0"], "expected a percentage above 0"),
        (["STUDENT", "STUDENT", "--precision", "nan"], "expected a percentage above 0"),
        (["STUDENT", "STUDENT", "--duration", "inf"], "finite"),
        (["STUDENT", "STUDENT", "--accuracy"], "--accuracy needs labeled images"),
        (["STUDENT", "missing.onnx"], "missing.onnx"),
    ],
)
def test_wrong_words_are_one_line(words, message, student, capsys):
    code = cli.main(["compare", *(word.replace("STUDENT", str(student)) for word in words)])
    printed = capsys.readouterr()
    assert code in (2, 4) and message in printed.err and printed.err.count("\n") == 1


def test_two_artifacts_with_their_answers(tiny, student, photos, tmp_path, capsys):
    """The other one names blue and red the wrong way around: 8 of 12 images flip."""
    other = tiny.write(tmp_path / "other.onnx", weights=tiny.RIGHT[[2, 1, 0]], meta=tiny.metadata())
    kept = tmp_path / "kept.json"
    words = [str(student), f"{other}@threads=1", "--data", str(photos), "--accuracy", "--threads", "1"]
    assert cli.main(["compare", *words, "--precision", "99", "--json", "--results-file", str(kept)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in found["artifacts"]] == ["student.onnx", "other.onnx@threads=1"]
    reference, this = found["artifacts"]
    assert reference["against_reference"] is None
    judged = this["accuracy_against_reference"]
    assert (judged["only_this_right"], judged["only_reference_right"]) == (0, 8)
    assert judged["difference_points"] == pytest.approx(-100 * 8 / 12)
    samples = json.loads(kept.read_text())["samples_ms"]
    assert len(samples) == 3 and len(samples[0]) == found["blocks"]
    median = np.median(samples[1])
    assert this["latency_p50_ms"] == pytest.approx(median)
    a, b = np.array(samples[0]), np.array(samples[1])
    level = np.sqrt(np.median(a, axis=1) * np.median(b, axis=1))[:, None]
    ratio = this["against_reference"]["median_ratio"]
    assert found["blocks"] == 20
    assert ratio["value"] == pytest.approx(np.median(b / level) / np.median(a / level))


def test_the_table_says_what_was_compared_and_the_noise_floor(student, capsys):
    assert cli.main(["compare", str(student), str(student), "--duration", "0.1", "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    assert "student.onnx #1" in printed and "student.onnx #2" in printed and "noise floor" in printed


def test_precision_is_a_percentage():
    assert command.parse_precision("2%") == command.parse_precision("2") == 0.02
    with pytest.raises(UsageError):
        command.parse_precision("2 points")
