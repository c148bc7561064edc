"""`distill parity`: proof that training, calibration and the runtime see the same pixels and decide alike.

In:  a `ParityOptions`.
Out: the numbers; an error that names the first step and the first image that differ.
Elsewhere: the comparison (export.stages.parity).
"""

from __future__ import annotations

from runtime import files
from runtime.cli.terminal import loading

from ..options.parity import ParityOptions

SUMMARY = "prove that training, calibration and runtime see the same pixels"
DESCRIPTION = """Every image is taken through training's evaluation, calibration, and an application that has
only the file: pixels must be equal bit for bit, fp32 logits equal within --atol, decisions of int8 and
fp16 equal on --min-agreement percent.

examples:
  distill parity best.pth best.onnx --data data/val
  distill parity best.pth best.int8.onnx --data data/val --size 0 --min-agreement 98
  distill parity resnet20.th resnet20.onnx --model resnet20 --data npz:cifar10"""
Options = ParityOptions


def run(options: ParityOptions) -> None:
    """Compare and print. Raises GateError at the first difference."""
    with loading("loading torch"):
        from ..stages import parity

    with loading("comparing"):
        values = parity.compare(options)
    print(files.json_text(values)) if options.json else parity.show(values)
