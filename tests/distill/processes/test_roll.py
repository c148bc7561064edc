"""Who does not answer a roll call is lost; who is busy, or has left in good order, is not."""

import signal
import threading
import time

import pytest

from distill.processes import roll
from distill.processes.roll import Roll, StuckWatch


@pytest.fixture(autouse=True)
def short_calls(monkeypatch):
    monkeypatch.setattr(roll, "ROLL_CALL_S", 0.3)


def test_who_answers_is_there_whatever_it_does(connect):
    """The main thread of both is this one, which is busy with the call."""
    first, _ = (Roll(connect, rank, 2) for rank in range(2))
    assert first.missing(connect()) == first.missing(connect()) == []


def test_who_does_not_answer_is_named(connect):
    first, *others = (Roll(connect, rank, 4) for rank in (0, 1, 3))
    assert [first.missing(connect()) for _ in range(2)] == [[2], [2]]  # as two survivors call it
    for each in (first, *others):
        each.over.set()


def test_who_has_left_is_not_missed(connect):
    first = Roll(connect, 0, 3)
    connect().set("left 1", "yes")  # as `leave` of a process that has ended
    assert first.missing(connect()) == [2]
    first.leave(connect())


def test_a_process_that_is_stuck_ends_once_another_is_lost(connect, monkeypatch, capsys):
    ended, codes = threading.Event(), []
    monkeypatch.setattr(roll, "GRACE_S", 0.1)
    monkeypatch.setattr(roll.os, "_exit", lambda code: (codes.append(code), ended.set()))
    stuck = Roll(connect, 0, 2)
    stuck.missing(connect())
    assert ended.wait(5) and codes == [3]
    assert capsys.readouterr().err.startswith("error: rank 1 has ended without a word")
    stuck.over.set()


def test_a_process_that_ends_by_itself_is_let_be(connect, monkeypatch):
    codes = []
    monkeypatch.setattr(roll, "GRACE_S", 0.2)
    monkeypatch.setattr(roll.os, "_exit", codes.append)
    busy = Roll(connect, 0, 2)
    assert busy.missing(connect()) == [1]
    busy.over.set()
    time.sleep(0.3)
    assert not codes


@pytest.fixture
def stuck(monkeypatch):
    """(a process whose main thread does nothing of SIGTERM, the exit codes it ended with, when it has)."""
    ended, codes = threading.Event(), []
    monkeypatch.setattr(roll, "REACTION_S", 0.1)
    monkeypatch.setattr(roll, "GRACE_S", 0.1)
    monkeypatch.setattr(roll.os, "_exit", lambda code: (codes.append(code), ended.set()))
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    watch = StuckWatch()
    yield watch, codes, ended
    watch.close()
    signal.signal(signal.SIGTERM, before)


def test_sigterm_ends_a_process_that_is_stuck_before_it_has_met_the_others(stuck):
    _, codes, ended = stuck
    signal.raise_signal(signal.SIGTERM)
    assert ended.wait(5) and codes == [143]


def test_sigterm_ends_a_process_that_waits_for_a_lost_one(stuck, connect, capsys):
    """As torchrun sends it to those that are left: the watch calls the roll for the main thread."""
    watch, codes, ended = stuck
    watch.roll = Roll(connect, 0, 2)
    signal.raise_signal(signal.SIGTERM)
    assert ended.wait(5) and codes == [3]
    assert capsys.readouterr().err.startswith("error: rank 1 has ended without a word")
    watch.roll.over.set()


def test_sigterm_lets_a_process_be_that_ends_by_itself(stuck, connect):
    watch, codes, ended = stuck
    signal.raise_signal(signal.SIGTERM)
    watch.over.set()
    assert not ended.wait(0.3) and not codes
