"""What all steps of a search share: what is asked for, the journal, the clock, what became of whom.

In:  what is asked for, an open journal.
Out: processes that were run for a candidate, its files, failures written down.
Elsewhere: timing (large2small.searching.timing), training (large2small.searching.search).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.run.options import TrainOptions

from . import processes, words
from .candidates import Candidate
from .journal import Failed, Journal
from .processes import Finished
from .times import Clock

FAILED, WON = "failed: ", "winner"
"""What became of a candidate: how the words begin."""


@dataclass(frozen=True)
class Asked:
    """What a search is for."""

    folder: Path
    training: TrainOptions
    """Of all candidates: all that is not the student's."""
    limit_ms: float
    one_in: int
    label_top: int
    engine: words.Engine


class Steps:
    """Steps that are in the journal are not done again."""

    def __init__(self, asked: Asked, journal: Journal, clock: Clock) -> None:
        self.asked, self.journal, self.clock = asked, journal, clock
        self.outcome: dict[Candidate, str] = {}
        """What became of a candidate, in a few words."""

    def run(self, command: Sequence[str], candidate: Candidate) -> Finished:
        """A command, in the time that is left."""
        return processes.run(command, self.log_file(candidate), self.clock.left())

    def file(self, candidate: Candidate) -> Path:
        """What it is timed as, which is not kept."""
        return self._place(candidate, ".onnx")

    def latency_file(self, candidate: Candidate) -> Path:
        """What bench latency saves about it."""
        return self._place(candidate, ".json")

    def log_file(self, candidate: Candidate) -> Path:
        """What its processes say."""
        return self._place(candidate, ".log")

    def _place(self, candidate: Candidate, ending: str) -> Path:
        return self.asked.folder / "candidates" / f"{candidate.folder}{ending}"

    def has_failed(self, key: str, candidate: Candidate) -> bool:
        """Whether this step failed before, which is then the candidate's outcome."""
        failed = self.journal.find(key, Failed)
        if failed:
            self.outcome[candidate] = f"{FAILED}{failed.reason}"
        return failed is not None

    def note_failure(self, key: str, candidate: Candidate, ended: Finished) -> None:
        """Write down what will fail again; what was only stopped goes on with more time."""
        if ended.code is None:
            self.outcome[candidate] = "stopped: no time left"
            return
        reason = ended.reason or "it did not print its result"
        self.outcome[candidate] = f"{FAILED}{reason}"
        self.journal.keep(key, Failed(ended.seconds, reason))
