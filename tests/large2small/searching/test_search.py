"""A whole search in which the commands are played: what is timed, trained, dropped, resumed, out of time."""

import json
import math
import shutil
from pathlib import Path

import pytest

from distill.run.options import TrainOptions
from large2small.searching import processes
from large2small.searching.candidates import Candidate
from large2small.searching.journal import opened
from large2small.searching.processes import Finished
from large2small.searching.search import Search
from large2small.searching.steps import Asked
from large2small.searching.times import Clock
from large2small.searching.words import Engine
from runtime.errors import GateError, UsageError

LATENCY = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0, "slow": 9.0}
"""Milliseconds of each network."""
GROWTH = {"a": 10, "b": 20, "c": 30, "d": 5, "slow": 50}
"""Top-1 is 40 % and this times the logarithm of the epochs: `c` is the best of those that are fast enough."""
HOURS = {"untrained": 4.0, "bench": 3.0, "label": 10.0, "train": 20.0, "export": 5.0}
"""Seconds of each command; trainings and labels for each epoch."""


class Stage:
    """Plays the commands, remembers them, and moves the clock."""

    def __init__(self, monkeypatch):
        self.played, self.now, self.failing, self.killed_at = [], 0.0, {}, math.inf
        self.answered = 0
        """Epochs of the teacher's answers that are there."""
        monkeypatch.setattr(processes, "run", self.run)

    def run(self, words, log, seconds=math.inf):
        if len(self.played) >= self.killed_at:
            raise KeyboardInterrupt
        kind = words[0]
        self.played.append(" ".join(words))
        epochs = self._flag(words, "--epochs", 1) if kind in ("train", "label") else 1
        took = HOURS[kind] * (int(epochs) - (self.answered if kind == "label" else 0))
        if took > seconds:
            self.now += seconds
            return Finished(None, {}, "its time was up", seconds)
        self.now += took
        reason = next((why for name, why in self.failing.items() if name in self.played[-1]), "")
        if reason:
            return Finished(2, {}, reason, took)
        return Finished(0, getattr(self, f"_{kind}")(words), "", took)

    @staticmethod
    def _flag(words, name, default=None):
        return words[words.index(name) + 1] if name in words else default

    def _untrained(self, words):
        Path(words[1]).parent.mkdir(parents=True, exist_ok=True)
        Path(words[1]).write_text("onnx")
        return {}

    def _bench(self, words):
        name = Path(words[2]).name
        network = name.partition("+")[0] if "+" in name else self.exported
        values = {"large2small_result": 1, "kind": "latency", "made": "", "command": ""}
        # by hand: the median of 41 is the middle one; of 20 blocks, the first of 3 and the others of 2, the
        # medians are in order: from the 6th, between the 12th and 13th of all, to the 15th is the interval
        samples = [LATENCY[network] + 0.001 * (place - 20) for place in range(41)]
        values["samples_ms"] = {"compute": samples}
        Path(self._flag(words, "--save")).write_text(json.dumps(values))
        return {}

    def _label(self, words):
        self.answered = int(self._flag(words, "--epochs"))
        return {}

    def _train(self, words):
        student, epochs = self._flag(words, "--student"), int(self._flag(words, "--epochs", 1))
        top1 = 40 + GROWTH[student] * math.log10(epochs)
        return {"best": {"top1_percent": top1, "images": 500, "epochs": epochs}}

    def _export(self, words):
        self.exported = Path(words[2]).parent.name.split("+")[1]
        Path(self._flag(words, "--output")).write_text("onnx")
        return {}


@pytest.fixture
def stage(monkeypatch):
    return Stage(monkeypatch)


@pytest.fixture
def search(tmp_path, stage):
    """search(networks, budget, ...) -> a Search in one folder, as a new call of the command makes it."""

    def do(networks="abcd", budget=None, epochs=9, limit=5.0, **settings):
        settings = {"teacher_ckpt": "t.pth"} | settings
        training = TrainOptions(data="digits", epochs=epochs, **settings)
        asked = Asked(tmp_path / "s", training, limit, 2, 0, Engine(None, None, False))
        journal = opened(tmp_path / "s", {"training": "x"})
        journal.write()
        among = [Candidate(name, (), 32) for name in networks]
        return Search(asked, among, journal, Clock(budget, journal.seconds, lambda: stage.now))

    return do


