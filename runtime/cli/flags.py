"""From a command line to an options dataclass.

In:  a frozen dataclass whose fields are the flags (default, type, docstring below each), and argv.
Out: an instance; or exit 2 with one line that names the nearest flag.
Elsewhere: which command it is (runtime.cli.front_door), errors as one line (runtime.cli.outcome).
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from ..errors import UsageError
from .nearest import nearest

T = TypeVar("T")


def parse(
    options: type[T], argv: Sequence[str], prog: str, description: str = "", default: T | None = None
) -> T:
    """An instance of the dataclass `options` from `argv`; flags override `default`.

    `--help` prints and exits 0. Raises UsageError with one line for anything that cannot be parsed.
    """
    import tyro

    check_flags(options, argv, prog)
    complaint = io.StringIO()
    wide = os.environ.get("COLUMNS")
    asks_help = any(word in ("-h", "--help") for word in argv)
    try:
        if asks_help:
            return tyro.cli(options, prog=prog, description=description, args=list(argv), default=default)
        os.environ["COLUMNS"] = "1000"  # so that the complaint is not broken into lines
        with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(complaint):
            found = tyro.cli(options, prog=prog, description=description, args=list(argv), default=default)
        refuse_impossible(found, prog)
        return found
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        reason = _unboxed(complaint.getvalue())
        if reason.startswith("Missing") and (greedy := _several(options) & set(argv)):
            reason += f" ({', '.join(sorted(greedy))} takes all words behind it: give it last)"
        raise UsageError(f"{reason}. See {prog} --help") from None
    finally:
        os.environ.pop("COLUMNS", None)
        if wide is not None:
            os.environ["COLUMNS"] = wide


def description(command: Any, prog: str) -> str:
    """What the help of a command says above its flags: summary, details and examples."""
    opening = f"{command.SUMMARY[0].upper()}{command.SUMMARY[1:]}."
    return f"{opening}\n\n{command.DESCRIPTION.format(prog=prog)}"


def check_flags(options: type, argv: Sequence[str], prog: str) -> None:
    """Raise UsageError naming the nearest flag for the first `--word` that `options` does not have."""
    names = [field.name.replace("_", "-") for field in fields(options)]
    known = {f"--{name}" for name in names} | {f"--no-{name}" for name in names} | {"--help", "--"}
    known |= {alias for field in fields(options) for alias in _aliases(options, field.name)}
    for word in argv:
        flag = word.split("=", 1)[0]
        if flag.startswith("--") and flag.replace("_", "-") not in known:
            raise UsageError(f"unknown flag {flag}{nearest(flag, known)} See {prog} --help")


def refuse_impossible(options: Any, prog: str) -> None:
    """Raise UsageError for what no command can use: a NaN, with which no comparison holds, so that no check
    of a value would find it; a seed below 0, which numpy refuses.
    """
    for field in fields(options):
        value = getattr(options, field.name)
        if isinstance(value, float) and math.isnan(value):
            raise UsageError(f"--{field.name.replace('_', '-')} nan: expected a number. See {prog} --help")
        if field.name == "seed" and value < 0:
            raise UsageError(f"--seed {value}: expected 0 or more. See {prog} --help")


def _several(options: type) -> set[str]:
    """The flags that take any number of words."""
    import typing

    hints = typing.get_type_hints(options)
    return {
        f"--{field.name.replace('_', '-')}" for field in fields(options) if ", ...]" in str(hints[field.name])
    }


def _aliases(options: type, name: str) -> list[str]:
    import typing

    hint = typing.get_type_hints(options, include_extras=True)[name]
    found = []
    for extra in getattr(hint, "__metadata__", ()):
        found += [alias for alias in getattr(extra, "aliases", None) or () if alias.startswith("--")]
    return found


def _unboxed(text: str) -> str:
    """The first block of sentences in tyro's complaint, on one line; its title and its help text are left
    out.
    """
    lines = [
        line.strip(" │|") for line in text.splitlines() if line.strip() and not line.startswith(("╭", "╰"))
    ]
    blocks: list[list[str]] = [[]]
    for line in lines:
        if re.fullmatch(r"[─-]+", line):
            blocks.append([])
        else:
            blocks[-1].append(line)
    if "╭" not in text and len(blocks) > 1:  # without box characters the title is a block of its own
        blocks.pop(0)
    said = re.sub(r"\s+", " ", " ".join(blocks[0])).strip().rstrip(".") or "the command line cannot be read"
    for pattern, rewrite in _PLAINER.items():
        said = re.sub(pattern, rewrite, said, flags=re.IGNORECASE)
    return said


def _choices(found: re.Match[str]) -> str:
    """None, by which tyro means the flag left out, is nothing to type; its order changes from run to run."""
    known = sorted({*re.findall("'([^']*)'", found[3])} - {"None"})
    return f"{found[2]} {found[1]}: expected {' or '.join(filter(None, (', '.join(known[:-1]), known[-1])))}"


_PLAINER: dict[str, str | Callable[[re.Match[str]], str]] = {
    r"invalid choice '(.*)' for argument '(-[^']*)'\. Expected one of \((.*?)\)": _choices,
    r"Error parsing (-\S+): invalid literal for int\(\) with base 10: '(.*)'": (
        r"\1 \2: expected a whole number"
    ),
    r"Error parsing (-\S+): could not convert string to float: '(.*)'": r"\1 \2: expected a number",
    r"Missing value for argument '(-[^']*)'\. Expected 1 values": r"\1: its value is missing",
}
"""Tyro's sentences (1.0) in ours; another version's, if not found here, are shown as they are."""
