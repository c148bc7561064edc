"""Commands in other processes: what they print, why they fail, how they end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from large2small.searching import processes
from runtime.errors import ArtifactError, MissingError, UsageError


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(code, seconds) -> Finished: of Python code in the place of the worker."""

    def do(code, seconds=60.0):
        monkeypatch.setattr(processes.child, "words", lambda module: ["-c", code])
        return processes.run(["label", "--data", "x"], tmp_path / "logs" / "log.txt", seconds)

    return do


def test_the_object_on_stdout_is_the_result_and_what_is_said_is_logged(run, tmp_path):
    found = run("import sys; print('{\"top1\": 5}'); print('epoch 1', file=sys.stderr)")
    assert (found.code, found.printed, found.reason) == (0, {"top1": 5}, "") and found.seconds > 0
    assert (tmp_path / "logs" / "log.txt").read_text() == "$ distill label --data x\nepoch 1\n"
    assert run("print('not JSON')").printed == {} == run("print('[1]')").printed
    found.raise_failure("nothing")


def test_the_reason_is_the_line_of_its_error(run):
    found = run("import sys; print('error: no such data\\nbye', file=sys.stderr); sys.exit(2)")
    assert (found.code, found.reason) == (2, "no such data")
    with pytest.raises(UsageError, match="labels: no such data"):
        found.raise_failure("labels")
    with pytest.raises(ArtifactError):
        run("raise SystemExit(4)").raise_failure("x")
    with pytest.raises(MissingError):
        run("raise SystemExit(70)").raise_failure("x")


def test_a_reason_of_an_earlier_command_in_the_same_log_is_not_taken(run):
    run("import sys; print('error: the first', file=sys.stderr); sys.exit(2)")
    assert run("raise SystemExit(3)").reason == "it ended with code 3 (without a word)"


def test_a_killed_process_is_named(run):
    killed = run("import os; os.kill(os.getpid(), 9)")
    assert killed.code == -signal.SIGKILL and "memory ran out" in killed.reason
    assert "by signal 11" in run("import os; os.kill(os.getpid(), 11)").reason


def test_when_its_time_is_up_it_is_asked_to_end(run, tmp_path):
    mark = tmp_path / "saved"
    code = (
        "import signal, sys, time\n"
        f"def save(*_): open({str(mark)!r}, 'w'); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "time.sleep(60)"
    )
    began = time.monotonic()
    found = run(code, 0.5)
    assert found.code is None and found.reason == "its time was up" and time.monotonic() - began < 10
    assert mark.exists()


def test_ctrl_c_there_is_ctrl_c_here(run):
    with pytest.raises(KeyboardInterrupt):
        run("raise SystemExit(130)")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
def test_the_other_process_ends_with_the_one_that_started_it(tmp_path):
    """Also where that one was killed and could not end it."""
    waiting = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    inner = (
        "import os, sys\nfrom large2small.searching.worker import _end_with\n"
        f"_end_with(int(sys.argv[1]))\nexec({waiting!r})"
    )
    outer = (
        "import os, subprocess, sys\n"
        f"subprocess.Popen([sys.executable, '-c', {inner!r}, str(os.getpid())]).wait()"
    )
    process = subprocess.Popen([sys.executable, "-c", outer], stdout=subprocess.PIPE, text=True)
    started = int(process.stdout.readline())
    process.kill()
    process.wait()
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            os.kill(started, 0)
        except ProcessLookupError:
            return
        if "Z (zombie)" in Path(f"/proc/{started}/status").read_text():
            return
        time.sleep(0.05)
    os.kill(started, signal.SIGKILL)
    pytest.fail("it goes on")
