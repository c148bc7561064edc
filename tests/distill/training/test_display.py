"""Progress: on stderr, plain lines without a terminal, bars with one."""

import io

import pytest
from rich.console import Console

from distill.training import display as displays
from distill.training.display import TrainingDisplay
from runtime import terminal as terminals


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 120 columns that remembers what was written."""
    screen = Console(file=io.StringIO(), force_terminal=True, width=120)
    monkeypatch.setattr(terminals, "console", lambda: screen)
    return screen.file


def test_plain_lines_come_seldom_and_say_all(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(displays.time, "monotonic", lambda: now[0])
    with TrainingDisplay("student", epochs=2, steps_per_epoch=100, steps_done=0) as display:
        for step in range(1, 51):
            now[0] = float(step)
            display.step(0, step, 1.5, 2000.0, 0.25)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        f"student: epoch 1/2 step {step}/100  loss 1.5000  2,000 images/s  teacher 25% of the step  left"
        f" 0:0{left}"
        for step, left in ((20, "3:00"), (40, "2:40"))
    ]  # a step takes a second: 180 and 160 are left


def test_the_time_left_of_a_resumed_run_counts_its_own_steps(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(displays.time, "monotonic", lambda: now[0])
    display = TrainingDisplay("student", epochs=2, steps_per_epoch=100, steps_done=100)
    now[0] = 30.0
    assert display._left(110) == "0:04:30"  # ten steps in 30 s, 90 are left


def test_a_terminal_gets_bars_with_the_figures(terminal):
    with TrainingDisplay("student", 2, 10, 0) as display:
        display.step(1, 5, 0.5, 1234.0, 0.4)
        display.bars.refresh()
        display.say("a line that stays")
    shown = terminal.getvalue()
    for words in (
        "student",
        "15/20",
        "epoch 2/2",
        "5/10",
        "loss 0.5000",
        "1,234 images/s",
        "teacher 40%",
        "left",
        "a line that stays",
    ):
        assert words in shown, words
