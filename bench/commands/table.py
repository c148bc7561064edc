"""`distill bench table`: from flags to a printed and saved result.

In:  an `Options`.
Out: the result on stdout; as JSON with --json.
Elsewhere: the measurement (bench.table).
"""

from __future__ import annotations

from runtime import files

from .. import report, table
from ..table import TableOptions

SUMMARY = "tabulate accuracy, size and latency against the teacher"
DESCRIPTION = """examples:
  {prog} --data photos --teacher teacher.onnx student.onnx student_int8.onnx
  {prog} --data photos --teacher teacher.onnx --control control.onnx --output results student.onnx
  {prog} --data photos --teacher teacher.plan student.plan student.int8.plan"""
Options = TableOptions


def run(options: TableOptions) -> None:
    """Tabulate accuracy, size and latency against the teacher, and print the result."""
    for path in options.outputs:
        files.refuse_existing(path, options.overwrite)
        files.require_writable(path)
    made = table.build(options)
    if not options.json:  # shown first: what was measured is not lost when it cannot be written
        console = report.console()
        console.print(table.to_rich(made, console.width))
    if options.output:
        table.write(made, options.outputs)
    if options.json:  # last: stdout is one object, this one or that of an error
        print(table.to_json(made), end="")
