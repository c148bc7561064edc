"""Every network and precision through `distill export trt`: does the plan build, how long does it take, what
runs in int8?

    python measurements/engines.py [--models resnet20 resnet50 ...] [--precisions fp32 int8 ...]
    [--flavor rtx] [--json]

Needs TensorRT (on a GPU) or TensorRT for RTX (anywhere): pip install "large2small[tensorrt]" or
"large2small[rtx]". Each network becomes an fp32 ONNX file by export.graph.from_torch, with stirred weights
(whether and how it builds does not depend on them), and from that, calibrated on noise, fp16, int8 and
int8+fp16 files in the tensorrt placement. Every file is built twice by the command an engineer types, each
time in a process of its own: batch 1, and --dynamic 1,4,8. Seconds and MiB are the builder's own process. The
metadata beside each plan is read back and checked to be complete.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from distill import models
from export.fp16 import overflow
from export.graph import from_torch
from export.int8 import quantize
from export.int8.calibrate import calibrate
from runtime import files
from runtime.artifact import Metadata, read_sidecar
from runtime.env import fingerprint
from runtime.preprocess import Preprocess

MODELS = (
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet50",
    "convnext_tiny",
    "mobilenetv3_large_100",
    "repvgg_a0",
    "slak_tiny",
    "unireplknet_t",
)
PRECISIONS = ("fp32", "fp16", "int8", "int8+fp16")
BATCHES = {"static": ["--batch", "1"], "dynamic": ["--dynamic", "1,4,8"]}
COMPLETE = (
    "flavor",
    "version",
    "plan_sha256",
    "plan_bytes",
    "platform",
    "inputs",
    "outputs",
    "profiles",
    "flags",
    "onnx",
    "layers",
    "state",
    "build_seconds",
)
"""Fields of the metadata that must hold something, whatever the machine."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--models", nargs="+", default=MODELS, help="architectures, as timm spells them, and ours"
    )
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--flavor", choices=("auto", "tensorrt", "rtx"), default="auto")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args()
    rows = [row for name in options.models for row in measure(name, options)]
    if options.json:
        print(files.json_text({"machine": fingerprint(), "engines": rows}))
    else:
        show(rows)
    return int(any(row["error"] for row in rows))


def measure(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each precision and kind of batch; files are deleted as soon as they were built."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="engines-") as folder:
        for precision, path in write_files(name, options.precisions, Path(folder)).items():
            for kind, flags in BATCHES.items():
                rows.append(
                    {
                        "model": name,
                        "precision": precision,
                        "batch": kind,
                        **build(path, flags, options.flavor),
                    }
                )
                seconds = rows[-1]["seconds"]
                print(
                    f"{name} {precision} {kind}: {rows[-1]['error'] or f'{seconds:.1f} s'}", file=sys.stderr
                )
            path.unlink()
    return rows


def write_files(name: str, precisions: list[str], folder: Path) -> dict[str, Path]:
    """{precision: .onnx file}"""
    cifar = name in ("resnet20", "resnet32", "resnet44", "resnet56")
    size = (3, 32, 32) if cifar else (3, 224, 224)
    noise = np.random.default_rng(0).normal(size=(2, *size)).astype(np.float32)
    fp32 = from_torch.to_onnx(from_torch.merge(stirred(name, 10 if cifar else 1000)), size)
    plan = quantize.lay_out(fp32, "tensorrt")
    made = {"fp32": fp32}
    if any("int8" in precision for precision in precisions):
        made["int8"] = quantize.quantize(fp32, plan, calibrate(fp32, plan.tensors, [noise], "minmax"))
    for precision in ("fp16", "int8+fp16"):
        if precision in precisions:
            made[precision] = overflow.convert(
                made["int8" if "int8" in precision else "fp32"], lambda *_: iter([noise])
            )[0]
    files = {}
    for precision in precisions:
        meta = Metadata(
            model=name,
            precision=precision,
            preprocess=Preprocess(input_size=size),
            class_names=[str(i) for i in range(10 if cifar else 1000)],
        )
        files[precision] = folder / f"{name}.{precision}.onnx"
        files[precision].write_bytes(from_torch.write_metadata(made[precision], meta))
    return files


def stirred(name: str, classes: int) -> torch.nn.Module:
    """The network with batch norm statistics that are not the defaults, so that ranges are not degenerate."""
    torch.manual_seed(0)
    network = models.build(name, classes)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values, low, high in (
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 2.0),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.2, 0.2),
            ):
                values.uniform_(low, high)
    return network.eval()


def build(path: Path, flags: list[str], flavor: str) -> dict[str, Any]:
    """What the command says, and whether the metadata beside the plan is complete."""
    plan = path.with_suffix(".plan")
    command = [
        sys.executable,
        "-m",
        "distill",
        "export",
        "trt",
        str(path),
        "--output",
        str(plan),
        "--flavor",
        flavor,
        "--overwrite",
        "--json",
        *flags,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    said = json.loads(done.stdout)
    if done.returncode:
        return {
            "error": said["error"],
            "seconds": None,
            "peak_mib": None,
            "plan_mb": None,
            "convolutions": None,
            "warnings": [],
        }
    found = read_sidecar(plan).engine
    missing = [name for name in COMPLETE if getattr(found, name, None) in (None, "", [], {})]
    plan.unlink()
    return {
        "error": f"metadata without {', '.join(missing)}" if missing else None,
        "seconds": said["build_seconds"],
        "peak_mib": said["build_peak_mib"],
        "plan_mb": said["size_bytes"] / 1e6,
        "convolutions": said["layers"] and said["layers"]["convolutions"],
        "warnings": said["warnings"],
        "version": f"{said['flavor']} {said['version']}",
    }


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("network", "precision", "batch", "s", "MiB", "plan, MB", "convolutions")
    for column in table.columns[3:6]:
        column.justify = "right"
    for row in rows:
        if row["error"]:
            table.add_row(row["model"], row["precision"], row["batch"], "", "", "", row["error"])
            continue
        kinds = ", ".join(f"{count} {kind}" for kind, count in (row["convolutions"] or {}).items())
        table.add_row(
            row["model"],
            row["precision"],
            row["batch"],
            f"{row['seconds']:.1f}",
            f"{row['peak_mib']:,.0f}",
            f"{row['plan_mb']:.1f}",
            kinds,
        )
    Console(highlight=False).print(table)


if __name__ == "__main__":
    sys.exit(main())
