"""What a person reads after an int8 or fp16 export: a table and a few sentences, every number with its n.

In:  the artifact's metadata, with the checks in it.
Out: text on stdout.
Elsewhere: the same as JSON (export.commands.onnx), the numbers (export.checks.verify).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from runtime.artifact import Metadata

LITTLE = 50.0
"""Share of the multiply-accumulates in int8, percent, below which the file gains little over fp16 or fp32."""


def show(path: Path, meta: Metadata, found: dict[str, Any]) -> None:
    """Print the result of an export below fp32. found: the checks of `verify.shipped`."""
    screen = Console(highlight=False)
    table = Table("", "top-1 %", "drop, points", "agreement %", title=f"{path}", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("student, fp32, torch", f"{found['fp32_top1']:.2f}", "", "")
    table.add_row(
        "fp32 ONNX",
        f"{found['fp32_onnx_top1']:.2f}",
        f"{found['fp32_top1'] - found['fp32_onnx_top1']:.2f}",
        "",
    )
    table.add_row(
        f"{meta.precision} ONNX",
        f"{found['int8_top1']:.2f}",
        f"{found['drop']:.2f}",
        f"{found['agreement']:.2f}",
    )
    screen.print(table)
    for line in sentences(meta, found):
        screen.print(line, soft_wrap=True)


def sentences(meta: Metadata, found: dict[str, Any]) -> list[str]:
    """What the table cannot hold."""
    worst, how, speed = found["worst_class"], meta.quantization or {}, found["speed"]
    lines = [
        (
            f"{found['right_to_wrong']} of {found['images']} images go wrong, {found['wrong_to_right']} go"
            f" right: drop {found['drop']:.2f} points, 95 % interval {found['drop_low_points']:.2f} to"
            f" {found['drop_high_points']:.2f} (McNemar p = {found['mcnemar_p']:.2g})"
        ),
        (
            f"worst class: {worst['class']}, {worst['fp32_top1']:.2f} to {worst['int8_top1']:.2f} %"
            f" (n={worst['images']})"
        ),
    ]
    if how.get("budget"):
        lines.append(
            f"{how['placement']} placement, {how['method']} ranges: {how['budget']['int8_macs_percent']:.1f}"
            " % of the multiply-accumulates in int8" + rolled_back(how["budget"]["float_layers"])
        )
        if how["budget"]["int8_macs_percent"] < LITTLE:
            lines.append(
                "little is left in int8: try another --calib-method, or training as int8 (distill train"
                " --qat)"
            )
    if how.get("fp16") and how["fp16"]["kept_fp32"]:
        lines.append(
            "kept in fp32: "
            + "; ".join(f"{name} ({why})" for name, why in list(how["fp16"]["kept_fp32"].items())[:3])
        )
    if how.get("not_for_accuracy"):
        lines.append("ranges of noise: this artifact is not for accuracy")
    pays = "pays" if speed["ratio"] < 1 else "does NOT pay"
    lines.append(
        f"{meta.precision} {pays} on ONNX Runtime here: {speed['ratio']:.2f} of fp32's time (batch"
        f" {speed['batch']}, {speed['threads']} threads, medians of calls in turns)"
    )
    return lines


def rolled_back(layers: list[str]) -> str:
    """The layers that the budget took back to float, named up to three."""
    if not layers:
        return ""
    more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
    return f"; back to float to hold the budget: {', '.join(layers[:3])}{more}"
