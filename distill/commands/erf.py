"""`distill erf`: the effective receptive fields of several networks on the same images.

In:  an `ErfOptions`.
Out: a table; in --output figures, erf.json and erf.npz.
Elsewhere: measuring and drawing (distill.erf.report).
"""

from __future__ import annotations

from runtime import files
from runtime.cli.terminal import loading

from ..erf.options import ErfOptions
from ..processes.begin import begun
from ..processes.world import speaks

SUMMARY = "measure effective receptive fields: area ratios and heat maps"
DESCRIPTION = """examples:
  distill erf runs/student/best.pth --data DIR
  distill erf teacher.pth runs/student/best.pth --labels teacher student --data DIR
  distill erf slak_tiny.pth --model slak_tiny --data DIR --img-size 1024"""
Options = ErfOptions
SHARES_WORK = True


def run(options: ErfOptions) -> None:
    """`distill erf`: measure, write, print."""
    with begun(options.device):
        with loading("loading torch"):
            from ..erf import report as reports

        measured, report = reports.measure_and_write(options)
    if not speaks():
        return
    if options.json:
        print(files.json_text(report))
    else:
        reports.print_table(
            measured, options.output, f"{len(report['images'])} {options.split} images of {report['data']}"
        )
