"""What a person sees while a student is trained: live bars on a terminal, plain lines otherwise; on stderr.

In:  counts and figures as they come.
Out: nothing; stdout stays free for results.
Elsewhere: what is kept of the figures (distill.training.records), bars of other work (runtime.cli.terminal).

No line of the bars is wider than 60 columns, so that they survive a terminal that is made narrower.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from runtime.cli import terminal

if TYPE_CHECKING:
    from rich.console import RenderableType

PLAIN_EVERY_S = 20.0
"""Seconds between plain lines."""


class Bars(Progress):
    """Bars with a line of figures below them."""

    figures = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield Text(self.figures, no_wrap=True, overflow="ellipsis")


class TrainingDisplay:
    """Two bars (run and epoch, or its validation) with the time left; below them loss, images/s and the
    teacher's share of the step time.
    """

    def __init__(self, name: str, epochs: int, steps_per_epoch: int, steps_done: int) -> None:
        self.name, self.epochs, self.steps = name, epochs, steps_per_epoch
        self.first, self.shown = steps_done, ""
        self.began = self.last_line = time.monotonic()
        self.bars: Bars | None = None
        self.alone = contextlib.ExitStack()
        if terminal.is_live(sys.stderr):
            self.bars = Bars(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=12),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("left"),
                console=terminal.console(),
                transient=True,
            )
            self.run = self.bars.add_task(name, total=epochs * steps_per_epoch, completed=steps_done)
            self.part = self.bars.add_task("epoch", total=steps_per_epoch)

    def __enter__(self) -> TrainingDisplay:
        if self.bars:
            self.alone.enter_context(terminal.hidden())
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bars:
            self.bars.stop()
        self.alone.close()

    def step(
        self, epoch: int, step: int, loss: float, images_per_s: float, teacher_share: float | None
    ) -> None:
        """After optimizer step `step` (1-based) of `epoch` (0-based)."""
        figures = f"loss {loss:.4f}  {images_per_s:,.0f} images/s"
        if teacher_share is not None:
            figures += f"  teacher {teacher_share:.0%} of the step"
        done = epoch * self.steps + step
        if self.bars:
            self.bars.figures = figures
            self.bars.update(self.run, completed=done)
            self._move(f"epoch {epoch + 1}/{self.epochs}", step, self.steps)
        elif self._is_due():
            self.say(
                f"{self.name}: epoch {epoch + 1}/{self.epochs} step {step}/{self.steps}  {figures}  "
                f"left {self._left(done)}"
            )

    def validated(self, epoch: int, images: int, total: int) -> None:
        """After so many images of the validation behind `epoch` (0-based); total: 0 where it is not known."""
        if self.bars:
            self._move(f"validation {epoch + 1}/{self.epochs}", images, total)
        elif self._is_due():
            self.say(f"{self.name}: validation {epoch + 1}/{self.epochs}, {images:,} images")

    def _move(self, what: str, done: int, total: int) -> None:
        """The second bar; its clock starts anew with what it shows."""
        if self.bars is None:
            return
        if what != self.shown:
            self.bars.reset(self.part, total=total or None)
            self.shown = what
        self.bars.update(self.part, completed=done, description=what)

    def _is_due(self) -> bool:
        is_due = time.monotonic() - self.last_line >= PLAIN_EVERY_S
        if is_due:
            self.last_line = time.monotonic()
        return is_due

    def say(self, line: str) -> None:
        """One line that stays."""
        if self.bars:
            self.bars.console.print(Text(terminal.in_rows(line, sys.stderr)), soft_wrap=True)
        else:
            terminal.say(line)

    def say_as_fits(self, parts: Sequence[str]) -> None:
        """The same with as many of the parts, from the first on, as fit the terminal."""
        line, *more = parts
        width = self.bars.console.width if self.bars else sys.maxsize
        for part in more:
            if len(line) + 2 + len(part) > width:
                break
            line += f"  {part}"
        self.say(line)

    def _left(self, done: int) -> str:
        rate = (time.monotonic() - self.began) / max(done - self.first, 1)
        seconds = int(rate * (self.epochs * self.steps - done))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
