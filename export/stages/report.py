"""What a person reads after an export to ONNX: a table and a few sentences, every number with its n.

In:  what was shipped, with the checks in its metadata.
Out: text on stdout, or with --json one object.
Elsewhere: the numbers (export.checks.verify).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from runtime.artifact import Metadata

from ..options.onnx import OnnxOptions
from .lower import Shipped

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
    if how.get("fp16") and how["fp16"].get("judged_as"):
        lines.append(how["fp16"]["judged_as"])
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


def print_result(options: OnnxOptions, shipped: Shipped) -> dict[str, Any]:
    """Print the result: a line and, below fp32, a table; with --json one object. Returns the object."""
    meta = shipped.meta
    result = figures(options, shipped)
    found = meta.verification.get(meta.precision.partition("+")[0])
    if options.json:
        print(json.dumps(result))
    elif found:
        show(options.target, meta, found)
    else:
        print(
            f"{options.target}: top-1 agreement with torch {result['parity_agreement_percent']:.2f} % on "
            f"{result['parity_images']} images, largest logit difference {result['parity_max_abs']:.3g}"
        )
    return result


def figures(options: OnnxOptions, shipped: Shipped) -> dict[str, Any]:
    """The result as JSON values."""
    meta, content = shipped.meta, shipped.content
    checks = meta.verification
    result = {
        "output": str(options.target),
        "sha256": hashlib.sha256(content).hexdigest(),
        "size_bytes": len(content),
        "precision": meta.precision,
        "model": meta.model,
        "parameters": meta.parameters,
        "macs": meta.macs,
        "placement": (meta.quantization or {}).get("placement"),
        "parity_images": checks["parity"]["images"],
        "parity_max_abs": checks["parity"]["max_abs"],
        "parity_agreement_percent": checks["parity"]["top1_agreement"],
    }
    key = meta.precision.partition("+")[0]  # int8, with or without fp16
    found = checks.get(key)
    if found:
        same = (
            "images",
            "drop_low_points",
            "drop_high_points",
            "right_to_wrong",
            "wrong_to_right",
            "kl_nats",
            "worst_class",
            "speed",
        )
        result |= {
            "fp32_top1_percent": found["fp32_top1"],
            "fp32_onnx_top1_percent": found["fp32_onnx_top1"],
            f"{key}_top1_percent": found["int8_top1"],
            "drop_points": found["drop"],
            f"{key}_agreement_percent": found["agreement"],
            **{name: found[name] for name in same},
        }
    if meta.quantization:
        how = meta.quantization
        result |= {
            "method": how["method"],
            "int8_macs_percent": how["budget"] and how["budget"]["int8_macs_percent"],
            "rolled_back": how["budget"]["float_layers"] if how["budget"] else [],
            "draws": how["draws"],
            "not_for_accuracy": how["not_for_accuracy"],
            "judged_as": (how.get("fp16") or {}).get("judged_as"),
        }
    return result
