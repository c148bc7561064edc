"""Events for TensorBoard in the run folder: one file a run, also after it was resumed.

In:  figures and pictures.
Out: RUN/events.out.tfevents.*
Elsewhere: the interface (distill.training.loggers.base).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .base import Outcome, Run, tags

EVENTS = "events.out.tfevents.*"


class TensorBoard:
    """A `Logger` with --tensorboard."""

    name = "tensorboard"

    def __init__(self) -> None:
        self.writer: Any = None
        self.known: set[tuple[str, int]] = set()
        """(tag, step) of what earlier processes wrote."""

    def begin(self, run: Run) -> str:
        """What earlier processes wrote, up to the step that is resumed from, moves into a new file."""
        from torch.utils.tensorboard import SummaryWriter

        before = sorted(run.folder.glob(EVENTS))
        self.writer = SummaryWriter(str(run.folder))
        for event in _events(before, run.step):
            self.writer.file_writer.add_event(event, walltime=event.wall_time)
            self.known |= {(value.tag, event.step) for value in event.summary.value}
        self.writer.flush()
        for path in before:
            path.unlink()
        return ""

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        for tag, value in tags(values).items():
            self.writer.add_scalar(tag, value, step)
        self.writer.flush()

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        if (name, step) not in self.known:
            self.writer.add_image(name, pixels, step, dataformats="HWC")
            self.writer.flush()

    def end(self, outcome: Outcome) -> None:
        self.writer.close()


def _events(paths: list[Path], step: int) -> Iterator[Any]:
    """The summaries in event files up to `step`; a file that was cut is read up to there."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    for path in paths:
        for event in LegacyEventFileLoader(str(path)).Load():
            if event.WhichOneof("what") == "summary" and event.step <= step:
                yield event
