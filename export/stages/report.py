"""What a person reads after an export to ONNX: a table and a few sentences, every number with its n.

In:  what was shipped, with the checks in its metadata.
Out: text on stdout, or with --json one object.
Elsewhere: the numbers (export.checks.verify).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from rich.table import Table

from runtime import files
from runtime.artifact import Metadata
from runtime.cli import terminal
from runtime.intervals import wilson
from runtime.records import Agreement, Budget, Judged, Quantization, Speed

from ..options.onnx import OnnxOptions
from .exported import Exported
from .lower import GATE_OFF, Shipped

LITTLE = 50.0
"""Share of the multiply-accumulates in int8, percent, below which the file gains little over fp16 or fp32."""
LOW_AGREEMENT = 90.0
"""Percent of agreement below which a top-1 that held says little about the file."""


def show(path: Path, meta: Metadata, found: Judged) -> None:
    """Print the result of an export below fp32."""
    screen = terminal.screen()
    table = Table("", "top-1 %", "drop, points", "agreement %", title=f"{path}", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    between = None
    if found.reference_top1 is not None and found.fp32_onnx_top1 is not None:
        between = found.reference_top1 - found.fp32_onnx_top1
    table.add_row("student, fp32, torch", number(found.reference_top1), "", "")
    table.add_row("fp32 ONNX", number(found.fp32_onnx_top1), number(between), "")
    table.add_row(
        f"{meta.precision} ONNX",
        number(found.candidate_top1),
        number(found.drop),
        number(found.agreement),
    )
    screen.print(table)
    for line in sentences(meta, found):
        screen.print(line, soft_wrap=True)


def number(value: float | None, digits: int = 2) -> str:
    """A figure with so many decimals; a dash where it was not measured."""
    return "-" if value is None else f"{value:.{digits}f}"


def sentences(meta: Metadata, found: Judged) -> list[str]:
    """What the table cannot hold."""
    how, lines = meta.quantization or Quantization(), []
    lines += answers(meta.precision, found)
    lines.append(
        f"{found.right_to_wrong} of {found.images} evaluation images become wrong, {found.wrong_to_right}"
        f" right: drop {number(found.drop)} points, 95 % interval {number(found.drop_low_points)} to"
        f" {number(found.drop_high_points)} (McNemar p = {found.mcnemar_p:.2g})"
    )
    if worst := found.worst_class:
        lines.append(
            f"worst class: {worst.class_name}, {number(worst.reference_top1)} to"
            f" {number(worst.candidate_top1)} % (n={worst.images})"
        )
    if how.budget and how.budget.int8_macs_percent is not None:
        lines.append(
            f"{how.placement} placement, {how.method} ranges: {how.budget.int8_macs_percent:.1f} % of the"
            " multiply-accumulates in int8" + rolled_back(how.budget.float_layers or [])
        )
        if how.budget.int8_macs_percent < LITTLE:
            lines.append(
                "little is left in int8: try another --calib-method, or training as int8 (distill train"
                " --qat)"
            )
    if how.fp16 and how.fp16["kept_fp32"]:
        kept = list(how.fp16["kept_fp32"].items())[:3]
        lines.append("kept in fp32: " + "; ".join(f"{name} ({why})" for name, why in kept))
    if how.fp16 and how.fp16.get("judged_as"):
        lines.append(how.fp16["judged_as"])
    if how.not_for_accuracy:
        lines.append("the ranges come from noise: this artifact is not for accuracy")
    return [*lines, *pace(meta.precision, found.speed)]


def share_interval(percent: float | None, images: int | None) -> tuple[float, float] | None:
    """95 % interval in percent of a share of so many images; None where it was not measured."""
    if percent is None or not images:
        return None
    low, high = wilson(round(percent * images / 100), images)
    return 100 * low, 100 * high


def answers(precision: str, found: Judged) -> list[str]:
    """Accuracy and agreement with their intervals; a word where few agree."""
    right, same = (share_interval(each, found.images) for each in (found.candidate_top1, found.agreement))
    if not right or not same:
        return []
    lines = [
        f"95 % intervals on {found.images} images: top-1 {right[0]:.2f} to {right[1]:.2f} %, agreement"
        f" {same[0]:.2f} to {same[1]:.2f} %"
    ]
    if found.agreement is not None and found.agreement < LOW_AGREEMENT:
        although, others = (" although top-1 held", ", and is right on others") if held(found) else ("", "")
        lines.append(
            f"agreement is LOW{although}: {precision} answers otherwise than fp32 on"
            f" {100 - found.agreement:.1f} % of the images{others}. To refuse such a file: --min-agreement 95"
        )
    return lines


def held(found: Judged) -> bool:
    """Was top-1 checked, and was the drop within what was allowed?"""
    if found.drop is None or found.max_drop is None:
        return False
    return found.drop <= found.max_drop < GATE_OFF


def pace(precision: str, speed: Speed | None) -> list[str]:
    """How fast the file is beside the fp32 file, in one sentence; that nobody can tell, where that is so."""
    if speed is None or not speed.ratio:
        return []
    conditions = (
        f"95 % interval {number(speed.low)} to {number(speed.high)}; batch {speed.batch} in memory to logits,"
        f" {speed.threads} threads, {speed.pairs} pairs of alternating calls"
    )
    took = f"it takes {speed.ratio:.2f} x the time of fp32 ({conditions})"
    if speed.pays is None:
        reasons = "; ".join(speed.warnings or ["the interval holds 1"])
        return [
            f"whether {precision} pays on ONNX Runtime here cannot be told: {took}, but {reasons}. Measure"
            " for longer on a quiet machine: distill bench compare"
        ]
    if speed.pays:
        return [f"{precision} pays on ONNX Runtime here, {1 / speed.ratio:.2g} x as fast as fp32: {took}"]
    return [f"{precision} does NOT pay on ONNX Runtime here: {took}"]


def rolled_back(layers: list[str]) -> str:
    """The layers that the budget took back to float, named up to three."""
    if not layers:
        return ""
    more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
    return f"; back to float to hold the budget: {', '.join(layers[:3])}{more}"


def exported(options: OnnxOptions, shipped: Shipped) -> Exported:
    """What was written, and measured on the way."""
    meta = shipped.meta
    found = meta.verification.lowered
    return Exported(
        options.target,
        meta.precision,
        len(shipped.content),
        found.candidate_top1 if found else None,
        found.drop if found else None,
        meta,
        figures(options, shipped),
    )


def print_result(options: OnnxOptions, written: Exported) -> None:
    """Print the result: a line and, below fp32, a table; with --json one object."""
    result = written.figures
    found = written.metadata.verification.lowered
    if options.json:
        print(files.json_text(result))
    elif found:
        show(written.path, written.metadata, found)
    else:
        print(
            f"{written.path}: top-1 agreement with torch {result['parity_agreement_percent']:.2f} % on "
            f"{result['parity_images']} images, largest logit difference {result['parity_max_abs']:.3g}"
        )


def figures(options: OnnxOptions, shipped: Shipped) -> dict[str, Any]:
    """The result as JSON values."""
    meta, content = shipped.meta, shipped.content
    parity = meta.verification.parity or Agreement()
    how = meta.quantization
    result = {
        "output": str(options.target),
        "sha256": hashlib.sha256(content).hexdigest(),
        "size_bytes": len(content),
        "precision": meta.precision,
        "model": meta.model,
        "parameters": meta.parameters,
        "macs": meta.macs,
        "placement": how and how.placement,
        "parity_images": parity.images,
        "parity_max_abs": parity.max_abs,
        "parity_agreement_percent": parity.top1_agreement,
    }
    if found := meta.verification.lowered:
        key = meta.precision.partition("+")[0]  # int8, with or without fp16
        flips = (
            "images",
            "drop_low_points",
            "drop_high_points",
            "right_to_wrong",
            "wrong_to_right",
            "kl_nats",
        )
        result |= {
            "fp32_top1_percent": found.reference_top1,
            "fp32_onnx_top1_percent": found.fp32_onnx_top1,
            f"{key}_top1_percent": found.candidate_top1,
            "drop_points": found.drop,
            f"{key}_top1_interval_percent": share_interval(found.candidate_top1, found.images),
            f"{key}_agreement_percent": found.agreement,
            f"{key}_agreement_interval_percent": share_interval(found.agreement, found.images),
            **{name: getattr(found, name) for name in flips},
            "worst_class": found.worst_class and found.worst_class.to_dict(),
            "speed": found.speed and found.speed.to_dict(),
        }
    if how:
        budget = how.budget or Budget()
        result |= {
            "method": how.method,
            "int8_macs_percent": budget.int8_macs_percent,
            "rolled_back": budget.float_layers or [],
            "draws": how.draws,
            "not_for_accuracy": how.not_for_accuracy,
            "judged_as": (how.fp16 or {}).get("judged_as"),
        }
    return result