def kinds(played):
    return [line.split()[0] for line in played]


def test_the_best_within_the_limit_wins_after_rounds_of_the_schedule(search, stage):
    found = search([*"abcd", "slow"])
    winner = found.run()
    assert winner.candidate.network == "c" and winner.trained.epochs == 9
    assert winner.timed.median_ms == 3.0
    assert (winner.timed.low_ms, winner.timed.high_ms) == pytest.approx((2.9915, 3.0095))
    assert {each.network: said for each, said in found.outcome.items()} == {
        "a": "dropped after 2 epochs",
        "b": "dropped after 4 epochs",
        "c": "winner",
        "d": "dropped after 2 epochs",
        "slow": "over 5 ms",
    }
    # 9 epochs, one of two stays: 4 candidates of 2 epochs, 2 of 4, one of 9
    trainings = [line for line in stage.played if line.startswith("train")]
    lengths = [
        tuple(Stage._flag(line.split(), f"--{key}") for key in ("student", "epochs")) for line in trainings
    ]
    assert lengths == [*((name, "2") for name in "dcba"), ("c", "4"), ("b", "4"), ("c", "9")]
    assert all("--teacher-labels" in line and "--teacher-ckpt" not in line for line in trainings)
    assert kinds(stage.played).count("label") == 3  # the answers grow with the rounds
    assert not list((found.asked.folder / "candidates").glob("*.onnx"))


def test_a_second_call_repeats_nothing(search, stage):
    search().run()
    before = list(stage.played)
    winner = search().run()
    assert stage.played == before and winner.candidate.network == "c"


def test_wherever_it_is_stopped_it_goes_on_and_repeats_nothing(search, stage, tmp_path):
    search("ab").run()
    whole, steps = list(stage.played), len(stage.played)
    for at in range(steps):
        shutil.rmtree(tmp_path / "s")
        stage.played, stage.killed_at, stage.answered = [], at, 0
        with pytest.raises(KeyboardInterrupt):
            search("ab").run()
        stage.killed_at = math.inf
        assert search("ab").run().candidate.network == "b"
        again = [line for line in stage.played if line not in whole]
        assert again == []
        # a candidate's file is made again where it was not timed, or a winner's export has to be
        assert len(stage.played) - steps <= 1


def test_what_fails_is_a_row_and_not_the_end(search, stage):
    stage.failing = {"candidates/a+": "a cannot be built", "ep+c+": "NaN in epoch 1"}
    found = search()
    assert found.run().candidate.network == "b"
    said = {each.network: text for each, text in found.outcome.items()}
    assert said["a"] == "failed: a cannot be built" and said["c"] == "failed: NaN in epoch 1"
    stage.failing, count = {}, len(stage.played)
    assert search().run().candidate.network == "b" and len(stage.played) == count  # it is known
    retried = search()
    retried.journal.forget_failures()
    assert retried.run().candidate.network == "c"


def test_where_the_winner_fails_in_full_the_next_one_wins(search, stage):
    stage.failing = {"trials/9ep+c+32px": "NaN in epoch 8"}
    found = search()
    assert found.run().candidate.network == "b"  # it was trained for as many epochs as c, a and d for fewer
    assert found.outcome[found.candidates[2]] == "failed: NaN in epoch 8"
    stage.failing = {"trials/9ep+": "NaN in epoch 8"}
    again = search()
    again.journal.steps = {key: step for key, step in again.journal.steps.items() if "9 epochs" not in key}
    with pytest.raises(GateError, match=r"none of 4 candidates .* in full; the best, c @32, failed"):
        again.run()


def test_without_a_candidate_within_the_limit_the_fastest_is_told(search):
    with pytest.raises(
        GateError, match=r"none of 4 candidates is within 0.5 ms; the fastest, a @32, takes 1 ms"
    ):
        search(limit=0.5).run()


def test_where_none_can_be_timed_or_trained_the_reason_is_told(search, stage):
    stage.failing = {"candidates": "no engine"}
    with pytest.raises(GateError, match="none of 4 candidates could be timed; the first failed: no engine"):
        search().run()
    stage.failing = {"train --": "no memory"}
    retried = search()
    retried.journal.forget_failures()
    with pytest.raises(GateError, match="no candidate could be trained; d @32 failed: no memory"):
        retried.run()


