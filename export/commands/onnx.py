"""`distill export onnx`: a checkpoint becomes a verified ONNX file in fp32, fp16, calibrated int8 or both.

In:  an `OnnxOptions`.
Out: one .onnx file with metadata inside, or one error line and no file.
Elsewhere: the stages (export.stages.onnx), the flags (export.options.onnx).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.cli.terminal import loading

from ..options.onnx import OnnxOptions, check_onnx

if TYPE_CHECKING:
    from ..stages.exported import Exported

SUMMARY = "write a checkpoint as a verified ONNX file, with --int8 quantized"
DESCRIPTION = """Branches are merged, and the file is compared with torch on real images before it is written.

examples:
  {prog} best.pth
  {prog} best.pth --int8 --calib data/train --data data/val
  {prog} best.pth --int8 --calib-method auto --max-drop 0.3
  {prog} best.pth --int8 --placement tensorrt
  {prog} resnet20.th --model resnet20 --data data/val"""
Options = OnnxOptions


def run(options: OnnxOptions) -> None:
    """Write the artifact and print what was measured."""
    written = do(options)
    from ..stages import report

    report.print_result(options, written)


def do(options: OnnxOptions) -> Exported:
    """Write the artifact."""
    check_onnx(options)
    with loading("loading torch"):
        from ..stages import onnx, report  # after the checks: torch takes seconds to import

    shipped = onnx.export(options)
    onnx.write(options, shipped)
    return report.exported(options, shipped)
