"""Processes that are killed at any moment end together, say who is missing, and go on in any number.

With L2S_LARGE=1 there are 20 kills, as docs/scale.md says; otherwise one of each kind.
"""

import itertools
import os
import random
import signal
import time

import pytest
from forked import free_port

IS_LARGE = bool(os.environ.get("L2S_LARGE"))
STEPS = 300 if IS_LARGE else 36
ROUNDS = [("one", 2, signal.SIGKILL), ("one", 4, signal.SIGTERM), ("all", 1, signal.SIGKILL)]
"""(which processes are sent a signal, how many there are, the signal)."""


def rounds():
    """The interruptions, and the steps after which each comes; 0: at any time from the start on."""
    draw = random.Random(0)
    if not IS_LARGE:
        return [(*each, draw.randint(2, 8)) for each in ROUNDS]
    kinds = [signal.SIGKILL] * 3 + [signal.SIGTERM]
    return [
        (draw.choice(["one", "all"]), draw.choice([1, 2, 4]), draw.choice(kinds), draw.randrange(9))
        for _ in range(20)
    ]


def training(place, name):
    """The same words for any number of processes."""
    words = ["--teacher", "none", "--epochs", STEPS // 6, "--checkpoint-minutes", "0", "--resume", "auto"]
    return place.train(name, 2, *words)


def wait_for_steps(folder, count):
    """Until last.pth was written so many times, or the run has ended."""
    last, seen, end = folder / "last.pth", set(), time.monotonic() + 60
    while len(seen) <= count and time.monotonic() < end and not (folder / "result.json").exists():
        with_file = last.stat() if last.exists() else None
        seen |= {(with_file.st_ino, with_file.st_mtime_ns)} if with_file else set()
        time.sleep(0.002)


@pytest.fixture(scope="module")
def whole(place, start):
    """The run of one process that nobody stopped."""
    group = start(1, place.train("whole", 1, *training(place, "whole")[-10:-4]))
    assert group.wait() == [0], group.said()
    return "whole"


def test_killed_runs_go_on_with_any_number_of_processes(place, start, whole):
    agent = free_port()
    draw, done = random.Random(1), []
    for who, size, number, steps in rounds():
        group = start(size, training(place, "killed"), agent=agent)
        if steps:
            wait_for_steps(place.root / "killed", steps)
        else:
            time.sleep(draw.uniform(0, 2))
        ranks = range(size) if who == "all" else [draw.randrange(size)]
        for rank in ranks:
            group.send(rank, number)
        began = time.monotonic()
        codes = group.wait()
        assert time.monotonic() - began < 15, group.said()
        require_one_end(codes, group.said(), set(ranks), number)
        done.append(place.last("killed").state["updates"])
    assert done == sorted(done) and 0 < done[0] < STEPS
    group = start(2, training(place, "killed"), agent=agent)
    assert group.wait() == [0, 0], group.said()
    assert place.last("killed").state["updates"] == STEPS
    assert place.distance(whole, "killed") < 1e-5


def require_one_end(codes, said, ranks, number):
    """All processes ended in the way that the signal asks for, and one line says why."""
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    if number == signal.SIGTERM:
        assert set(codes) == {143}, said
        assert len(errors) == 1 and "Continue: distill train --resume" in errors[0]
        return
    assert all(codes[rank] == -9 for rank in ranks) and 0 not in codes, said
    survivors = len(codes) - len(ranks)
    assert len(errors) == bool(survivors), said
    for line, rank in itertools.product(errors, ranks):
        assert line.startswith(f"error: rank {rank} has ended without a word"), said
