"""Stopping a training so that it can go on: the first signal to stop is noted, a second one ends it.

In:  signals of the process.
Out: `StopSignal.check`, which raises Interrupted where it is safe to stop.
Elsewhere: what is saved then (distill.training.state).
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from runtime.cli import outcome
from runtime.errors import Interrupted

STOPS = (signal.SIGINT, *outcome.STOPS)
"""What asks a training to stop."""


class StopSignal:
    """Whether someone asked this process to stop."""

    def __init__(self) -> None:
        self.received: int | None = None
        """The number of the signal."""

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Let the first of STOPS only be noted; a second one ends the process as usual."""

        def note(number: int, _: FrameType | None) -> None:
            self.received = number
            for each, handler in previous.items():
                signal.signal(each, handler)

        previous: dict[signal.Signals, Any] = {}
        try:
            for each in STOPS:
                is_hangup = each not in (signal.SIGINT, signal.SIGTERM)
                if is_hangup and signal.getsignal(each) == signal.SIG_IGN:  # as nohup leaves it
                    continue
                previous[each] = signal.signal(each, note)
        except ValueError:  # not in the main thread: signals are someone else's
            previous.clear()
        try:
            yield
        finally:
            for each, handler in previous.items():
                signal.signal(each, handler)

    def check(self, updates: int, run: Path) -> None:
        """Raise Interrupted if a signal came. updates: optimizer steps done; run: what --resume takes."""
        if self.received:
            raise Interrupted(
                f"stopped by {signal.Signals(self.received).name} after step {updates}. "
                f"Continue: distill train --resume {run}",
                self.received,
            )