def test_answers_that_cannot_be_had_end_it_as_they_end_distill_label(search, stage):
    stage.failing = {"label": "streamed images have no fixed order"}
    with pytest.raises(UsageError, match="teacher's answers at 32 pixels: streamed images"):
        search().run()


def test_one_candidate_needs_no_rounds(search, stage):
    assert search("b").run().trained.epochs == 9
    assert kinds(stage.played) == ["untrained", "bench", "label", "train", "export", "bench"]


@pytest.mark.parametrize("settings", [{"teacher_ckpt": ""}, {"feature_loss": "fitnets"}])
def test_answers_are_stored_where_there_is_a_teacher_who_is_asked_for_logits_alone(search, stage, settings):
    search("ab", **settings).run()
    assert "label" not in kinds(stage.played)
    trainings = [line for line in stage.played if line.startswith("train")]
    assert all(("--teacher-ckpt t.pth" in line) == ("feature_loss" in settings) for line in trainings)


def test_the_time_for_the_winner_is_not_given_to_others(search, stage):
    """By hand: four candidates are timed in 4 * 7 = 28 s; answers for 2 epochs take 20 s, each training of 2
    epochs 40 s, so that d, c and b are trained at 168 s. An epoch of the best is taken for 1.1 * 20 s and its
    answers for 1.1 * 10 s; 9 of them, with 2 epochs of answers there, are 1.1 * (180 + 70) = 275 s. These and
    a's 44 s do not fit into the 282 s that are left, nor does another round.
    """
    found = search(budget=450)
    winner = found.run()
    assert winner.candidate.network == "c" and winner.trained.epochs == 9
    said = {each.network: text for each, text in found.outcome.items()}
    assert said["a"] == "not trained for 2 epochs: no time left"
    assert said["b"] == "not trained for 4 epochs: no time left"
    assert stage.now <= 450 + HOURS["export"] + HOURS["bench"]


def test_a_winner_is_trained_for_as_long_as_there_is_time(search, stage):
    """By hand: after the timing, answers and d's 2 epochs 112 s are left, and n epochs take
    1.1 * (20 n + 10 (n - 2)) s: 110 s for n = 4.
    """
    winner = search(budget=200).run()
    assert winner.candidate.network == "d" and winner.trained.epochs == 4
    assert stage.now <= 200 + HOURS["export"] + HOURS["bench"]
    assert search().run().candidate.network == "c"  # with more time


def test_a_trained_winner_is_exported_and_timed_however_little_time_is_left(search, monkeypatch):
    monkeypatch.setitem(HOURS, "export", 1000.0)
    found = search(budget=200)
    assert found.run().timed.median_ms == 4.0 and found.clock.left() == 0


def test_more_time_in_a_second_call_goes_on_where_the_first_one_stopped(search, stage):
    with pytest.raises(GateError, match="no candidate could be trained"):
        search(budget=30).run()
    assert kinds(stage.played) == ["untrained", "bench"] * 4 + ["label"]
    winner = search().run()
    assert winner.candidate.network == "c" and kinds(stage.played).count("untrained") == 4


def test_no_time_for_timing_is_said(search):
    found = search(budget=8)
    with pytest.raises(GateError, match="a @32: not trained for 9 epochs: no time left"):
        found.run()
    assert [found.outcome[each] for each in found.candidates][1:] == [
        "stopped: no time left",
        *["not timed: no time left"] * 2,
    ]
    assert search().run().candidate.network == "c"  # what was stopped has not failed


def test_a_run_that_was_stopped_in_its_middle_is_resumed(search, stage):
    stage.killed_at = 4
    with pytest.raises(KeyboardInterrupt):
        search("ab").run()
    folder = search("ab").training_of(Candidate("b", (), 32), 4, None).output
    Path(folder).mkdir(parents=True)
    (Path(folder) / "last.pth").write_text("half of it")
    stage.killed_at = math.inf
    with pytest.raises(KeyError):  # this stage does not know what the resumed run trains
        search("ab").run()
    assert stage.played[-1].startswith(f"train --resume {folder}")
