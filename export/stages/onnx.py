"""A whole export to ONNX, stage by stage, and writing what came out of it.

In:  an `OnnxOptions`.
Out: `Shipped`, checked; the file, and the table of layers beside it when layers were ranked.
Elsewhere: each stage (export.stages.inputs, export.stages.fp32, export.stages.lower), what a person reads
about it (export.stages.report).
"""

from __future__ import annotations

from runtime import files
from runtime.cli.terminal import loading

from ..checks import verify
from ..int8 import budget
from ..int8.budget import Outcome
from ..notes import note
from ..options.onnx import OnnxOptions
from .fp32 import export_fp32
from .inputs import open_inputs
from .lower import Shipped, lower_precision


def export(options: OnnxOptions) -> Shipped:
    """Export and verify checked options; nothing is written yet. Raises GateError when a check fails."""
    about = loading(f"exporting {options.checkpoint.name}")
    with files.scratch_folder() as scratch, about:
        inputs = open_inputs(options, scratch)
        fp32 = export_fp32(inputs)
        shipped = lower_precision(fp32, inputs)
        verify.require_opens(shipped.content, shipped.meta, inputs.scratch)
    return shipped


def write(options: OnnxOptions, shipped: Shipped) -> None:
    """The file, and the table of layers beside it when layers were ranked."""
    files.write_bytes(options.target, shipped.content)
    write_sensitivity(options, shipped.outcome)


def write_sensitivity(options: OnnxOptions, outcome: Outcome | None) -> None:
    """The table of layers beside the artifact, when layers were ranked."""
    if outcome is not None and outcome.rows:
        texts = (budget.to_json(outcome), budget.to_markdown(outcome))
        for path, text in zip(options.sensitivity_files, texts, strict=True):
            files.write_text(path, text)
        note(f"damage of each layer: {' and '.join(str(path) for path in options.sensitivity_files)}")
