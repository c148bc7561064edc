"""The `bench` command: `latency`, `accuracy`, `table`. A subcommand's module is imported when it is called.

In:  argv without the program's name.
Out: an exit code; results on stdout, one line on stderr for a failure.
Elsewhere: each subcommand's flags and work (the module of its name).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from runtime import UsageError, commands

SUBCOMMANDS = {
    "latency": "percentiles and throughput of an artifact",
    "accuracy": "top-1, top-5, loss on labelled images; agreement with a reference artifact",
    "table": "accuracy against latency: teacher, control and students in one table",
}
"""Name of the subcommand, which is also its module in this folder -> what it does."""

EXAMPLES = (
    "latency --engine student.onnx",
    "accuracy --engine student_int8.onnx --data photos --reference student.onnx",
    "table --data photos --teacher teacher.onnx --control control.onnx student.onnx student_int8.onnx",
)


def main(argv: Sequence[str] | None = None, prog: str = "bench") -> int:
    """Run a subcommand and return its exit code; prog is what the user typed before it, for messages."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return commands.run(lambda: _dispatch(words, prog), as_json="--json" in words)
    except SystemExit as stop:  # --help of a subcommand
        return int(stop.code or 0)


def _dispatch(words: list[str], prog: str) -> int:
    if not words:
        raise UsageError(f"{prog} needs a subcommand: {', '.join(SUBCOMMANDS)}. See {prog} --help")
    name, *rest = words
    if name in ("-h", "--help"):
        print(_help(prog))
        return 0
    if name not in SUBCOMMANDS:
        raise UsageError(
            f"unknown command {name!r}{commands.nearest(name, set(SUBCOMMANDS))} See {prog} --help"
        )
    return importlib.import_module(f"{__package__}.{name}").main(rest, f"{prog} {name}")


def _help(prog: str) -> str:
    width = max(map(len, SUBCOMMANDS))
    return "\n".join(
        [
            f"usage: {prog} COMMAND [FLAGS]",
            "",
            "Numbers about artifacts, with the conditions they were taken under.",
            "",
            "commands:",
            *(f"  {name:{width}}  {what}" for name, what in SUBCOMMANDS.items()),
            "",
            "examples:",
            *(f"  {prog} {example}" for example in EXAMPLES),
            "",
            f"{prog} COMMAND --help lists the flags of a command.",
        ]
    )
