"""An artifact in a process of its own, which takes its turn when it is asked to.

In:  what opens the contestant there, and its arguments; both have to be picklable.
Out: a `bench.comparing.race.Contestant` whose calls run in that process.
Elsewhere: whose turn it is (bench.comparing.race).

The process sleeps between its turns, so that the others have the machine to themselves; two engines in one
process share thread pools and memory, and an application has one.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.errors import Large2SmallError, MissingError

if TYPE_CHECKING:
    from ..subject import Description
    from .race import Contestant

PATIENCE = 10.0
"""Seconds that a process has to end by itself."""


class Isolated:
    """A contestant in a process of its own. Used by one thread."""

    def __init__(self, pipe: Connection, process: Any) -> None:
        self._pipe, self._process = pipe, process
        self.description: Description
        self.description, self.fed = self._answer()

    def turn(self, calls: int, settle: int) -> np.ndarray:
        """Durations (calls,) int64 ns, after `settle` untimed calls. Raises what was raised there."""
        durations: np.ndarray = self._answer((calls, settle))
        return durations

    def _answer(self, asked: tuple[int, int] | None = None) -> Any:
        try:
            if asked:
                self._pipe.send(asked)
            answer = self._pipe.recv()
        except (EOFError, OSError):  # also BrokenPipeError, which at a command's end would mean `| head`
            self._process.join(PATIENCE)
            raise MissingError(
                f"the process of an artifact ended with code {self._process.exitcode} while it was timed."
                " Try without --isolated"
            ) from None
        if isinstance(answer, BaseException):
            raise answer
        return answer


@contextmanager
def isolated(
    opened: Callable[..., AbstractContextManager[Contestant]], *arguments: Any
) -> Iterator[Isolated]:
    """`opened(*arguments)` in a new process, until the block ends."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, opened, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        yield Isolated(ours, process)
    finally:
        ours.close()
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()


def _serve(
    pipe: Connection, opened: Callable[..., AbstractContextManager[Contestant]], arguments: Any
) -> None:
    """What the process does: turns, until nobody asks any more."""
    try:
        with opened(*arguments) as contestant:
            pipe.send((contestant.description, contestant.fed))
            while True:
                pipe.send(contestant.turn(*pipe.recv()))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return
    except Large2SmallError as error:
        pipe.send(error)
