"""The front door: one table of commands, from which every help is made.

A command is imported when it is called, and no other.

In:  the words that were typed after `distill` (or after `python -m export`, `bench`).
Out: an exit code: 0 ok, 1 a check failed, 2 usage, 3 something needed is missing here, 4 the file is not
     usable here, 70 a bug of ours, 130 interrupted.
Elsewhere: each command (the module that the table names), its flags (runtime.cli.flags), errors as one line
(runtime.cli.outcome).
"""

from __future__ import annotations

import ast
import codecs
import importlib
import importlib.util
import io
import os
import sys
from collections.abc import Sequence
from typing import Any, Protocol

from ..errors import UsageError
from . import outcome, terminal
from .nearest import nearest

COMMANDS = {
    "train": "distill.commands.train",
    "train --qat": "export.commands.train_qat",
    "eval": "distill.commands.eval",
    "erf": "distill.commands.erf",
    "label": "distill.commands.label",
    "attack": "distill.commands.attack",
    "export onnx": "export.commands.onnx",
    "export trt": "export.commands.trt",
    "export triton": "export.commands.triton",
    "parity": "export.commands.parity",
    "predict": "runtime.commands.predict",
    "inspect": "export.commands.inspect",
    "report": "distill.commands.report",
    "models": "distill.commands.models",
    "recipes": "distill.commands.recipes",
    "check": "runtime.commands.check",
    "env": "runtime.commands.env",
    "bench latency": "bench.commands.latency",
    "bench accuracy": "bench.commands.accuracy",
    "bench table": "bench.commands.table",
    "bench compare": "bench.commands.compare",
    "bench gate": "bench.commands.gate",
    "bench report": "bench.commands.report",
    "bench card": "bench.commands.card",
    "bench robustness": "bench.commands.robustness",
    "search": "large2small.commands.search",
    "demo": "distill.commands.demo",
}
"""What is typed after `distill` -> the module that does it, a `Command`. In the order of the overview."""

GROUPS = {
    "": "Distills a large-kernel ConvNet into a small-kernel student, exports it with calibrated INT8, "
    "and tabulates accuracy against latency.",
    "export": "Makes an artifact from a checkpoint; it then runs without torch.",
    "bench": "Measures artifacts, and names the conditions of every number.",
}
"""First word of a group of commands -> what the group is for; the empty word is the whole program."""

EXAMPLES = {
    "": (
        "train --teacher-ckpt teacher.pth --student resnet18 --data photos --output runs/student",
        "export onnx --int8 runs/student/best.pth",
        "bench latency --engine runs/student/best.int8.onnx",
    ),
    "export": (
        "export onnx best.pth",
        "export onnx best.pth --int8 --calib data/train --data data/val",
        "export trt --int8 best.pth",
        "export triton best.int8.plan --repository models",
    ),
    "bench": (
        "bench latency --engine student.onnx",
        "bench accuracy --engine student.int8.onnx --data photos --reference student.onnx",
        "bench table --data photos --teacher teacher.onnx student.onnx student.int8.onnx",
        "bench compare student.onnx student.int8.onnx",
        "bench gate new.onnx --baseline old.onnx --data photos --max-drop 0.5 --junit gate.xml",
    ),
}
"""Group -> lines to copy, without the word `distill`."""

EXIT_CODES = """exit codes: 0 ok, 1 a check failed, 2 usage, 3 something needed is missing here,
            4 the file is not usable here, 70 internal error, 130 interrupted"""
HELP_FLAGS = ("-h", "--help", "--help-all")
VERSION_FLAGS = ("-V", "--version")


class Command(Protocol):
    """What a command's module holds.

    It may also hold `SHARES_WORK`, true where several processes that torchrun started do the work of one
    (others are refused there); `parse(argv, prog) -> Options`, where flags depend on a file that another flag
    names; `instead(argv) -> str | None`, the command of the table that these words ask for instead of this
    one; and `do(options)`, what `run` does, without the printing: its result is what a function of
    large2small returns.
    """

    SUMMARY: str
    """One line for the overview: an imperative, without a full stop."""
    DESCRIPTION: str
    """What the help says below the summary: details and examples, with {prog} for the command itself."""
    Options: type
    """A frozen dataclass: its fields are the flags, with default, type and a docstring below each."""

    def run(self, options: Any) -> int | None:
        """Do it; the exit code, or None for 0. Failures are raised (runtime.errors)."""


def main(argv: Sequence[str] | None = None, group: str = "") -> int:
    """Run one command and return its exit code; group: the first word, where the program is called by it."""
    _open_what_is_closed()
    _print_in_any_encoding()
    typed = list(sys.argv[1:] if argv is None else argv)
    words = [group, *typed] if group else typed
    terminal.only_on_terminals("--json" in words)
    beside_another = _is_beside_another()
    terminal.mute(lines=beside_another, errors=beside_another)
    return outcome.run(lambda: _dispatch(words), as_json="--json" in words)


def _is_beside_another() -> bool:
    """Is this one of several processes that torchrun started here, and not the first? What is wrong with the
    words, which are the same in all, is said by that one.
    """
    return _processes() > 1 and os.environ.get("LOCAL_RANK", "0").strip() not in ("", "0")


