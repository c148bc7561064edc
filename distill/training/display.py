"""What a person sees while a student is trained: live bars on a terminal, plain lines otherwise; on stderr.

In:  counts and figures as they come.
Out: nothing; stdout stays free for results.
Elsewhere: what is kept of the figures (distill.training.records), bars of other work (runtime.terminal).
"""

from __future__ import annotations

import sys
import time

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from runtime import terminal

PLAIN_EVERY_S = 20.0
"""Seconds between plain lines."""


NARROW = 80
"""Columns of a terminal below which only loss and speed are shown."""


class TrainingDisplay:
    """Two bars (run and epoch) with the time left, loss, images/s and the teacher's share of the step time;
    on a narrow terminal loss and speed alone."""

    def __init__(self, name: str, epochs: int, steps_per_epoch: int, steps_done: int) -> None:
        self.name, self.epochs, self.steps = name, epochs, steps_per_epoch
        self.first, self.shown_epoch = steps_done, -1
        self.began = self.last_line = time.monotonic()
        screen = terminal.console()
        self.bars: Progress | None = None
        if screen.is_terminal:
            self.bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=12),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("left"),
                TextColumn("{task.fields[figures]}", table_column=Column(overflow="ellipsis", no_wrap=True)),
                console=screen,
            )
            self.run = self.bars.add_task(
                name, total=epochs * steps_per_epoch, completed=steps_done, figures=""
            )
            self.epoch = self.bars.add_task("epoch", total=steps_per_epoch, figures="")

    def __enter__(self) -> TrainingDisplay:
        if self.bars:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bars:
            self.bars.stop()

    def step(
        self, epoch: int, step: int, loss: float, images_per_s: float, teacher_share: float | None
    ) -> None:
        """After optimizer step `step` (1-based) of `epoch` (0-based)."""
        figures = f"loss {loss:.4f}  {images_per_s:,.0f} images/s"
        if teacher_share is not None:
            figures += f"  teacher {teacher_share:.0%}" + (" of the step" if not self.bars else "")
        if self.bars and self.bars.console.width < NARROW:
            figures = f"loss {loss:.3f}  {images_per_s:,.0f}/s"
        done = epoch * self.steps + step
        if self.bars:
            if epoch != self.shown_epoch:  # the clock of an epoch starts with it
                self.bars.reset(self.epoch, total=self.steps)
                self.shown_epoch = epoch
            self.bars.update(self.run, completed=done)
            self.bars.update(
                self.epoch, completed=step, description=f"epoch {epoch + 1}/{self.epochs}", figures=figures
            )
        elif time.monotonic() - self.last_line >= PLAIN_EVERY_S:
            self.last_line = time.monotonic()
            self.say(
                f"{self.name}: epoch {epoch + 1}/{self.epochs} step {step}/{self.steps}  {figures}  "
                f"left {self._left(done)}"
            )

    def say(self, line: str) -> None:
        """One line that stays."""
        if self.bars:
            self.bars.console.print(line, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def _left(self, done: int) -> str:
        rate = (time.monotonic() - self.began) / max(done - self.first, 1)
        seconds = int(rate * (self.epochs * self.steps - done))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
