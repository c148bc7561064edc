"""Where the figures and pictures of a training go: the run's own tables, and what was asked for besides.

In:  the figures of an epoch, pictures.
Out: the same at every logger. The run's tables must be written; any other logger that fails is reported once
     and left out from then on.
Elsewhere: the interface (distill.training.loggers.base), each logger (the files beside it), the flags
(distill.run.options), live bars (distill.training.display).

Nothing leaves this machine without a flag that was typed: neither a recipe nor a run folder can ask for it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from runtime.cli.terminal import say
from runtime.errors import Large2SmallError, MissingError

from .base import Logger, Outcome, Run
from .mlflow import MLflow
from .tables import Tables
from .tensorboard import TensorBoard
from .wandb import Wandb

SERVICES: dict[str, type[Wandb] | type[MLflow]] = {"wandb": Wandb, "mlflow": MLflow}
"""Flag -> the logger it asks for, which is made with the flag's value."""


class Loggers:
    """All loggers of one training. `own` ones must work, `others` may fail."""

    def __init__(self, own: Sequence[Logger], others: Sequence[Logger] = ()) -> None:
        self.own, self.others = tuple(own), tuple(others)
        self.open: list[Logger] = []
        """Those of `others` that were begun and work: a trial of a step has none."""
        self.say: Callable[[str], None] = say
        """How a person is told; a display that is shown meanwhile has a way of its own."""

    @property
    def takes_images(self) -> bool:
        """Whether it is worth making pictures."""
        return bool(self.open)

    def begin(self, run: Run) -> None:
        """Open the run everywhere."""

        def open_one(logger: Logger) -> None:
            if line := logger.begin(run):
                self.say(f"{logger.name}: {line}")

        for logger in self.own:
            logger.begin(run)
        self.open = list(self.others)
        self._each(open_one)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """The figures of an epoch: a line of metrics.jsonl."""
        for logger in self.own:
            logger.scalars(step, values)
        self._each(lambda logger: logger.scalars(step, values))

    def image(self, step: int, name: str, make: Callable[[], np.ndarray]) -> None:
        """A picture, which is made (H, W, 3) uint8 where a logger takes one."""
        made: list[np.ndarray] = []

        def show(logger: Logger) -> None:
            made.extend([] if made else [make()])
            logger.image(step, name, made[0])

        self._each(show)

    def end(self, outcome: Outcome) -> None:
        """Close the run everywhere."""
        for logger in self.own:
            logger.end(outcome)
        self._each(lambda logger: logger.end(outcome))

    def _each(self, act: Callable[[Logger], None]) -> None:
        """Do it with every open logger but the own ones; one that fails is named and left out."""
        for logger in list(self.open):
            try:
                act(logger)
            except Exception as error:  # whatever a service raises, the training is worth more
                self.open.remove(logger)
                reason = " ".join(str(error).split())[:300] or type(error).__name__
                self.say(f"warning: {logger.name} failed ({reason}); the training goes on without it")


def asked_for(tensorboard: bool, services: Mapping[str, str]) -> Loggers:
    """services: those of SERVICES that a flag asks for -> the flag's value."""
    others: list[Logger] = [TensorBoard()] if tensorboard else []
    return Loggers([Tables()], others + [SERVICES[name](place) for name, place in services.items()])


def require(tensorboard: bool, services: Mapping[str, str]) -> None:
    """Raise MissingError where a logger's package is not installed, nobody is logged in, or no server is
    there.
    """
    if tensorboard:
        _require("tensorboard", lambda: importlib.import_module("torch.utils.tensorboard"))
    for name, place in services.items():
        _require(name, SERVICES[name](place).require)


def _require(flag: str, check: Callable[[], object]) -> None:
    try:
        check()
    except Large2SmallError:
        raise
    except Exception as error:  # not installed, or not in a version that goes with the other packages
        reason = f" (here: {' '.join(str(error).split())[:200]})"
        raise MissingError(
            f'--{flag} needs a package. Install it: pip install "large2small[{flag}]"{reason}'
        ) from error