def _open_what_is_closed() -> None:
    """Where the program was started without stdout or stderr, what it prints there goes nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # until the program ends


def _print_in_any_encoding() -> None:
    """Letters that a terminal's or file's encoding does not have are written in others, or as codes: the
    result of an hour's work must not be lost at a Greek letter, nor an error at a file name that is not
    UTF-8.
    """
    codecs.register_error("other letters", _other_letters)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="other letters")


OTHER_LETTERS = {"\N{GREEK CAPITAL LETTER DELTA}": "D", "\N{EN DASH}": "-", "\N{MULTIPLICATION SIGN}": "x"}
"""What the commands themselves print beyond ASCII, and a letter as wide, so that tables stay straight."""


def _other_letters(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letter = error.object[error.start]
    if letter in OTHER_LETTERS:
        return OTHER_LETTERS[letter], error.start + 1
    error.end = error.start + 1
    return codecs.backslashreplace_errors(error)


def _dispatch(words: list[str]) -> int | None:
    words = _help_first(words)
    group = words[0] if words and words[0] in GROUPS else ""
    behind = words[1:] if group else words
    if behind and behind[0] in VERSION_FLAGS:
        from importlib.metadata import version

        print(version("large2small"))
        return 0
    if not behind or behind[0] in HELP_FLAGS:
        print(overview(group))
        if behind:
            return 0
        raise UsageError(f"no command given. See {_typed(group)} --help")
    name, rest = _split(words)
    if name is None:
        known = list(dict.fromkeys(command.removeprefix(f"{group} ").split()[0] for command in _names(group)))
        raise UsageError(
            f"no command {behind[0]!r}{_meant(behind[0], known)} Commands: {', '.join(known)}. "
            f"See {_typed(group)} --help"
        )
    return _run(name, rest)


def _help_first(words: list[str]) -> list[str]:
    """`help CMD` and `GROUP help CMD` as `CMD --help`."""
    for place in (0, 1):
        if words[place : place + 1] == ["help"] and (place == 0 or words[0] in GROUPS):
            return [*words[:place], *words[place + 1 :], "--help"]
    return words


def _split(words: list[str]) -> tuple[str | None, list[str]]:
    """(name of the command at the start of `words` or None, the words behind it)."""
    for count in (2, 1):
        name = " ".join(words[:count])
        if name in COMMANDS and "--" not in name:
            return name, words[count:]
    return None, words


def _meant(asked: str, known: list[str]) -> str:
    """What was probably meant: a command that is asked for without its group, or the nearest word."""
    whole = next((name for name in COMMANDS if name.split()[1:] == [asked]), None)
    return f"; did you mean {_typed(whole)}?" if whole else nearest(asked, known)


def _run(name: str, words: list[str]) -> int | None:
    _require_working_folder()
    name, command = chosen(name, words)
    options = options_of(name, command, words)
    if _processes() > 1 and not getattr(command, "SHARES_WORK", False):
        raise UsageError(
            f"WORLD_SIZE={_processes()}: {_typed(name)} works in one process, and {_processes()} would do the"
            " same and write the same files. Start it without torchrun, or unset WORLD_SIZE"
        )
    code: int | None = command.run(options)
    return code


def _require_working_folder() -> None:
    """Raise UsageError where the folder that the program was started in has been removed: libraries that look
    for their own files then end the process.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UsageError("the working folder was removed. Change to one that is there: cd DIR") from None


def _processes() -> int:
    """How many processes torchrun started together, as far as the environment says a number."""
    said = os.environ.get("WORLD_SIZE", "").strip()
    return int(said) if said.isascii() and said.isdigit() else 1


def chosen(name: str, words: Sequence[str]) -> tuple[str, Any]:
    """(name, module) of the command that does it: the one named, or the one that these words ask for
    instead.
    """
    command: Any = importlib.import_module(COMMANDS[name])
    other = command.instead(words) if hasattr(command, "instead") else None
    return (other, importlib.import_module(COMMANDS[other])) if other else (name, command)


def options_of(name: str, command: Any, words: list[str]) -> Any:
    """The command's Options from the words behind its name, checked."""
    prog = _typed(name)
    if hasattr(command, "parse"):
        return command.parse(words, prog)
    from . import flags

    return flags.parse(command.Options, words, prog, flags.description(command, prog))


def overview(group: str = "") -> str:
    """The help of the whole program or of one group: each command with its summary."""
    from .help import described, listed, terminal_width

    names, width = _names(group), terminal_width()
    summaries = {name.removeprefix(f"{group} "): summary(COMMANDS[name]) for name in names}
    examples = "\n".join(["examples:", *(f"  distill {line}" for line in EXAMPLES[group])])
    parts = [
        f"usage: {_typed(group)} COMMAND [flags]",
        described(GROUPS[group], width),
        "\n".join(["commands:", *listed(summaries, width)]),
        described(examples, width),
        f"flags of a command: {_typed(group)} COMMAND --help",
        EXIT_CODES,
    ]
    return "\n\n".join(parts)


def summary(module: str) -> str:
    """The module's SUMMARY, read from its source: importing it would cost what the command needs."""
    found = importlib.util.find_spec(module)
    loader: Any = found.loader if found else None  # importlib's protocol for loaders has no get_source
    for node in ast.parse(loader.get_source(module)).body:
        if isinstance(node, ast.Assign) and [getattr(each, "id", None) for each in node.targets] == [
            "SUMMARY"
        ]:
            return str(ast.literal_eval(node.value))
    raise AttributeError(f"{module} has no SUMMARY")


def _names(group: str) -> list[str]:
    return [name for name in COMMANDS if not group or name.split()[0] == group]


def _typed(name: str) -> str:
    """What is typed for a command or a group."""
    return f"distill {name}".rstrip()
