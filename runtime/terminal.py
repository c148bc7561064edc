"""Showing that something is going on: a bar on a terminal, silence elsewhere; always on stderr.

In:  counts as they come.
Out: nothing; stdout stays free for results.
Elsewhere: the display of a training (distill.training.display).

rich is imported when something is shown, so that `import runtime` does not need it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """Rich's console on stderr."""
    from rich.console import Console

    return Console(stderr=True)


@contextlib.contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield advance(done so far). A bar on a terminal, silence elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    screen = console()
    if not screen.is_terminal:
        yield lambda done: None
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=screen,
        transient=True,
    ) as bars:
        task = bars.add_task(what, total=total)
        yield lambda done: bars.update(task, completed=done)


def printable(text: str) -> str:
    """One line without control characters, whatever a file or a class is called."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text
    )
