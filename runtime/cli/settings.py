"""The fields of an options dataclass as settings: type, default, unit, range and explanation of each.

In:  a frozen dataclass; beside a field's type there may be a `Flag`, below it stands its docstring.
Out: a list of `Setting`; `check` refuses values that are not allowed, whoever made the instance.
Elsewhere: argv to an instance (runtime.cli.flags), the help that shows them (runtime.cli.help).
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import math
import os
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Union

from ..errors import UsageError

LARGEST = 2**63 - 1
"""Whole numbers beyond it do not fit the 64 bits that every library here counts in."""
CHECKPOINTS = ("CKPT", "CKPT_OR_ONNX")
"""Words in the help for values that are checkpoints."""
METAVARS = {int: "N", float: "X", Path: "FILE", str: "NAME", bool: ""}


@dataclass(frozen=True)
class Flag:
    """How a field is typed and which values it takes: `epochs: Annotated[int, Flag("N", least=1)] = 100`."""

    metavar: str = ""
    """Word for its value in the help; by default after the type."""
    aliases: tuple[str, ...] = ()
    """Other flags that set it, with their dashes."""
    common: bool = False
    """Shown by --help of a command with many flags; --help-all shows all."""
    positional: bool = False
    """Typed without a flag."""
    bare: bool = False
    """Typed with its flag or without: the first word that nothing else takes."""
    alone: str | None = None
    """What is meant where the flag stands alone, without a value; None: it needs one."""
    choices: tuple[str, ...] = ()
    """The only words it takes, where a table holds them and no Literal can."""
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def allows(self, value: float) -> bool:
        """Is the number finite, and in the range? NaN is in none."""
        return (
            (abs(value) <= LARGEST if isinstance(value, int) else math.isfinite(value))
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    @property
    def range(self) -> str:
        """The range in words, empty where every finite number will do."""
        low = "" if self.least is None else f"{self.least:g}"
        if low and self.most is not None:
            return f"{low} to {self.most:g}"
        if low and self.below is not None:
            return f"{low} to below {self.below:g}"
        if low:
            return f"{low} or more"
        words = [
            f"{word} {bound:g}"
            for word, bound in (("above", self.above), ("at most", self.most), ("below", self.below))
            if bound is not None
        ]
        return ", ".join(words)


EVERYWHERE = {"seed": Flag("N", least=0)}
"""Fields that mean the same in every command; numpy takes no seed below 0."""
AT_ONCE = max(128, 4 * (os.cpu_count() or 1))
"""Processes or threads of one command; a file may come from a machine with more cores than this one."""
MOST = {
    **dict.fromkeys(("workers", "threads", "contexts"), AT_ONCE),
    **dict.fromkeys(("img_size", "crop_padding"), 4096),
    **dict.fromkeys(("input_size", "teacher_input_size"), 16384),
    "num_classes": 1_000_000,
}
"""The largest value of fields that cost memory or time before anything else is looked at, in every command
and file, where their flag has no range of its own."""


@dataclass(frozen=True)
class Setting:
    """One field of an options dataclass."""

    name: str
    kind: type
    """Type of one value: str, int, float, bool or Path."""
    choices: tuple[str, ...]
    """The only words it takes; empty: any."""
    optional: bool
    """May be None, which is what it is when not given."""
    count: int | None
    """Values it takes: 1, a fixed number above it, or None for any number."""
    default: Any
    """dataclasses.MISSING where it has to be given."""
    flag: Flag
    owner: type
    """The class that declares it."""

    @property
    def words(self) -> list[str]:
        """What may be typed for it, the usual form first; empty for a positional."""
        if self.flag.positional:
            return []
        return [f"--{self.name.replace('_', '-')}", *self.flag.aliases]

    @property
    def negated(self) -> str | None:
        """The flag that turns it off, where it is a switch."""
        return f"--no-{self.name.replace('_', '-')}" if self.kind is bool else None

    @property
    def metavar(self) -> str:
        """The word for its value: {a,b}, N, DIR ..."""
        if self.choices:
            return f"{{{','.join(self.choices)}}}"
        if self.flag.alone is not None:
            return f"[{self.flag.metavar}]"
        named = self.flag.metavar or (self.name.upper() if self.flag.positional else METAVARS[self.kind])
        if self.count is None:
            return f"{named} ..."
        return named if " " in named else " ".join([named] * self.count)

    @property
    def label(self) -> str:
        """How a sentence names it: --epochs, or CKPT."""
        return self.metavar.removesuffix(" ...") if self.flag.positional else self.words[0]

    @property
    def is_checkpoint(self) -> bool:
        """Is its value a checkpoint, for which the folder of a run may be given?"""
        return self.flag.metavar in CHECKPOINTS

    @property
    def required(self) -> bool:
        """Has it no default?"""
        return self.default is MISSING

    def problem(self, value: Any) -> str:
        """What was expected instead of a value that it does not take; empty when the value will do."""
        if self.choices and value not in self.choices and not (value is None and self.optional):
            return f"one of {', '.join(self.choices)}"
        numbers = value if isinstance(value, (tuple, list)) else (value,)
        problems = (_number_problem(number, self.flag) for number in numbers)
        return next(filter(None, problems), "")


def _number_problem(number: Any, flag: Flag) -> str:
    if isinstance(number, bool) or not isinstance(number, (int, float)) or flag.allows(number):
        return ""
    if isinstance(number, int) and number > LARGEST:
        return f"at most {LARGEST}"
    if math.isfinite(number):
        return flag.range or f"at least -{LARGEST}"
    what = "a number" if math.isnan(number) else "a finite number"
    return f"{what}, {flag.range}" if flag.range else what


@functools.cache
def settings_of(options: type) -> tuple[Setting, ...]:
    """The settings of a dataclass, in the order of its fields."""
    hints = typing.get_type_hints(options, include_extras=True)
    return tuple(_setting(field.name, hints[field.name], field.default, options) for field in fields(options))


def check(options: object) -> None:
    """Raise UsageError naming the first setting that is not a choice, out of its range or not finite."""
    kind: type = type(options)
    for setting in settings_of(kind):
        value = getattr(options, setting.name)
        if expected := setting.problem(value):
            raise UsageError(f"{setting.name.replace('_', '-')} {shown(value)}: expected {expected}")


def shown(value: Any) -> str:
    """A value as it is typed: words with spaces between for a tuple."""
    if isinstance(value, (tuple, list)):
        return " ".join(map(str, value))
    return str(value)


def explanation(setting: Setting) -> str:
    """The docstring below the field, on one line."""
    return _explanations(setting.owner).get(setting.name, "")


def _setting(name: str, hint: Any, default: Any, options: type) -> Setting:
    flag = EVERYWHERE.get(name, Flag())
    if hasattr(hint, "__metadata__"):
        flag = next((extra for extra in hint.__metadata__ if isinstance(extra, Flag)), flag)
        hint = hint.__origin__
    parts, optional = typing.get_args(hint), False
    count: int | None = 1
    if typing.get_origin(hint) in (Union, types.UnionType) and type(None) in parts:
        optional = True
        hint = next(part for part in parts if part is not type(None))
        parts = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        hint = parts[0]
        count = None if parts[-1] is Ellipsis else len(parts)
    choices = flag.choices
    if typing.get_origin(hint) is Literal:
        choices, hint = typing.get_args(hint), str
    if hint not in METAVARS:
        raise TypeError(f"{options.__name__}.{name}: no flag can be made of a field of type {hint}")
    if flag.most is None and name in MOST and hint is int:
        flag = replace(flag, most=MOST[name])
    owner = next(c for c in options.__mro__ if name in vars(c).get("__annotations__", {}))
    return Setting(name, hint, choices, optional, count, default, flag, owner)


@functools.cache
def _explanations(owner: type) -> dict[str, str]:
    (declared,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    assert isinstance(declared, ast.ClassDef), owner
    return dict(_documented(declared.body))


def _documented(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    """(field, docstring below it) for every field that has one."""
    for statement, below in itertools.pairwise(body):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            yield statement.target.id, " ".join(below.value.value.split())
