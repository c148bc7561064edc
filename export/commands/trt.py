"""`distill export trt`: a checkpoint, or an ONNX file, becomes a TensorRT plan.

In:  a `TrtOptions`.
Out: NAME.plan, NAME.plan.json, NAME.onnx; or one error line and no plan.
Elsewhere: the stages (export.stages.plan), the flags (export.options.trt).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from runtime.cli import flags

from ..options.trt import TrtOptions, as_it_was_built, settings_of

if TYPE_CHECKING:
    from ..stages.exported import Exported

SUMMARY = "build a TensorRT plan from a checkpoint or an ONNX file"
DESCRIPTION = """The ONNX file stays beside the plan.
TensorRT builds where the NVIDIA GPU is; --flavor rtx (TensorRT for RTX) builds anywhere.

examples:
  {prog} --int8 --fp16 best.pth
  {prog} --int8 best.pth --dynamic 1,8,32 --workspace 2GiB
  {prog} student.int8.onnx --flavor rtx
  {prog} --rebuild student.plan --data data/val"""
Options = TrtOptions


def run(options: TrtOptions) -> None:
    """Write the plan and print what was measured."""
    written = do(options)
    from ..stages import plan

    plan.print_result(options, written)


def do(options: TrtOptions) -> Exported:
    """Write the plan."""
    settings = settings_of(options)
    from ..stages import plan  # after the checks: it imports rich and what shows progress

    return plan.exported(options, plan.export(options, settings).meta)


def parse(argv: Sequence[str], prog: str) -> TrtOptions:
    """The flags; with --rebuild over the settings that the plan was built with."""
    description = flags.description(sys.modules[__name__], prog)
    options = flags.parse(TrtOptions, argv, prog, description)
    if not options.rebuild:
        return options
    before = as_it_was_built(options)
    given = flags.parse(TrtOptions, argv, prog, description, before)
    if (
        before.dynamic and given.batch is not None and given.dynamic == before.dynamic
    ):  # one kind takes the other's place
        return replace(given, dynamic=())
    if before.batch is not None and given.dynamic and given.batch == before.batch:
        return replace(given, batch=None)
    return given
