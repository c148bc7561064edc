"""How long a search may take, and what is left of it.

In:  a time as it is typed, such as 5ms or 2h.
Out: seconds; what is left, for decisions and for a person.
Elsewhere: what earlier calls took (large2small.searching.journal).
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable

from runtime import UsageError, files

UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
MOST = 1e9
"""Seconds that nobody waits for."""


def parse(text: str, flag: str, example: str) -> float:
    """'5ms', '1.5h', '1h30m' -> seconds. Raises UsageError for anything else."""
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text)
    whole = re.fullmatch(r"\s*(?:\d+(?:\.\d+)?\s*[a-z]+\s*)+", text)
    if whole and all(unit in UNITS for _, unit in parts):
        seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
        if 0 < seconds < MOST:
            return seconds
    raise UsageError(f"{flag} {files.short(text)}: expected a time above 0 with its unit, such as {example}")


def in_words(seconds: float) -> str:
    """45 s, 12 min, 1 h 52 min."""
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class Clock:
    """What is left of a budget. Without one there is always enough."""

    def __init__(
        self, budget: float | None, spent: float = 0.0, now: Callable[[], float] = time.monotonic
    ) -> None:
        """budget, spent: seconds; spent: by earlier calls."""
        self._budget, self._spent, self._now, self._began = budget, spent, now, now()

    def left(self) -> float:
        """Seconds; infinite without a budget, 0 at its end."""
        if self._budget is None:
            return math.inf
        return max(self._budget - self._spent - (self._now() - self._began), 0.0)

    @property
    def words(self) -> str:
        """What to say behind a line; nothing without a budget."""
        return "" if self._budget is None else f"; {in_words(self.left())} left"
