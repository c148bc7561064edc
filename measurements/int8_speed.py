"""Speed of int8 on this CPU: our placements beside ONNX Runtime's own quantizer and, where installed,
OpenVINO and NNCF.

    python measurements/int8_speed.py [--models resnet50 ...] [--batch 1] [--threads 1] [--rounds 200]
    [--seconds 30] [--json]

Each network becomes an fp32 ONNX file by export.graph.from_torch, with stirred weights: how long an engine
takes does not depend on them. Quantized are copies of that one file, all with min-max ranges of the same
noise: ours in both placements; ONNX Runtime's `quantize_static` after its `quant_pre_process`, Q/DQ, per
channel, with uint8 (u8s8) and int8 (s8s8) activations and its default operators; NNCF with its default
settings. Every round calls each contender once, in turn, in one process. Printed are the median and the
fastest call, and the median of the rounds' ratios to ONNX Runtime's fp32, below 1 is faster. OpenVINO decides
itself in which float format it computes what is not int8 (bf16 where the CPU has it); the table says which.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from rich.console import Console
from rich.table import Table

from distill import models
from export.graph import from_torch, rewrite
from export.int8 import quantize
from export.int8.calibrate import calibrate
from runtime import files
from runtime.backends.ort import OrtBackend
from runtime.env import fingerprint, versions

MODELS = ("resnet50", "resnet20", "mobilenetv2_100", "convnext_atto")
CIFAR = ("resnet20", "resnet32", "resnet44", "resnet56")
BASE = "fp32"
PRESETS = {"ORT u8s8": "QUInt8", "ORT s8s8": "QInt8"}
IMAGES = 4
Call = Callable[[np.ndarray], Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--models", nargs="+", default=MODELS, help="architectures, as timm spells them, and ours"
    )
    parser.add_argument("--batch", type=int, default=1, help="images per call")
    parser.add_argument("--threads", type=int, default=1, help="of each engine")
    parser.add_argument("--rounds", type=int, default=200, help="at most so many calls of each contender")
    parser.add_argument(
        "--seconds",
        type=float,
        default=30,
        help="no round begins after so long, per network; three always do",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {name: measure(name, options) for name in options.models}
    if options.json:
        machine = fingerprint() | {"more_packages": versions(("openvino", "nncf"))}
        print(
            files.json_text(
                {"batch": options.batch, "threads": options.threads, "machine": machine, "models": results}
            )
        )
    else:
        for name, result in results.items():
            show(name, result, options)
    return 0


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds and ratios of every contender on one network."""
    size = (3, 32, 32) if name in CIFAR else (3, 224, 224)
    noise = np.random.default_rng(0).normal(size=(IMAGES + options.batch, *size)).astype(np.float32)
    with tempfile.TemporaryDirectory(prefix="int8-speed-") as folder:
        files = quantized_files(fp32_graph(name, size), noise[:IMAGES], Path(folder))
        contenders = {label: OrtBackend(path, "cpu", options.threads).run for label, path in files.items()}
        precision = add_openvino(contenders, files, noise[:IMAGES], options.threads)
        times = interleaved(contenders, noise[IMAGES:], options.rounds, options.seconds)
    rows = {
        label: {
            "median_ms": statistics.median(values),
            "fastest_ms": min(values),
            "ratio_to_fp32": paired(times, label, BASE),
        }
        for label, values in times.items()
    }
    best = min(PRESETS, key=lambda label: rows[label]["ratio_to_fp32"])
    found = {
        "rounds": len(times[BASE]),
        "openvino_float": precision,
        "contenders": rows,
        "best_of_onnxruntime": best,
        "ours_to_best_of_onnxruntime": paired(times, "ours cpu", best),
    }
    if "OpenVINO NNCF" in times:
        found["ours_to_nncf_on_openvino"] = paired(times, "OpenVINO ours cpu", "OpenVINO NNCF")
    return found


def fp32_graph(name: str, size: tuple[int, int, int]) -> onnx.ModelProto:
    """The network with batch norm statistics that are not the defaults, so that ranges are not degenerate."""
    torch.manual_seed(0)
    network = models.build(name, 10 if name in CIFAR else 1000)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values, low, high in (
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 2.0),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.2, 0.2),
            ):
                values.uniform_(low, high)
    return from_torch.to_onnx(from_torch.merge(network.eval()), size)


