"""`distill train`: from flags, files and recipes to the options of a run.

In:  argv.
Out: a run folder (distill.run.job).
Elsewhere: what a run does (distill.run.job), settings of a training (distill.recipe), training as int8
(export.commands.train_qat).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from runtime import files
from runtime.cli import flags
from runtime.cli.terminal import in_rows, loading, say

from .. import recipe as recipes
from ..processes.begin import begun
from ..processes.world import speaks
from ..run.folder import choose_folder, with_batch_of_run
from ..run.options import (
    AUTO,
    AnyOptions,
    TrainOptions,
    given_data,
    run_folder,
    settled,
    value_of,
    where_now,
    with_file,
)

if TYPE_CHECKING:
    from ..run.result import RunResult

SUMMARY = "train a student from a teacher, or plainly with --teacher none"
DESCRIPTION = """examples:
  distill train --teacher-ckpt teacher.pth --student resnet18 --data DIR --output runs/student
  distill train --teacher slak_tiny --teacher-ckpt slak.pth --student convnext_tiny --data DIR --kd-loss nkd
  distill train --recipe cifar10-cpu --teacher resnet56 --teacher-ckpt t.th --data npz:cifar10 --control
  distill train --resume runs/student
  torchrun --nproc-per-node 8 --max-restarts 3 -m distill train --data DIR --output runs/student --resume auto
  distill train --qat --resume runs/student/best.pth   (as int8: distill train --qat --help)"""
Options = TrainOptions
SHARES_WORK = True


def run(options: TrainOptions) -> None:
    """Train student and, if asked, control; print the result."""
    result = do(options)
    if speaks():
        print_result(options, result)


def do(options: TrainOptions) -> RunResult:
    """Train student and, if asked, control."""
    with begun(options.device, same={"--resume": options.resume}) as from_main:
        folder = from_main(lambda: choose_folder(options))
        with loading("loading torch"):
            from ..run import job  # after what can be refused at once: torch takes seconds to import
        return job.run(options, folder)


def print_result(options: TrainOptions, result: RunResult) -> None:
    """A few lines for a person, or with --json one object."""
    print(files.json_text(result.to_dict()) if options.json else in_rows(result.summary(), sys.stdout))


def instead(argv: Sequence[str]) -> str | None:
    """The command for training as int8, where these words ask for it or continue such a run."""
    return "train --qat" if is_qat(argv) else None


def parse(argv: Sequence[str], prog: str = "distill train") -> TrainOptions:
    """Flags over the resumed run's args.yaml, or over --recipe, or over the defaults."""
    return parse_over(TrainOptions(), argv, prog, sys.modules[__name__])


def parse_over(base: AnyOptions, argv: Sequence[str], prog: str, command: ModuleType) -> AnyOptions:
    """The same over `base`, whose class names the flags; command: whose help it is."""
    flags.check_flags(type(base), argv, prog)
    is_auto, argv = value_of(argv, "--resume") == AUTO, settled(argv)
    saved = run_folder(value_of(argv, "--resume")) / "args.yaml" if value_of(argv, "--resume") else None
    if saved is not None and saved.is_file():
        base = with_file(base, str(saved), given_data(argv), kept=recipes.NETWORK_FLAGS)
        base = where_now(base, saved.parent)
    for flag in ("--recipe", "--config", "-c"):
        if value_of(argv, flag):
            base = with_file(base, value_of(argv, flag), given_data(argv))
    options = flags.parse(type(base), argv, prog, flags.description(command, prog), base)
    _say_data_of_a_file(options, given_data(argv))
    return with_batch_of_run(options) if is_auto else options


def _say_data_of_a_file(options: TrainOptions, given: Mapping[str, str]) -> None:
    """Name the data that nobody typed: a recipe's, a run's or a checkpoint's."""
    for field, what in (("data", "training"), ("val_data", "validation")):
        spec = getattr(options, field)
        if spec not in ("", "digits") and field not in given and speaks():
            say(f"{what} data from the file given: {spec}")


def is_qat(argv: Sequence[str]) -> bool:
    """Does this command line ask for quantization-aware training, or continue such a run?"""
    argv = settled(argv)
    saved = run_folder(value_of(argv, "--resume")) / "args.yaml"
    resumes = bool(value_of(argv, "--resume")) and saved.is_file()
    return "--qat" in argv or (resumes and recipes.read(str(saved)).get("qat") is True)
