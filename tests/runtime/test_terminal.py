"""runtime.terminal: a bar with a terminal, silence without one; rich stays unloaded until it is shown."""

import io
import subprocess
import sys

import pytest
from rich.console import Console

from runtime import terminal as terminals
from runtime.terminal import progress_bar


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 120 columns that remembers what was written."""
    screen = Console(file=io.StringIO(), force_terminal=True, width=120)
    monkeypatch.setattr(terminals, "console", lambda: screen)
    return screen.file


def test_a_bar_is_silent_without_a_terminal(capsys):
    with progress_bar("evaluating", 10) as advance:
        advance(5)
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal_moves(terminal):
    with progress_bar("evaluating", 10) as advance:
        advance(4)
    assert "evaluating" in terminal.getvalue()


def test_rich_is_not_needed_to_import_it():
    code = "import sys; sys.modules['rich'] = None; import runtime, runtime.terminal"
    subprocess.run([sys.executable, "-c", code], check=True)
