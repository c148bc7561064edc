"""`distill label`: from flags to a folder of a teacher's stored answers.

In:  argv: the flags of the training that will read them.
Out: a folder of labels (distill.run.labeling).
Elsewhere: training from them (distill train --teacher-labels), the format (docs/format.md).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from runtime import files
from runtime.cli import flags
from runtime.cli.settings import Flag
from runtime.cli.terminal import loading
from runtime.errors import UsageError

from ..processes.begin import begun
from ..processes.world import speaks
from ..recipe import Recipe
from ..run.options import TrainOptions, given_data, value_of, with_file

if TYPE_CHECKING:
    from ..run.labeling import Made

SUMMARY = "store a teacher's answers, so that trainings do without it"
DESCRIPTION = """Give the flags of the training that will read the answers: what changes its images (data,
size, batch, seed, augmentation) has to be the same there. A call that was stopped goes on when it is given
again, and more --epochs are added to those that are there. Several processes that torchrun started share the
batches and store the same answers as one: there, too, --batch is what all processes of the training have.

examples:
  {prog} --teacher-ckpt teacher.pth --student resnet18 --data DIR --epochs 30 --output labels
  {prog} --recipe paper --teacher slak_tiny --teacher-ckpt slak.pth --data DIR --top 10 --output labels
  distill train --teacher-labels labels --student resnet18 --data DIR --epochs 30"""

SHARES_WORK = True


@dataclass(frozen=True)
class Options(Recipe):
    """Labels: what is stored, and where."""

    recipe: Annotated[str, Flag("FILE|NAME", aliases=("-c", "--config"), common=True)] = ""
    """Recipe to start from, a shipped one or a YAML file; flags override it."""
    output: Annotated[str, Flag("DIR", aliases=("-o",), common=True)] = ""
    """Folder of the labels, a new one or one to go on with."""
    top: Annotated[int, Flag("N", common=True, least=0)] = 0
    """Classes stored for each image, those with the largest logits, and of the others what they add up to;
    10 are usual where there are 1,000. 0: all."""
    json: bool = False
    """Print the result as one JSON object and nothing else."""

    def check(self) -> None:
        """Refuse labels as the teacher of labels, and a teacher that would be trained first."""
        self.need(not self.teacher_labels, "teacher_labels", "none: it is what this command makes")
        self.need(
            self.teacher_fit != "all",
            "teacher_fit",
            "head or none, for this command trains nothing. Fit all of the teacher with distill train"
            " --teacher-fit all --output RUN, then give --teacher-ckpt RUN/teacher/best.pth",
        )


def parse(argv: Sequence[str], prog: str = "distill label") -> Options:
    """Flags over --recipe, or over the defaults."""
    flags.check_flags(Options, argv, prog)
    base = TrainOptions()
    for flag in ("--recipe", "--config", "-c"):
        if value_of(argv, flag):
            base = with_file(base, value_of(argv, flag), given_data(argv))
    values = {each.name: getattr(base, each.name) for each in fields(Recipe)}
    return flags.parse(Options, argv, prog, flags.description(sys.modules[__name__], prog), Options(**values))


def run(options: Options) -> None:
    """Make the labels; print the result."""
    made = do(options)
    if speaks():
        print(files.json_text(made.to_dict()) if options.json else made.summary())


def do(options: Options) -> Made:
    """Make the labels."""
    if not options.data:
        raise UsageError("no data given. Expected --data, as for distill train")
    if not options.output:
        raise UsageError("no folder given. Expected --output DIR")
    training = TrainOptions(
        **{each.name: getattr(options, each.name) for each in fields(Recipe)}, output=options.output
    )
    with begun(options.device):
        with loading("loading torch"):
            from ..run import labeling
        return labeling.make_labels(training, Path(options.output), options.top)
