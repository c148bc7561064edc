"""Distillation losses by name: `create("nkd", temperature=1.0)(student, teacher, target)`.

In:  a name and the loss's own settings.
Out: a callable (student Outputs, teacher Outputs, target) -> scalar tensor.
Elsewhere: the formulas, one file per loss; how they are weighed against the labels (distill.trainer).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

from torch import Tensor

from runtime.commands import nearest
from runtime.errors import UsageError

from . import kl, nkd
from .base import Outputs

LOSSES = {"kl": kl.loss, "nkd": nkd.loss}

__all__ = ["LOSSES", "Outputs", "create", "settings_of"]


def settings_of(name: str) -> dict[str, float]:
    """The settings of loss `name` with their defaults. Raises UsageError for an unknown name."""
    if name not in LOSSES:
        raise UsageError(f"no loss called {name!r}{nearest(name, set(LOSSES))} Known: {', '.join(LOSSES)}")
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def create(name: str, **settings: float) -> Callable[[Outputs, Outputs, Tensor], Tensor]:
    """The loss `name` with its settings fixed. Raises UsageError for an unknown name, setting or a temperature <= 0."""
    known = settings_of(name)
    for key, value in settings.items():
        if key not in known:
            raise UsageError(f"loss {name} has no setting {key!r}{nearest(key, set(known))} It has: {', '.join(known)}")
        if key == "temperature" and not value > 0:
            raise UsageError(f"temperature {value}: expected above 0")
    return functools.partial(LOSSES[name], **settings)
