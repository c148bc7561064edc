"""A command, called from Python: keywords become the words that would have been typed.

In:  a command's name, keywords with Python values.
Out: what the command's `do` returns; its failures as exceptions of runtime.errors.
Elsewhere: the commands and how their words are read and checked (runtime.cli.front_door, runtime.cli.flags).

So that there is one reader of settings: recipes, resumed runs and defaults apply as they do to a command.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from runtime.errors import UsageError

PRINTED = ("json", "csv")
"""Flags that only say how a command prints: a function has no such keyword."""


def call(name: str, keywords: Mapping[str, Any], positional: Sequence[Any] = (), quiet: bool = False) -> Any:
    """What `distill NAME` does with these settings. Nothing is printed on stdout, with quiet nothing at all.

    positional: values of the settings that are typed without a flag, in their order.
    Raises UsageError naming the nearest keyword for one that the command does not have.
    """
    from runtime.cli import front_door

    with _raising_ours(), _apart_from_stdout(quiet):
        name, command = front_door.chosen(name, [_loosely(*each) for each in keywords.items()])
        words = _words(name, command.Options, keywords)
        places = [_text(word, "a path") for word in positional]
        behind = ["--", *places] if places else []
        return command.do(front_door.options_of(name, command, [*words, *behind]))


def _words(name: str, options: type, keywords: Mapping[str, Any]) -> list[str]:
    from runtime.cli.nearest import nearest_keyword
    from runtime.cli.settings import settings_of

    settings = [each for each in settings_of(options) if each.words and each.name not in PRINTED]
    known = {_keyword(word): each for each in settings for word in each.words}
    words = []
    for keyword, value in keywords.items():
        if keyword not in known:
            meant = nearest_keyword(keyword, settings)
            raise UsageError(f"{name.replace(' ', '_')}() has no keyword {keyword}{meant}")
        words += _typed(keyword, known[keyword], value)
    return words


def _typed(keyword: str, setting: Any, value: Any) -> list[str]:
    """The words for one setting: --no-amp; --lr=0.1; --exclude=a b."""
    flag = setting.words[0]
    if value is None:
        if not setting.optional:
            raise UsageError(f"{keyword} None: expected a value. Leave it out for the default")
        return [f"{flag}=None"]
    if setting.kind is bool:
        if not isinstance(value, (bool, np.bool_)):
            raise UsageError(f"{keyword} {value!r}: expected True or False")
        return [flag if value else setting.negated]
    if setting.flag.alone is not None and isinstance(value, bool):
        return [flag if value else f"{flag}="]
    if setting.count == 1:
        return [f"{flag}={_text(value, 'one value', keyword)}"]
    if isinstance(value, Mapping):  # kd_args={"temperature": 2}
        value = [f"{key}={each}" for key, each in value.items()]
    values = [_text(each, "text or numbers", keyword) for each in _several(value)]
    if dashed := next((each for each in values[1:] if each.startswith("--")), None):
        raise UsageError(f"{keyword} {dashed}: expected values that do not begin with two dashes")
    return [f"{flag}={values[0]}", *values[1:]] if values else [flag]


def _several(value: Any) -> Sequence[Any]:
    return value if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def _text(value: Any, expected: str, keyword: str = "") -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, (str, int, float, np.generic)):
        raise UsageError(f"{keyword} {value!r}: expected {expected}".lstrip())
    return str(value)


def _keyword(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")


def _loosely(keyword: str, value: Any) -> str:
    """One word that says which command is meant; how a value is typed depends on that command."""
    return f"--{keyword.replace('_', '-')}" + ("" if value is True else f"={value}")


@contextlib.contextmanager
def _raising_ours() -> Iterator[None]:
    """A missing package, a full disk or a full GPU is an error of runtime.errors, as it is for a command."""
    try:
        yield
    except Exception as error:
        from runtime.cli.outcome import as_ours

        ours = as_ours(error)
        if ours is None or ours is error:
            raise
        raise ours from error


@contextlib.contextmanager
def _apart_from_stdout(quiet: bool) -> Iterator[None]:
    """Send what libraries print to stderr, and with quiet nowhere."""
    with contextlib.ExitStack() as stack:
        if quiet:
            stack.enter_context(contextlib.redirect_stderr(stack.enter_context(open(os.devnull, "w"))))
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield
