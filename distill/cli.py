"""The `distill` command: the front door, and nothing behind it until a command is called.

In:  argv.
Out: an exit code: 0 ok, 1 a gate failed, 2 usage, 3 something needed is missing here, 4 the artifact is not
     usable here, 70 a bug of ours, 130 interrupted.
Elsewhere: every command's own module; `export` and `bench` are loaded here and nowhere else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from runtime.errors import UsageError

HELP = """usage: distill COMMAND [options]

Distils a large-kernel ConvNet into a small-kernel student, exports it with calibrated INT8,
and tabulates accuracy against latency.

commands:
  train           train a student from a teacher (or plainly, with --teacher none)
  eval            top-1, top-5 and loss of a checkpoint
  erf             effective receptive fields: area ratios and heat maps
  export onnx     checkpoint to a verified .onnx file, with --int8 quantized
  export trt      checkpoint or .onnx file to a TensorRT plan, its .onnx file beside it
  export triton   artifact to a model repository of Triton Inference Server
  parity          do training, calibration and runtime see the same pixels and decide alike
  inspect         what a file is, where it comes from, whether it is still what was written
  env             what this machine has, and what is missing for what
  bench latency   percentiles and throughput of an artifact
  bench accuracy  top-1, top-5 and agreement of an artifact on labelled images
  bench table     the trade-off table: accuracy, size and latency against the teacher
  demo            the whole way on handwritten digits, in minutes on a CPU

examples:
  distill train --teacher-ckpt teacher.pth --student resnet18 --data DIR --output runs/student
  distill export onnx --int8 runs/student/best.pth
  distill bench latency --engine runs/student/best.int8.onnx
  distill COMMAND --help

exit codes: 0 ok, 1 a check failed, 2 usage, 3 something needed is missing here,
            4 the file is not usable here, 70 internal error, 130 interrupted"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if argv[0] == "--version":
        from importlib.metadata import version

        print(version("large2small"))
        return 0
    from runtime import commands

    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:

        def refuse() -> None:
            raise UsageError(f"no command {name!r}{commands.nearest(name, set(COMMANDS))} See distill --help")

        return commands.run(refuse)
    return COMMANDS[name](rest)


def _train(argv: list[str]) -> int:
    from runtime import commands

    def command() -> None:
        from . import train

        if train.is_qat(argv):
            from export import qat_command

            qat_command.run(argv)
        else:
            train.run(train.parse(argv))

    return commands.run(command, "--json" in argv)


def _eval(argv: list[str]) -> int:
    from runtime import commands

    def command() -> None:
        from . import evaluate

        description = (
            "Top-1, top-5 and loss of a checkpoint.\n\nexample:\n  distill eval runs/student/best.pth"
            " --data DIR"
        )
        evaluate.run(commands.parse(evaluate.EvalOptions, argv, "distill eval", description))

    return commands.run(command, "--json" in argv)


def _erf(argv: list[str]) -> int:
    from runtime import commands

    def command() -> None:
        from . import erf_command

        erf_command.run(commands.parse(erf_command.ErfOptions, argv, "distill erf", erf_command.DESCRIPTION))

    return commands.run(command, "--json" in argv)


def _demo(argv: list[str]) -> int:
    from runtime import commands

    def command() -> None:
        from . import demo

        demo.run(commands.parse(demo.DemoOptions, argv, "distill demo", demo.DESCRIPTION))

    return commands.run(command)


def _parity(argv: list[str]) -> int:
    from runtime import commands

    def command() -> None:
        from export import parity

        parity.run(commands.parse(parity.ParityOptions, argv, "distill parity", parity.DESCRIPTION))

    return commands.run(command, "--json" in argv)


def _inspect(argv: list[str]) -> int:
    from runtime import commands

    def command() -> int:
        from export import inspect_command

        options = commands.parse(
            inspect_command.InspectOptions, argv, "distill inspect", inspect_command.DESCRIPTION
        )
        return inspect_command.run(options)

    return commands.run(command, "--json" in argv)


def _env(argv: list[str]) -> int:
    from runtime import commands

    def command() -> int:
        from runtime import env_command

        return env_command.main(argv)

    return commands.run(command, "--json" in argv)


def _export(argv: list[str]) -> int:
    from export.cli import main as export_main

    return export_main(argv, prog="distill export")


def _bench(argv: list[str]) -> int:
    from bench.cli import main as bench_main

    return bench_main(argv, prog="distill bench")


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "eval": _eval,
    "erf": _erf,
    "export": _export,
    "parity": _parity,
    "inspect": _inspect,
    "env": _env,
    "bench": _bench,
    "demo": _demo,
}

if __name__ == "__main__":
    sys.exit(main())