def quantized_files(fp32: onnx.ModelProto, noise: np.ndarray, folder: Path) -> dict[str, Path]:
    """{contender: file} for ONNX Runtime; the fp32 file itself first."""
    files = {
        label: folder / f"{label.replace(' ', '_')}.onnx"
        for label in (BASE, "ours cpu", "ours tensorrt", *PRESETS)
    }
    onnx.save(fp32, files[BASE])
    prepared = rewrite.prepare(fp32)
    for placement in ("cpu", "tensorrt"):
        plan = quantize.lay_out(prepared, placement)
        ranges = calibrate(prepared, plan.tensors, [noise], "minmax")
        onnx.save(quantize.quantize(prepared, plan, ranges), files[f"ours {placement}"])
    for label, activations in PRESETS.items():
        by_onnxruntime(files[BASE], activations, noise, files[label])
    return files


def by_onnxruntime(fp32: Path, activations: str, noise: np.ndarray, output: Path) -> None:
    """ONNX Runtime's own quantizer at its default operators, per channel, int8 weights."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.images = iter(noise)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.images, None)
            return None if image is None else {from_torch.INPUT: image[None]}

    with quiet():
        prepared = output.with_suffix(".prepared.onnx")
        quant_pre_process(str(fp32), str(prepared))
        quantization.quantize_static(
            str(prepared),
            str(output),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType[activations],
            weight_type=quantization.QuantType.QInt8,
        )


def add_openvino(
    contenders: dict[str, Call], files: dict[str, Path], noise: np.ndarray, threads: int
) -> str | None:
    """Add what OpenVINO makes of fp32, ours, and NNCF's file; returns its float format, or None where it is
    not installed.
    """
    try:
        import nncf
        import openvino
    except ImportError as error:
        print(
            f"note: no {error.name} here, so OpenVINO is left out. Install: pip install openvino nncf",
            file=sys.stderr,
        )
        return None
    core, settings = (
        openvino.Core(),
        {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"},
    )
    with quiet():
        given = {
            "fp32": core.read_model(files[BASE]),
            "ours cpu": core.read_model(files["ours cpu"]),
            "ours tensorrt": core.read_model(files["ours tensorrt"]),
            "NNCF": nncf.quantize(
                core.read_model(files[BASE]),
                nncf.Dataset([image[None] for image in noise]),
                subset_size=len(noise),
            ),
        }
        compiled = {label: core.compile_model(model, "CPU", settings) for label, model in given.items()}
    for label, network in compiled.items():
        request = network.create_infer_request()
        contenders[f"OpenVINO {label}"] = lambda batch, request=request: request.infer({0: batch})
    return compiled["fp32"].get_property("INFERENCE_PRECISION_HINT").get_type_name()


def interleaved(
    contenders: dict[str, Call], batch: np.ndarray, rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Milliseconds per call of each contender, one call per round in alternating order, after one round of
    warm-up.
    """
    for call in contenders.values():
        call(batch)
    times: dict[str, list[float]] = {label: [] for label in contenders}
    end = time.perf_counter() + seconds
    done = 0
    while done < 3 or (done < rounds and time.perf_counter() < end):
        for label in list(contenders)[:: 1 if done % 2 else -1]:
            began = time.perf_counter()
            contenders[label](batch)
            times[label].append((time.perf_counter() - began) * 1e3)
        done += 1
    return times


def paired(times: dict[str, list[float]], one: str, other: str) -> float:
    return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Other tools' progress bars and advice stay out of our output."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    ort.set_default_logger_severity(3)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def show(name: str, result: dict[str, Any], options: argparse.Namespace) -> None:
    table = Table(
        "contender",
        *(f"{title}" for title in ("median, ms", "fastest, ms", "ratio to fp32")),
        title=(
            f"{name}, batch {options.batch}, {options.threads} thread{'s' * (options.threads != 1)} "
            f"(n={result['rounds']})"
        ),
    )
    for label, row in result["contenders"].items():
        table.add_row(
            label, f"{row['median_ms']:.2f}", f"{row['fastest_ms']:.2f}", f"{row['ratio_to_fp32']:.3f}"
        )
    console = Console()
    console.print(table)
    console.print(f"ours cpu / {result['best_of_onnxruntime']}: {result['ours_to_best_of_onnxruntime']:.3f}")
    if "ours_to_nncf_on_openvino" in result:
        console.print(
            f"on OpenVINO ({result['openvino_float']} where not int8), ours cpu / NNCF: "
            f"{result['ours_to_nncf_on_openvino']:.3f}"
        )


if __name__ == "__main__":
    sys.exit(main())
