"""A training killed at any moment goes on from its last checkpoint and ends with the bits of one that was
never killed.

Processes are forked from one that has imported torch already, so that ten kills do not cost ten imports; what
is killed is a whole process in the middle of `distill train`. One test goes through `python -m distill` from
the start.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from tiny_training import write_noise

from distill import checkpoint as checkpoints

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]

FORKER = """
import json, os, sys
import distill.run.job, distill.training.trainer
from distill.__main__ import main
for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if not child:
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        code = main(request["argv"])
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Reads {argv, stdout, stderr} as JSON lines; answers each with the child's process id and, when it ends, its
exit code."""

TINY = [
    "--no-report",  # which would take longer than the training, and most of the kills
    "--teacher",
    "none",
    "--student",
    "resnet20",
    "--student-args",
    "width=0.25",
    "--img-size",
    "16",
    "--batch",
    "4",
    "--epochs",
    "4",
    "--mixup",
    "0.4",
    "--drop-path",
    "0.1",
    "--model-ema",
    "--reprob",
    "0.3",
    "--device",
    "cpu",
    "--checkpoint-minutes",
    "0",
]
"""64 steps, each followed by a checkpoint."""
TIMINGS = {"train_images_per_s", "teacher_share_of_step", "train_seconds"}

HEADER = ("data     ", "student  ", "teacher  ", "run      ", "         ", "warning: ")
"""What lines of the header begin with."""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with a small data set in it."""
    root = tmp_path_factory.mktemp("kill")
    write_noise(root / "set", train=64, val=32)
    return root


class Run:
    """A `distill train` in a process of its own."""

    def __init__(self, forker, workspace, argv):
        self.forker, self.stdout, self.stderr = forker, workspace / "stdout", workspace / "stderr"
        request = {"argv": ["train", *argv], "stdout": str(self.stdout), "stderr": str(self.stderr)}
        print(json.dumps(request), file=forker.stdin, flush=True)
        self.process = int(forker.stdout.readline())

    def send(self, number):
        with contextlib.suppress(ProcessLookupError):  # ended in the meantime
            os.kill(self.process, number)

    def wait(self) -> int:
        return int(self.forker.stdout.readline())


@pytest.fixture(scope="module")
def start(workspace):
    """start(argv) -> a running `distill train`."""
    forker = subprocess.Popen(
        [sys.executable, "-c", FORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    yield lambda *argv: Run(forker, workspace, [str(word) for word in argv])
    forker.stdin.close()
    forker.wait()


@pytest.fixture(scope="module")
def whole(workspace, start):
    """The run that nobody stopped."""
    folder = workspace / "whole"
    assert start("--data", f"npz:{workspace / 'set'}", *TINY, "--output", folder).wait() == 0
    return folder


def updates(folder) -> int:
    """Optimizer steps in last.pth; every checkpoint that is there must load."""
    for name in ("best.pth", "last.pth"):
        if (folder / name).exists():
            checkpoints.load(folder / name)
    return checkpoints.load(folder / "last.pth").state["updates"] if (folder / "last.pth").exists() else 0


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


def assert_same_result(folder, whole):
    for name in ("last.pth", "best.pth"):
        ours, theirs = (checkpoints.load(place / name) for place in (folder, whole))
        assert all(torch.equal(ours.state_dict[key], theirs.state_dict[key]) for key in theirs.state_dict), (
            name
        )
        assert ours.metrics == theirs.metrics
    ours, theirs = (
        [
            {key: value for key, value in json.loads(line).items() if key not in TIMINGS}
            for line in (place / "metrics.jsonl").read_text().splitlines()
        ]
        for place in (folder, whole)
    )
    assert ours == theirs
    assert len(ours) == 4
    assert not list(folder.glob(".*"))  # no temporary files are left


def test_ten_kills_at_random_moments_change_nothing(workspace, start, whole):
    flags = ["--data", f"npz:{workspace / 'set'}", *TINY]
    dice, kills, done = random.Random(0), 0, []
    for number in range(20):  # another run when one ends before the tenth kill
        folder = workspace / f"killed{number}"
        steps = 0
        while True:
            run = start("--resume", folder, *flags)  # works when nothing has started yet, too
            if kills < 10:
                if (
                    kills % 2 and steps < 64
                ):  # every other kill is in the middle of training, however slow the machine
                    wait_for(lambda: updates(folder) > steps)  # noqa: B023
                time.sleep(dice.uniform(0.0, 1.0))
                run.send(signal.SIGKILL)
            code = run.wait()
            assert code in (0, -signal.SIGKILL), run.stderr.read_text()
            kills += code == -signal.SIGKILL
            before, steps = steps, updates(folder)
            assert steps >= before  # at most the work since the last checkpoint is lost
            done.append(steps - before)
            if code == 0:
                break
        assert_same_result(folder, whole)
        if kills >= 10:
            break
    assert kills == 10
    assert (
        sum(step > 0 for step in done) > 3
    )  # the kills came in the middle of trainings, not only before them


@pytest.mark.parametrize("steps", [1, 30])
def test_killed_while_writing_a_checkpoint(workspace, start, whole, steps):
    """The temporary file is there at the moment of the kill: it must not matter, and it goes with the next
    start.
    """
    folder = workspace / f"writing{steps}"
    for _ in range(20):
        run = start("--resume", folder, "--data", f"npz:{workspace / 'set'}", *TINY)
        wait_for(lambda: updates(folder) >= steps)
        wait_for(lambda: any(folder.glob(".last.pth.tmp-*")))
        run.send(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
        updates(folder)
        if any(folder.glob(".last.pth.tmp-*")):
            break  # killed in time; otherwise once more
    assert start("--resume", folder, "--data", f"npz:{workspace / 'set'}", *TINY).wait() == 0
    assert_same_result(folder, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(workspace, start, whole, number):
    folder = workspace / f"stopped{number}"
    run = start(
        "--data", f"npz:{workspace / 'set'}", *TINY[:-1], "60", "--output", folder
    )  # not saved by the clock
    wait_for(lambda: (folder / "last.pth").exists())  # the first epoch is over
    time.sleep(0.1)
    run.send(number)
    assert run.wait() == 128 + number
    lines = run.stderr.read_text().splitlines()
    steps = updates(folder)
    assert 16 <= steps < 64
    assert [line for line in lines if not line.startswith(("plain: epoch", *HEADER))] == [
        f"error: stopped by {signal.Signals(number).name} after step {steps}. Continue: distill train"
        f" --resume {folder}"
    ]
    assert run.stdout.read_text() == ""
    again = start("--resume", folder)  # as the line says
    assert again.wait() == 0
    assert f"plain: resumed at epoch {steps // 16 + 1}, step {steps}" in again.stderr.read_text()
    assert_same_result(folder, whole)


def test_python_m_distill_from_start_to_kill_to_end(workspace, whole):
    folder = workspace / "real"
    command = [sys.executable, "-m", "distill", "train"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--data", f"npz:{workspace / 'set'}", *TINY, "--output", str(folder)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: updates(folder) >= 20)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    done = subprocess.run(
        [*command, "--resume", str(folder), "--json"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"] == str(folder)
    assert all(
        line.startswith(("training data from ", "plain: ", "report: ", *HEADER))
        for line in done.stderr.splitlines()
    ), done.stderr
    assert_same_result(folder, whole)
