"""Cold starts: how long a new process takes from nothing to its first answer, and what memory it has then.

In:  a `Setup`.
Out: `ColdStart`, one figure for each process.
Elsewhere: the processes (bench.measuring.elsewhere).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .elsewhere import Memory, elsewhere
from .setup import Setup


@dataclass(frozen=True)
class ColdStart:
    """What new processes took."""

    first_answer_ms: list[float]
    """From the start of each process to its first answer: interpreter, libraries, opening, one call."""
    memory: list[Memory]
    """Of each, after its first answer."""

    @property
    def peak_bytes(self) -> int | None:
        """The largest peak of resident memory."""
        return max((each.peak for each in self.memory if each.peak), default=None)

    @property
    def growth_bytes(self) -> int | None:
        """Median growth of resident memory since before the artifact was opened."""
        known = [each.now - each.before for each in self.memory if each.now and each.before]
        return round(statistics.median(known)) if known else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "processes": len(self.first_answer_ms),
            "first_answer_ms": self.first_answer_ms,
            "first_answer_median_ms": statistics.median(self.first_answer_ms),
            "peak_bytes": self.peak_bytes,
            "growth_bytes": self.growth_bytes,
        }

    @property
    def line(self) -> str:
        """For a person."""
        times: Sequence[float] = sorted(self.first_answer_ms)
        memory = ""
        if self.peak_bytes and self.growth_bytes:
            memory = (
                f"; resident memory {self.peak_bytes / 1e6:.0f} MB at its peak,"
                f" {self.growth_bytes / 1e6:.0f} MB more than before the artifact was opened"
            )
        return (
            f"cold start, new process to first answer: median {statistics.median(times):.0f} ms"
            f" ({times[0]:.0f} to {times[-1]:.0f}, n={len(times)}; files may be in the system's cache)"
            f"{memory}"
        )


def cold_start(setup: Setup, processes: int) -> ColdStart:
    """One process after the other. Raises what opening the artifact raises."""
    times, memory = [], []
    for _ in range(processes):
        with elsewhere(setup) as process:
            times.append(process.cold_ms)
            memory.append(process.memory())
    return ColdStart(times, memory)
