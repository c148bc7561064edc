"""Progress: on stderr, plain lines without a terminal, bars with one."""

import io

import pytest
from rich.console import Console

from distill.training import display as displays
from distill.training.display import TrainingDisplay
from runtime.cli import terminal as terminals


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 120 columns that remembers what was written."""
    screen = Console(file=io.StringIO(), force_terminal=True, width=120)
    monkeypatch.setattr(terminals, "console", lambda: screen)
    monkeypatch.setattr(terminals, "is_live", lambda stream: True)
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


def frame(display, width):
    """The lines of the bars on a terminal of that width."""
    paper = Console(file=io.StringIO(), width=width)
    paper.print(display.bars.get_renderable())
    return paper.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_bars_of_a_long_run_are_whole_on_any_usual_width(terminal, width):
    with TrainingDisplay("student", 100, 12345, 0) as display:
        display.step(99, 12345, 12.5, 12345.0, 0.4)
        run, epoch, figures = (line.rstrip() for line in frame(display, width))
    assert "1234500/1234500" in run and run.endswith("left")
    assert epoch.startswith("epoch 100/100") and "12345/12345" in epoch and epoch.endswith("left")
    assert figures == "loss 12.5000  12,345 images/s  teacher 40% of the step"


def test_the_second_bar_shows_the_validation_with_a_clock_of_its_own(terminal):
    with TrainingDisplay("student", 2, 10, 0) as display:
        for step in range(1, 11):
            display.step(0, step, 1.0, 100.0, None)
        assert display.bars.tasks[1].finished
        display.validated(0, 256, 1000)
        task = display.bars.tasks[1]
        assert (task.description, task.completed, task.total) == ("validation 1/2", 256, 1000)
        assert not task.finished and task.elapsed < 5
        display.step(1, 1, 1.0, 100.0, None)
        assert (task.description, task.completed, task.total) == ("epoch 2/2", 1, 10)


def test_the_most_important_words_of_an_epoch_are_those_that_fit(terminal, monkeypatch):
    with TrainingDisplay("student", 2, 10, 0) as display:
        display.bars.console.width = 40
        display.say_as_fits(["student: epoch 1/2", "top-1 50.00 %", "x" * 20, "5 images/s"])
    assert "student: epoch 1/2  top-1 50.00 %\n" in terminal.getvalue()


def test_names_are_shown_as_they_are(terminal):
    with TrainingDisplay("student", 2, 10, 0) as display:
        display.say("runs/[red]a[/red] :smile:")
    assert "runs/[red]a[/red] :smile:" in terminal.getvalue()


def test_a_terminal_that_only_prints_gets_plain_lines(capsys, monkeypatch):
    monkeypatch.setattr(terminals.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "dumb")
    with TrainingDisplay("student", 2, 10, 0) as display:
        display.step(0, 1, 1.0, 100.0, None)
        display.say("a line")
    assert capsys.readouterr().err == "a line\n"
