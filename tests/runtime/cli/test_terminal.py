"""A bar or a line with a terminal, a line without one; rich stays unloaded until a bar is shown."""

import contextlib
import faulthandler
import io
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console

from runtime.cli import terminal as terminals
from runtime.cli.terminal import loading, progress_bar


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 120 columns that remembers what was written."""
    screen = Console(file=io.StringIO(), force_terminal=True, width=120)
    monkeypatch.setattr(terminals, "console", lambda: screen)
    monkeypatch.setattr(terminals, "is_live", lambda stream: True)
    return screen.file


class Screen(io.StringIO):
    """A terminal: what is written, and what one sees of it."""

    def isatty(self):
        return True

    @contextlib.contextmanager
    def shown(self):
        """Be stdout and stderr. In the test itself: pytest has streams of its own for each fixture."""
        with contextlib.redirect_stdout(self), contextlib.redirect_stderr(self):
            yield
            assert sys.stdout is self and sys.stderr is self

    @property
    def seen(self):
        """The lines on the screen; \\r\x1b[K empties one."""
        rows = [re.split("\r\x1b\\[K", row)[-1] for row in self.getvalue().split("\n")]
        return [row for row in rows if row]


@pytest.fixture
def screen(monkeypatch):
    """A terminal on stdout and stderr, on which a line comes after 50 ms."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(terminals, "SILENCE_S", 0.05)
    monkeypatch.setattr(terminals, "SILENCE_OF_A_FILE_S", 0.05)
    return Screen()


def wait_until(holds, seconds=10.0):
    """Wait for what another thread does."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_bar_is_silent_without_a_terminal(capsys):
    with progress_bar("evaluating", 10) as advance:
        advance(5)
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal_moves(terminal):
    with progress_bar("evaluating", 10) as advance:
        advance(4)
    assert "evaluating" in terminal.getvalue()


def test_rich_is_not_needed_to_import_it():
    code = "import sys; sys.modules['rich'] = None; import runtime, runtime.cli.terminal"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_quick_says_nothing(screen):
    with screen.shown(), loading("reading"):
        pass
    time.sleep(0.1)
    assert screen.getvalue() == ""


def test_what_takes_long_is_named_with_its_seconds_and_disappears(screen):
    with screen.shown(), loading("reading"):
        wait_until(lambda: screen.seen == ["reading ... 0 s"])
    assert screen.seen == []


@pytest.mark.parametrize("ends", ["is done", "prints"])
def test_a_line_that_is_drawn_at_the_same_moment_disappears(screen, monkeypatch, ends):
    is_drawing, words = threading.Event(), terminals._Line.words

    def slow(line):
        is_drawing.set()
        time.sleep(0.1)  # what was found before has changed by now, unless both take turns
        return words(line)

    monkeypatch.setattr(terminals._Line, "words", slow)
    with screen.shown(), loading("reading"):
        assert is_drawing.wait(10)
        if ends == "prints":
            print("one")
            assert screen.getvalue().endswith("\r\x1b[Kone\n")
    time.sleep(0.15)
    assert screen.seen == (["one"] if ends == "prints" else [])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_is_forked_while_a_line_is_drawn_can_print(screen):
    with terminals._lines.lock:
        with ThreadPoolExecutor(1) as pool:  # a thread that does not hold the lock, as that of a data loader
            child = pool.submit(forked_writer, screen).result()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def forked_writer(screen):
    child = os.fork()
    if not child:
        faulthandler.dump_traceback_later(20, exit=True)
        terminals._Above(screen).write("printed")
        os._exit(0)
    return child


def test_what_is_printed_meanwhile_stays_above(screen):
    with screen.shown(), loading("reading"):
        wait_until(lambda: screen.seen)
        print("one")
        print("two", file=sys.stderr)
        wait_until(lambda: len(screen.seen) == 3)
        assert screen.seen == ["one", "two", "reading ... 0 s"]
    with screen.shown():
        print("three")
    assert screen.seen == ["one", "two", "three"]


def test_a_line_that_is_being_printed_is_not_broken(screen):
    with screen.shown(), loading("reading"):
        wait_until(lambda: screen.seen)
        print("half", end="", flush=True)
        time.sleep(0.2)
        print(" and half")
        wait_until(lambda: len(screen.seen) == 2)
        assert screen.seen == ["half and half", "reading ... 0 s"]


def test_the_inner_one_is_shown_then_the_outer_one_again(screen):
    with screen.shown(), loading("outer"):
        wait_until(lambda: screen.seen == ["outer ... 0 s"])
        with loading("inner"):
            wait_until(lambda: screen.seen == ["inner ... 0 s"])
        wait_until(lambda: screen.seen == ["outer ... 0 s"])
    assert screen.seen == []


def test_a_bar_takes_the_place_of_the_line(screen):
    with screen.shown(), loading("outer"):
        wait_until(lambda: screen.seen)
        with progress_bar("evaluating", 10) as advance:
            advance(4)
            written = len(screen.getvalue())
            time.sleep(0.2)
            assert "outer" not in screen.getvalue()[written:]
        wait_until(lambda: screen.seen[-1:] == ["outer ... 0 s"])


def test_an_error_passes_through_and_the_screen_is_as_before(screen):
    with screen.shown(), pytest.raises(ValueError), loading("reading"):
        wait_until(lambda: screen.seen)
        raise ValueError
    assert screen.seen == []


def test_a_line_is_never_wider_than_the_terminal(screen, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    with screen.shown(), loading("reading " + "x" * 100):
        wait_until(lambda: screen.seen)
        assert max(map(len, screen.seen)) < 20


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_without_a_terminal_it_is_one_plain_line(capsys, monkeypatch, screen, term):
    monkeypatch.setenv("TERM", term)
    if term == "xterm":
        monkeypatch.setattr(Screen, "isatty", lambda self: False)
    with screen.shown(), loading("reading \x1b[2J"):
        time.sleep(0.3)
    assert screen.getvalue() == "reading \\x1b[2J ...\n"


def test_beside_json_a_pipe_stays_empty(screen, monkeypatch):
    monkeypatch.setattr(Screen, "isatty", lambda self: False)
    terminals.only_on_terminals(True)
    try:
        with screen.shown(), loading("reading"):
            time.sleep(0.2)
    finally:
        terminals.only_on_terminals(False)
    assert screen.getvalue() == ""


def test_a_long_line_is_broken_between_words_below_its_label(screen, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    lines = ["run      6 epochs of 8 steps of 16 images, 6 left", "warning: " + "word " * 8, "/a" * 30]
    with screen.shown():
        for line in lines:
            terminals.say(line)
    assert screen.seen == [
        "run      6 epochs of 8 steps of 16",
        "         images, 6 left",
        "warning: word word word word word word",
        "  word word",
        "/a" * 30,  # a path can be copied
    ]


def test_a_line_in_a_pipe_is_one_line(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    terminals.say("word " * 30 + "\x1b[2J")
    assert capsys.readouterr().err == "word " * 30 + "\\x1b[2J\n"
