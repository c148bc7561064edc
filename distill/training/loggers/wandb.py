"""Weights & Biases, with --wandb [PROJECT].

In:  figures and pictures.
Out: a run in that project; with WANDB_MODE=offline a folder RUN/wandb, to be sent later.
Elsewhere: the interface (distill.training.loggers.base).

Only figures, pictures and the recipe are handed over: nothing that is printed, no code and no weights.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import MissingError

from .base import Outcome, Run, keep_id, kept_id, tags

EXIT_CODES = {Outcome.FINISHED: 0, Outcome.FAILED: 1, Outcome.STOPPED: 130}
PATIENCE_S = 30
"""Seconds that its server is waited for, at the beginning and at the end."""


class Wandb:
    """A `Logger` with --wandb; place: PROJECT or ENTITY/PROJECT."""

    name = "wandb"

    def __init__(self, place: str) -> None:
        entity, _, self.project = place.rpartition("/")
        self.entity = entity or None
        self.run: Any = None

    def require(self) -> None:
        """Raise MissingError where nobody is logged in: wandb would ask in the middle of a training."""
        wandb: Any = importlib.import_module("wandb")
        if wandb.setup().settings.mode != "online":
            return
        reason = "no key is kept for it"
        try:
            if _logs_in(wandb):
                return
        except wandb.errors.Error as error:
            reason = " ".join(str(error).split())[:200]
        raise MissingError(
            f"--wandb: nobody is logged in to Weights & Biases here ({reason}). Run `wandb login` first, or"
            " set WANDB_MODE=offline to keep the run in the run folder and send it later"
        )

    def begin(self, run: Run) -> str:
        wandb: Any = importlib.import_module("wandb")
        known = kept_id(run.folder, self.name)
        self.run = wandb.init(
            project=self.project,
            entity=self.entity,
            name=run.name,
            id=known or None,
            resume="allow" if known else None,
            dir=str(run.folder),
            config=dict(run.settings),
            allow_val_change=True,
            settings=wandb.Settings(
                silent=True, console="off", disable_code=True, disable_git=True, init_timeout=PATIENCE_S
            ),
        )
        keep_id(run.folder, self.name, self.run.id)
        if self.run.offline:  # asked for its URL, such a run complains
            return f"offline; send it: wandb sync {Path(self.run.dir).parent}"
        return str(self.run.url)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        self.run.log(tags(values), step=step)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        wandb: Any = importlib.import_module("wandb")
        self.run.log({name: wandb.Image(pixels)}, step=step)

    def end(self, outcome: Outcome) -> None:
        self.run.finish(exit_code=EXIT_CODES[outcome])


def _logs_in(wandb: Any) -> bool:
    """Whether a key is kept, without asking for one."""
    try:
        return bool(wandb.login(prompt=False))
    except TypeError:  # versions before this argument
        return bool(wandb.api.api_key)
