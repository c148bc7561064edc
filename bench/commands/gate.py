"""`distill bench gate`: is an artifact as fast, as small and as right as it has to be?

In:  `Options`: an artifact, limits, and what it was before: an artifact, a saved result, another environment.
Out: a table of the limits on stdout; exit code 1 with the reasons where one does not hold; with --junit the
same for a CI system.
Elsewhere: the flags (bench.gating.options), measuring (bench.gating.measured).
"""

from __future__ import annotations

from runtime import files
from runtime.errors import GateError

from .. import report, tables
from ..comparing import gate
from ..gating import Gated, Options, measure
from ..results import saved

__all__ = ["Options"]

SUMMARY = "hold an artifact to limits, and to what it was before"
DESCRIPTION = """Exit code 1 and the reasons where a limit does not hold. With --python the artifact before
runs in another environment: the same file is then compared between two versions of an engine.

examples:
  {prog} student.int8.onnx --max-latency 5ms --max-memory 200MB
  {prog} new.onnx --baseline old.onnx --data photos --max-drop 0.5 --min-agreement 98 --junit gate.xml
  {prog} new.onnx --baseline old-accuracy.json --data photos --max-drop 0.5
  {prog} student.onnx --python upgraded/bin/python --data photos --min-agreement 99.9"""


def run(options: Options) -> int:
    """Hold the artifact to its limits, and print how it stands; 1 where one does not hold."""
    found = do(options)
    if options.json:
        report.print_json(found.to_dict())
        return int(bool(found.verdict.reasons))
    report.console().print(tables.gated(found.verdict, found.engines, found.warned))
    if found.verdict.reasons:
        raise GateError(f"{options.engine}: {'; '.join(found.verdict.reasons)}")
    return 0


def do(options: Options) -> Gated:
    """Measure, compare, and write --junit and --save. Raises what opening, reading and evaluating raise."""
    for path in (options.junit, options.save):
        report.require_place(path, options.overwrite)
    found = measure(options)
    if options.junit:
        notes = [*found.engines, *(each.text for each in found.warned)]
        files.write_text(options.junit, gate.to_junit(found.verdict, found.seconds, notes))
    if options.save:
        saved.write(options.save, "gate", saved.command_line("bench gate", options), found.to_dict())
    return found
