"""Showing that something is going on, on stderr: a bar, or a line about what takes longer than a second.

In:  counts as they come, words about what is done.
Out: nothing; stdout stays free for results.
Elsewhere: the display of a training (distill.training.display).

rich is imported when a bar is shown, so that `import runtime` does not need it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console

SILENCE_S = 1.0
"""Seconds after which a line on a terminal says what is going on."""
SILENCE_OF_A_FILE_S = 30.0
"""The same where stderr goes to a file or a pipe: there the line stays, and most failures are one line."""
NARROWEST = 30
"""Columns below which lines are left to the terminal."""
LABEL = 12
"""Letters up to which the first words of a line, with spaces behind them, are a label."""
EMPTIED = "\r\x1b[K"
"""Moves to the beginning of the line and empties it."""


def console() -> Console:
    """Rich's console on stderr, as `screen` makes it."""
    return screen(stderr=True, highlight=True)


def screen(**settings: Any) -> Console:
    """Rich's console on stdout with these settings, which lets no control character through but its own,
    whatever a file or a class is called.
    """
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class Screen(Console):
        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterator[Segment]:
            for part in super().render(renderable, options):
                yield part if part.control or part.text.isprintable() else Segment(*_shown(part))

        def on_broken_pipe(self) -> None:
            """Nobody reads any more, which runtime.cli.outcome knows; rich itself would end the program."""
            raise BrokenPipeError

    def _shown(part: Segment) -> tuple[str, Any]:
        return "\n".join(map(printable, part.text.split("\n"))), part.style

    return Screen(**{"highlight": False} | settings)


def is_live(stream: TextIO) -> bool:
    """Whether what it shows can be written anew: a terminal that can do more than print."""
    return not _lines.are_muted and stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def say(line: str) -> None:
    """One line on stderr, which stays; on a terminal in as many rows as it needs."""
    if not _lines.are_muted:
        print(in_rows(printable(line), sys.stderr), file=sys.stderr, flush=True)


def in_rows(text: str, stream: TextIO) -> str:
    """The text without control characters in its lines; on a terminal with lines that are too long broken
    between words, and what belongs below a label in the first column put there.
    """
    text = "\n".join(map(printable, text.split("\n")))
    width = shutil.get_terminal_size().columns
    if not stream.isatty() or width < NARROWEST:
        return text
    return "\n".join(_rows(line, width) for line in text.split("\n"))


def _rows(line: str, width: int) -> str:
    label = re.match(r"\S* {2,}", line)
    return textwrap.fill(
        line,
        width,
        subsequent_indent=" " * (label.end() if label and label.end() <= LABEL else 2),
        break_long_words=False,  # a path stays whole, to be copied
        break_on_hyphens=False,
        replace_whitespace=False,
    )


@contextlib.contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield advance(done so far). A bar on a terminal; elsewhere one line, where it takes long."""
    if not is_live(sys.stderr):
        with loading(what):
            yield lambda done: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with hidden(), Progress(*columns, console=console(), transient=True) as bars:
        task = bars.add_task(printable(what), total=total)
        yield lambda done: bars.update(task, completed=done)


@contextlib.contextmanager
def loading(what: str, still: bool = False) -> Iterator[None]:
    """Say what is going on: on a terminal after a second, in a line with the seconds that disappears at the
    end or when something is printed; elsewhere after half a minute, in a line that stays.

    still: the line is not written anew, because something is timed meanwhile.
    """
    line = _Line(printable(what), still)
    with _lines.on_top(line):
        line.start()
        try:
            yield
        finally:
            line.over.set()


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """No line of `loading`, while something else is shown that is written anew."""
    with _lines.on_top(None):
        with _lines.lock:
            _lines.erase()
            _lines.put_back()
        yield


def only_on_terminals(whether: bool) -> None:
    """Whether `loading` keeps silent where stderr goes to a file or a pipe, as beside --json."""
    _lines.are_for_terminals = whether


def mute(lines: bool, errors: bool) -> None:
    """Whether this process keeps silent, because another one that works with it speaks: lines, errors."""
    _lines.are_muted, _lines.are_errors_muted = lines, errors


def may_say_errors() -> bool:
    """Is it this process that says why a command failed?"""
    return not _lines.are_errors_muted


class _Lines:
    """The lines of all `loading` that go on, of which the innermost is shown."""

    def __init__(self) -> None:
        self.stack: list[_Line | None] = []
        """None while something else is shown."""
        self.are_for_terminals = False
        self.are_muted = self.are_errors_muted = False
        self.is_drawn = False
        self.is_inside_line = False
        """Something was printed, without the end of its line."""
        self.replaced: dict[str, TextIO] = {}
        """stdout and stderr as they were."""
        self.lock = threading.RLock()
        """A line is drawn by its own thread, and erased by the one that prints or is done."""

    @contextlib.contextmanager
    def on_top(self, line: _Line | None) -> Iterator[None]:
        self.stack.append(line)
        try:
            yield
        finally:
            with self.lock:
                self.stack.remove(line)
                self.erase()
                if not self.stack:
                    self.put_back()

    def draw(self, line: _Line) -> None:
        """Show it where its turn is, and keep it below what is printed from now on."""
        with self.lock:
            if self.stack[-1:] == [line] and not self.is_inside_line:
                self._draw(line)

    def _draw(self, line: _Line) -> None:
        for name in ("stdout", "stderr"):
            stream: TextIO = getattr(sys, name)
            if not isinstance(stream, _Above) and stream.isatty():
                self.replaced[name] = stream
                setattr(sys, name, _Above(stream))
        width = shutil.get_terminal_size().columns - 1
        line.stream.write(f"{EMPTIED}{line.words()[:width]}")
        line.stream.flush()
        self.is_drawn = True

    def erase(self) -> None:
        """Remove it from the screen."""
        if self.is_drawn:
            self.is_drawn = False
            stream = self.replaced.get("stderr", sys.stderr)
            stream.write(EMPTIED)
            stream.flush()

    def put_back(self) -> None:
        """stdout and stderr as they were."""
        for name, stream in self.replaced.items():
            if isinstance(getattr(sys, name), _Above):
                setattr(sys, name, stream)
        self.replaced.clear()
        self.is_inside_line = False

    def in_a_forked_process(self) -> None:
        """The thread that may have held the lock is not there."""
        self.lock = threading.RLock()


_lines = _Lines()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_lines.in_a_forked_process)


class _Above:
    """A stream whose text comes above the line that is shown."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with _lines.lock:
            _lines.erase()
            _lines.is_inside_line = not text.endswith("\n") if text else _lines.is_inside_line
            return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Line(threading.Thread):
    """The line of one `loading`, written anew every second."""

    def __init__(self, what: str, still: bool) -> None:
        super().__init__(daemon=True)
        self.what, self.still = what, still
        self.began, self.over = time.monotonic(), threading.Event()
        current: Any = sys.stderr
        self.stream = cast(TextIO, current._stream if isinstance(current, _Above) else current)

    def words(self) -> str:
        return f"{self.what} ..." + ("" if self.still else f" {time.monotonic() - self.began:.0f} s")

    def run(self) -> None:
        shown_anew = is_live(self.stream)
        while not self.over.wait(SILENCE_S if self.stream.isatty() else SILENCE_OF_A_FILE_S):
            if shown_anew:
                _lines.draw(self)
            elif not (_lines.are_for_terminals or _lines.are_muted):
                self.stream.write(f"{self.what} ...\n")
                self.stream.flush()
            if self.still or not shown_anew:
                return


def printable(text: str) -> str:
    """One line without control characters, whatever a file or a class is called."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text
    )
