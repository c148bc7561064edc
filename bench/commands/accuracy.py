"""`distill bench accuracy`: from flags to a printed and saved result.

In:  an `Options`.
Out: the result on stdout; as JSON with --json.
Elsewhere: the measurement (bench.accuracy).
"""

from __future__ import annotations

from .. import accuracy, report
from ..accuracy import AccuracyOptions

SUMMARY = "measure top-1, top-5 and agreement of an artifact on labelled images"
DESCRIPTION = """examples:
  {prog} --engine student.onnx --data photos
  {prog} --engine student_int8.onnx --data photos --reference student.onnx --json
  {prog} --engine student.plan --data photos --reference student.onnx"""
Options = AccuracyOptions


def run(options: AccuracyOptions) -> None:
    """Measure top-1, top-5 and agreement of an artifact on labelled images, and print the result."""
    values = accuracy.run(options)
    if options.json:
        report.print_json(values)
    else:
        report.console().print(accuracy.to_rich(values))
