"""`distill bench latency`: from flags to a printed and saved result.

In:  an `Options`.
Out: the result on stdout; as JSON with --json.
Elsewhere: the measurement (bench.latency).
"""

from __future__ import annotations

from runtime import files

from .. import latency, report, stats
from ..latency import LatencyOptions

SUMMARY = "measure percentiles and throughput of an artifact"
DESCRIPTION = """examples:
  {prog} --engine student.onnx
  {prog} --engine student.onnx --data photos --boundary end-to-end --threads 4
  {prog} --engine student.int8.onnx --engine-backend openvino --hint throughput
  {prog} --engine student.plan --cuda-graph
  {prog} --engine student.onnx --batch 32 --duration 10 --json"""
Options = LatencyOptions


def run(options: LatencyOptions) -> None:
    """Measure percentiles and throughput of an artifact, and print the result."""
    if options.results_file:
        files.refuse_existing(options.results_file, options.overwrite)
        files.require_writable(options.results_file)
    result, samples = latency.run(options)
    if not options.json:  # shown first: what was measured is not lost when it cannot be written
        report.console().print(latency.to_rich(result, options.percentiles))
    if options.results_file:
        every = {name: (values / stats.NS_PER_MS).tolist() for name, values in samples.items()}
        files.write_text(options.results_file, report.to_json(result | {"samples_ms": every}))
    if options.json:  # last: stdout is one object, this one or that of an error
        report.print_json(result)
