"""The front door of `distill export`: which artifact is asked for, and whose module makes it.

In:  argv.
Out: an exit code (runtime.errors); `--help` without importing torch or onnx.
Elsewhere: the commands themselves (export.onnx_command), errors to one line (runtime.commands).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from runtime import commands
from runtime.errors import UsageError

COMMANDS = {
    "onnx": ("export.onnx_command", "an ONNX file, fp32 or calibrated int8, verified before it is written"),
    "trt": (
        "export.trt_command",
        "a TensorRT plan from a checkpoint or an ONNX file, its ONNX file beside it",
    ),
    "triton": (
        "export.triton_command",
        "a model folder for Triton Inference Server from a plan or an ONNX file",
    ),
}
"""Name -> module with `main(argv, prog)`, and what it makes."""

HELP = """usage: {prog} COMMAND CKPT [options]

Make an artifact from a checkpoint; it then runs without torch.

{commands}

examples:
  {prog} onnx best.pth
  {prog} onnx best.pth --int8 --calib DIR --data DIR
  {prog} onnx resnet20.th --model resnet20 --data DIR
  {prog} trt --int8 best.pth
  {prog} triton best.int8.plan --repository models

options of a command: {prog} COMMAND --help
In a POSIX shell type `distill export ...` (or `python -m export ...`): the word alone is a builtin of
the shell, which would take the rest as variable names and never start this program."""


def main(argv: Sequence[str] | None = None, prog: str = "export") -> int:
    """Run one export command; returns its exit code. prog is the name shown in usage lines."""
    words = list(sys.argv[1:] if argv is None else argv)
    shown = "distill export" if prog == "export" else prog  # a line to copy must work in a shell
    return commands.run(lambda: _dispatch(words, shown), as_json="--json" in words)


def _dispatch(words: list[str], prog: str) -> int:
    if not words or words[0] in ("-h", "--help"):
        table = "\n".join(f"  {name:8}{about}" for name, (_, about) in COMMANDS.items())
        print(HELP.format(prog=prog, commands=f"commands:\n{table}"))
        return 0 if words else UsageError.exit_code
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        raise UsageError(
            f"no {prog} command called {name!r}{commands.nearest(name, set(COMMANDS))} "
            f"Commands: {', '.join(COMMANDS)}. See {prog} --help"
        )
    return importlib.import_module(COMMANDS[name][0]).main(rest, f"{prog} {name}")
