"""Distillation losses by name: `create("nkd", temperature=1.0)(student, teacher, target)`.

In:  a name and the loss's own settings.
Out: a callable (student Outputs, teacher Outputs, target) -> scalar tensor; warnings where a loss
degenerates.
Elsewhere: the formulas, one file per loss; how they are weighed against the labels
(distill.training.objective).

The two tables are all that names a loss: flags, recipes, tests and messages read them. They hold strings, so
that a help text needs no torch.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from runtime.cli.nearest import nearest
from runtime.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from .base import Outputs

LOGIT = {
    "kl": "kl:loss",
    "nkd": "nkd:loss",
    "dkd": "dkd:loss",
    "dist": "dist:loss",
    "lskd": "lskd:loss",
    "lskd_dkd": "lskd:dkd_loss",
    "mlkd": "mlkd:loss",
    "ofa": "ofa:loss",
    "binary_kl": "binary_kl:loss",
    "deit_soft": "deit:soft",
    "deit_hard": "deit:hard",
}
"""Losses of the logits, each a function (student, teacher, target, *, settings) -> scalar:
{name: FILE:FUNCTION in distill/losses/logit}. A file with `SHIFT_INVARIANT = False` says that its loss
depends on more than the differences between the logits of an image; one with `NEEDS_ALL_LOGITS = True`, that
it makes no sense where only the largest logits are known and the rest's sum."""

FEATURE = {
    "fitnets": "fitnets:FitNets",
    "at": "at:AT",
    "rkd": "rkd:RKD",
    "reviewkd": "reviewkd:ReviewKD",
    "fd": "fd:FD",
    "mgd": "mgd:MGD",
    "srrl": "srrl:SRRL",
    "ofa_stages": "ofa_stages:OFAStages",
}
"""Losses of feature maps, each a `FeatureLoss`: called with its settings (keyword only), it gives a module
(student, teacher, target) -> scalar. {name: FILE:CLASS in distill/losses/feature}."""

POSITIVE = {"temperature", "temperatures", "eps"}
"""Settings that must be above 0; other numbers are 0 or more."""

__all__ = [
    "FEATURE",
    "LOGIT",
    "create",
    "is_shift_invariant",
    "needs_all_logits",
    "settings_of",
    "warnings_of",
]


def settings_of(name: str) -> dict[str, Any]:
    """The settings of loss `name` with their defaults. Raises UsageError for an unknown name."""
    parameters = inspect.signature(_find(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def create(name: str, **settings: Any) -> Callable[[Outputs, Outputs, Tensor], Tensor]:
    """The loss `name` with its settings fixed.

    Numbers may come as text, tuples as lists (YAML's forms). Raises UsageError for an unknown name or
    setting, or a value of another kind or out of range.
    """
    found, checked = _find(name), _checked(name, settings)
    return functools.partial(found, **checked) if name in LOGIT else found(**checked)


def warnings_of(
    name: str, num_classes: int, batch: int, logits: Tensor | None = None, **settings: Any
) -> list[str]:
    """To be called once before training: one line for everything in which loss `name` degenerates, and what
    to use instead. The loss's file says it, in a function `degenerate(num_classes, batch, logits, settings)`.

    batch is images per forward pass; logits (N, K), when given, are the student's on a first batch, before
    training. Raises UsageError when training with the loss would be meaningless.
    """
    full = settings_of(name) | _checked(name, settings)
    if num_classes < 2:
        raise UsageError(
            f"{name} with {num_classes} class: there is nothing to tell apart. Expected 2 or more classes"
        )
    found = getattr(_module(name), "degenerate", None)
    return found(num_classes, batch, logits, full) if found else []


def is_shift_invariant(name: str) -> bool:
    """Does a constant added to all logits of an image leave the logit loss as it is? Raises UsageError."""
    return bool(getattr(_module(name), "SHIFT_INVARIANT", True))


def needs_all_logits(name: str) -> bool:
    """Is the loss wrong where only the teacher's largest logits are known, and what the others add up to?
    Raises UsageError.
    """
    return name in FEATURE or bool(getattr(_module(name), "NEEDS_ALL_LOGITS", False))


def _module(name: str) -> Any:
    """The file of loss `name`. Raises UsageError for an unknown name."""
    known = LOGIT | FEATURE
    if name not in known:
        raise UsageError(f"no loss called {name!r}{nearest(name, set(known))} Known: {', '.join(known)}")
    folder = "logit" if name in LOGIT else "feature"
    return importlib.import_module(f".{folder}.{known[name].partition(':')[0]}", __name__)


def _find(name: str) -> Callable[..., Any]:
    module = _module(name)
    return getattr(module, (LOGIT | FEATURE)[name].partition(":")[2])


def _checked(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings in their declared types. Raises UsageError."""
    known, found = settings_of(name), _find(name)
    hints = typing.get_type_hints(vars(found)["__init__"] if isinstance(found, type) else found)
    for key in settings:
        if key not in known:
            has = f"It has: {', '.join(known)}" if known else "It has none"
            raise UsageError(f"loss {name} has no setting {key!r}{nearest(key, set(known))} {has}")
    return {key: _typed(key, value, hints[key]) for key, value in settings.items()}


def _typed(key: str, value: Any, hint: Any) -> Any:
    options = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        if value not in options:
            raise UsageError(
                f"{key} {value!r}: expected"
                f" {' or '.join(map(str, options))}{nearest(str(value), set(options))}"
            )
        return value
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)) or not value:
            raise UsageError(f"{key} {value!r}: expected a list of one number or more")
        return tuple(_typed(key, item, options[0]) for item in value)
    if hint is bool and not isinstance(value, bool):
        raise UsageError(f"{key} {value!r}: expected true or false")
    return _number(key, value, hint) if hint in (int, float) else value


def _number(key: str, value: Any, kind: type) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number < 0 or (number == 0 and key in POSITIVE) or kind(number) != number:
        whole = "a whole number" if kind is int else "a number"
        raise UsageError(
            f"{key} {value!r}: expected {whole} {'above 0' if key in POSITIVE else 'of 0 or more'}"
        )
    return kind(number)
