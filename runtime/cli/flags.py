"""From a command line to an options dataclass.

In:  a frozen dataclass whose fields are the flags (runtime.cli.settings), and argv.
Out: an instance; or exit 2 with one line that says what was expected, or names the nearest flag.
Elsewhere: which command it is (runtime.cli.front_door), the help (runtime.cli.help), other words for a flag
(runtime.cli.nearest), errors as one line (runtime.cli.outcome).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..errors import UsageError
from ..files import BEST
from . import help as pages
from .nearest import nearest_flag
from .settings import Setting, explanation, settings_of, shown

T = TypeVar("T")


def parse(
    options: type[T], argv: Sequence[str], prog: str, description: str = "", default: T | None = None
) -> T:
    """An instance of the dataclass `options` from `argv`; flags override `default`.

    `--help` and `--help-all` print and exit 0. Raises UsageError with one line for what cannot be read.
    """
    kind: type = options
    settings = settings_of(kind)
    check_flags(kind, argv, prog)
    if any(word in pages.HELP_FLAGS for word in argv):
        whole = pages.HELP_ALL in argv
        print(pages.page(settings, prog, description, default, whole))
        raise SystemExit(0)
    try:
        given, loose = _sort(settings, argv)
        given |= _place(settings, loose, given)
        values = {
            setting.name: _read(setting, given[setting.name]) for setting in settings if setting.name in given
        }
        if default is not None:
            values = {setting.name: getattr(default, setting.name) for setting in settings} | values
        _require(settings, values, argv)
    except UsageError as error:
        end = "" if str(error).endswith("?") else "."
        raise UsageError(f"{error}{end} See {prog} --help") from None
    return options(**values)


def description(command: Any, prog: str) -> str:
    """What the help of a command says above its flags: summary, details and examples."""
    opening = f"{command.SUMMARY[0].upper()}{command.SUMMARY[1:]}."
    return f"{opening}\n\n{command.DESCRIPTION.format(prog=prog)}"


REFUSED = dict.fromkeys(
    ("--multilabel", "--multi-label"),
    "multi-label training is not supported; every image has one class here. Leave the flag out",
)
"""Flags that other projects have for what this one does not do -> what to say of it."""


def check_flags(options: type, argv: Sequence[str], prog: str) -> None:
    """Raise UsageError naming the nearest flag for the first `--word` that `options` does not have."""
    settings = settings_of(options)
    known = set(_by_word(settings)) | set(pages.HELP_FLAGS)
    for word in argv:
        if word == "--":
            return
        typed = word.split("=", 1)[0]
        if _dashed(typed) in REFUSED:
            raise UsageError(f"{typed}: {REFUSED[_dashed(typed)]}")
        if typed.startswith("--") and _dashed(typed) not in known:
            raise UsageError(f"unknown flag {typed}{nearest_flag(typed, settings)} See {prog} --help")


def _by_word(settings: Iterable[Setting]) -> dict[str, Setting]:
    found = {word: setting for setting in settings for word in setting.words}
    return found | {setting.negated: setting for setting in settings if setting.negated and setting.words}


def _dashed(flag: str) -> str:
    """--batch_size as --batch-size."""
    return f"--{flag[2:].replace('_', '-')}"


def _sort(settings: Sequence[Setting], argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """({setting: words typed for it, or a switch's state}, words that no flag took)."""
    known = _by_word(settings)
    words, loose = deque(argv), list[str]()
    given: dict[str, Any] = {}
    while words:
        word = words.popleft()
        if word == "--":
            loose += words
            break
        typed, equals, value = word.partition("=")
        typed = _dashed(typed) if typed.startswith("--") else typed
        if word[:2] in known and not word.startswith("--") and typed not in known:  # -j8
            typed, equals, value = word[:2], "=", word[2:]
        if typed not in known:
            if word[0:1] == "-" and word[1:2].isalpha():
                raise UsageError(f"unknown flag {word}")
            loose.append(word)
            continue
        setting = known[typed]
        if setting.kind is bool:
            if equals:
                raise UsageError(
                    f"{typed}: takes no value, found {value!r}. Give {typed} or {setting.negated}"
                )
            given[setting.name] = typed != setting.negated
            continue
        taken = [value] if equals else []
        while words and len(taken) != setting.count and words[0].split("=", 1)[0] not in known:
            if words[0].startswith("--") and words[0] != "--":  # --batch_size is a flag, too
                break
            if words[0] == "--":
                break
            taken.append(words.popleft())
        if not taken and setting.flag.alone is not None:
            taken = [setting.flag.alone]
        if setting.count is not None and len(taken) < setting.count:
            raise UsageError(_missing_value(typed, setting, taken))
        given[setting.name] = taken
    return given, loose


def _missing_value(typed: str, setting: Setting, taken: list[str]) -> str:
    if setting.count == 1:
        return f"{typed}: its value is missing. Expected {setting.metavar}"
    return f"{typed} {' '.join(taken)}: expected {setting.count} values, {setting.metavar}"


def _place(settings: Sequence[Setting], loose: list[str], given: dict[str, Any]) -> dict[str, list[str]]:
    """The words without a flag, handed to the positional settings in turn."""
    placed, rest = {}, loose
    for setting in settings:
        if setting.flag.positional and (rest or setting.count is None):
            count = len(rest) if setting.count is None else setting.count
            placed[setting.name], rest = rest[:count], rest[count:]
    for setting in settings:
        if setting.flag.bare and setting.name not in given and rest:
            placed[setting.name], rest = rest[:1], rest[1:]
    if rest:
        missing = next((s for s in settings if s.required and s.words and s.name not in given | placed), None)
        instead = f"; did you mean {missing.words[0]} {rest[0]}?" if missing else ""
        raise UsageError(f"{rest[0]}: no flag takes this word{instead}")
    return placed


def _read(setting: Setting, typed: Any) -> Any:
    if setting.kind is bool:
        return typed
    if setting.optional and typed == ["None"]:  # takes back what a recipe says
        return None
    values = tuple(_value(setting, word) for word in typed)
    found = values[0] if setting.count == 1 else values
    if expected := setting.problem(found):
        raise UsageError(f"{setting.label} {shown(found)}: expected {expected}")
    return found


def _value(setting: Setting, word: str) -> Any:
    typed = word or "''"
    if setting.choices and word not in setting.choices:
        *first, last = sorted(setting.choices)
        raise UsageError(
            f"{setting.label} {typed}: expected {', '.join(first)}{' or ' if first else ''}{last}"
        )
    if setting.kind in (int, float):
        try:
            return setting.kind(word)
        except ValueError:
            expected = "a whole number" if setting.kind is int else "a number"
            raise UsageError(f"{setting.label} {typed}: expected {expected}") from None
    if setting.is_checkpoint and (Path(word) / BEST).is_file():
        word = str(Path(word) / BEST)
    return Path(word) if setting.kind is Path else word


def _require(settings: Sequence[Setting], values: dict[str, Any], argv: Sequence[str]) -> None:
    for setting in settings:
        if setting.required and setting.name not in values:
            greedy = sorted({w for s in settings if s.count is None for w in s.words} & set(argv))
            swallowed = f" ({', '.join(greedy)} takes all words behind it: give it last)" if greedy else ""
            about = explanation(setting).split(". ")[0].rstrip(".")
            label = setting.label if setting.flag.positional else f"{setting.label} {setting.metavar}"
            raise UsageError(f"Missing {label}: {about}{swallowed}")
