"""The help of one command, as it fits the terminal.

In:  the settings of the command, what stands above them, the terminal's width (COLUMNS).
Out: text: usage, description, the settings in groups. A command with many shows the common ones, and with
--help-all all of them.
Elsewhere: the overview of all commands (runtime.cli.front_door), what a setting is (runtime.cli.settings).
"""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from .settings import Setting, explanation, shown

HELP_ALL = "--help-all"
HELP_FLAGS = ("-h", "--help", HELP_ALL)
MANY = 22
"""A command with more settings shows only its common ones by default."""
INDENT = 24
"""Columns before the explanation of a flag."""


def page(
    settings: Sequence[Setting], prog: str, description: str, default: Any = None, whole: bool = False
) -> str:
    """The help; `default`: an instance whose values are shown as the defaults."""
    width = terminal_width()
    short = len(settings) > MANY and not whole
    positional = [setting for setting in settings if setting.flag.positional]
    parts = [usage(prog, settings), described(description, width)]
    if positional:
        parts.append(_group("Arguments", positional, default, width))
    for heading, group in _groups(settings):
        chosen = [setting for setting in group if not short or setting.flag.common or setting.required]
        if chosen:
            parts.append(_group(heading, chosen, default, width))
    if whole:
        parts.append(
            textwrap.fill("A flag that takes no value also has a --no- form, such as --no-json.", width)
        )
    if short:
        count = sum(setting.flag.common or setting.required for setting in settings)
        parts.append(f"These are {count} of {len(settings)} flags. All of them: {prog} {HELP_ALL}")
    return "\n\n".join(parts)


def terminal_width() -> int:
    """Columns that a help may fill: the terminal's, at most 110."""
    return min(shutil.get_terminal_size((80, 24)).columns, 110)


def usage(prog: str, settings: Iterable[Setting]) -> str:
    """usage: distill export onnx CKPT [flags]"""
    needed = [_needed(setting) for setting in settings if setting.required]
    return " ".join(["usage:", prog, *needed, "[flags]"])


def _needed(setting: Setting) -> str:
    """--engine FILE; [--engine] FILE where the flag may be left out; FILE where there is none."""
    if setting.flag.positional:
        return setting.metavar
    flag = setting.words[0]
    return f"{f'[{flag}]' if setting.flag.bare else flag} {setting.metavar}"


def described(text: str, width: int) -> str:
    """Paragraphs filled to the width; examples one a line, long ones continued with a backslash."""
    lines: list[str] = []
    for block in re.split(r"\n\s*\n", text.strip()):
        prose = ""
        lines.append("")
        for line in block.splitlines():
            if line.startswith("  ") or line.endswith(":"):
                lines += textwrap.wrap(prose, width) + _continued(line, width)
                prose = ""
            else:
                prose = f"{prose} {line}".strip()
        lines += textwrap.wrap(prose, width)
    return "\n".join(lines).strip("\n")


def _continued(line: str, width: int) -> list[str]:
    """An example that is longer than the terminal, broken before a flag."""
    found, rest = [], line
    while len(rest) > width and (place := rest.rfind(" --", 8, width - 1)) > 0:
        found.append(f"{rest[:place].rstrip()} \\")
        rest = f"      {rest[place + 1 :]}"
    return [*found, rest]


def listed(entries: dict[str, str], width: int) -> list[str]:
    """`  name  what it does` lines, wrapped below what it does."""
    column = max(map(len, entries)) + 4
    lines = []
    for name, about in entries.items():
        indent = " " * column
        lines += textwrap.wrap(
            about, width, initial_indent=f"  {name}".ljust(column), subsequent_indent=indent
        )
    return lines


def _groups(settings: Sequence[Setting]) -> list[tuple[str, list[Setting]]]:
    """(heading, settings) of each class that declares some, in the order of the fields; first
    those that have to be given.
    """
    groups: dict[type, list[Setting]] = {}
    for setting in settings:
        if not setting.flag.positional:
            groups.setdefault(setting.owner, []).append(setting)
    if len(groups) == 1:
        return [("Flags", group) for group in groups.values()]
    found = [(_heading(owner), group) for owner, group in groups.items()]
    return sorted(found, key=lambda group: not any(setting.required for setting in group[1]))


def _heading(owner: type) -> str:
    """The first sentence of the class's docstring."""
    return " ".join((owner.__doc__ or owner.__name__).split()).split(". ")[0].rstrip(".")


def _group(heading: str, settings: Sequence[Setting], default: Any, width: int) -> str:
    lines = [heading]
    for setting in settings:
        lines += _entry(setting, default, width)
    return "\n".join(lines)


def _entry(setting: Setting, default: Any, width: int) -> list[str]:
    value = setting.default if default is None else getattr(default, setting.name)
    about = textwrap.wrap(
        f"{explanation(setting)}{_default(setting, value)}",
        width - INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )
    flags = f"  {invocation(setting, value)}"
    first = (
        [flags.ljust(INDENT) + about.pop(0)] if about and len(flags) < INDENT - 1 else _wrapped(flags, width)
    )
    return [*first, *(" " * INDENT + line for line in about)]


def _wrapped(flags: str, width: int) -> list[str]:
    """Flags with a long list of choices, broken behind a comma."""
    if len(flags) <= width:
        return [flags]
    place = flags.rfind(",", 0, width) + 1 or width
    return [flags[:place], *_wrapped(" " * 6 + flags[place:].lstrip(), width)]


def invocation(setting: Setting, value: Any) -> str:
    """What is typed: `-b, --batch, --batch-size N`; the --no- form of what is on by default, too."""
    if setting.flag.positional:
        return setting.metavar
    words = sorted(setting.words, key=lambda word: word.startswith("--"))
    if setting.kind is bool:
        return ", ".join([*words, setting.negated] if value is True and setting.negated else words)
    return f"{', '.join(words)} {setting.metavar}"


def _default(setting: Setting, value: Any) -> str:
    if setting.required:
        return " (required)"
    if setting.kind is bool:
        return " (default: on)" if value is True else ""
    return "" if value in (None, "", ()) else f" (default: {shown(value)})"
