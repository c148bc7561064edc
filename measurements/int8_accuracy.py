"""Accuracy of int8 beside ONNX Runtime's own quantizer: same fp32 graphs, same calibration images, same
labeled images, one run.

    python measurements/int8_accuracy.py --on DATA CHECKPOINT[:MODEL] ... [--on DATA CHECKPOINT ...]
        [--methods percentile mse] [--weights max mse bias equalize float]

DATA names labeled images with a training split to calibrate on and a validation split to measure on
(npz:FOLDER, DIR, digits); MODEL is needed for weights without a description. The published CIFAR ResNets and
MobileNetV2, prepared as docs/int8.md says:

    python measurements/int8_accuracy.py --on npz:/tmp/cifar10 resnet20-12fca82f.th:resnet20
        resnet56-4bfd9763.th:resnet56 --on npz:/tmp/photographs /tmp/mobilenetv2.pth

Ours is what `export onnx --int8` makes (export.int8.quantizer) at its default settings, in both placements,
before any layer is rolled back. ONNX Runtime's is `quantize_static` at the best settings that TensorRT would
read: Q/DQ on the inputs of Conv and Gemm, weights per channel, activations int8 and symmetric, bias float;
MinMax and Entropy calibration. Every graph runs on its CPU engine. Agreement and KL (fp32 || int8, nats per
image) tell more than top-1 does: they use images that fp32 gets wrong, too.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import ModelProto
from rich.console import Console
from rich.table import Table

from distill import checkpoint, models
from export.checks import samples, verify
from export.graph import from_torch
from export.int8.images import CalibrationImages
from export.int8.quantizer import Calibrated
from export.options import Int8Options
from runtime import files
from runtime.backends.ort import OrtBackend
from runtime.env import fingerprint
from runtime.errors import Large2SmallError
from runtime.images import ImageSet, open_images
from runtime.preprocess import Preprocess

PLACEMENTS = ("tensorrt", "cpu")
AT_ONCE = 16
"""ONNX Runtime's Entropy holds the activations of so many images; otherwise of all, 90 MiB each on
ResNet-50."""
WEIGHTS: dict[str, dict[str, Any]] = {
    "max": {},
    "mse": {"weight_scales": "mse"},
    "bias": {"bias_correction": True},
    "equalize": {"equalize": True},
    "float": {},
}
"""Settings of `export --int8`. float is not one: int8 activations and weights as they were, the limit of any
better rounding."""
UNROUNDED = ", weights float"
COLUMNS = {
    "tool": "tool",
    "method": "method",
    "top1": "top-1 %",
    "drop": "drop",
    "flips": "flips -/+",
    "agreement": "agree %",
    "kl": "KL",
    "seconds": "s",
    "memory_mib": "MiB more",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--on",
        nargs="+",
        action="append",
        required=True,
        metavar=("DATA", "CHECKPOINT[:MODEL]"),
        help="labeled images and the networks trained on them; may be repeated",
    )
    parser.add_argument(
        "--methods", nargs="+", default=[Int8Options().calib_method], help="our calibration methods"
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        default=["max"],
        choices=WEIGHTS,
        help="how ours are rounded; float: they are not, the limit of any better rounding",
    )
    parser.add_argument(
        "--placements",
        nargs="+",
        default=PLACEMENTS,
        choices=PLACEMENTS,
        help="ours; ONNX Runtime has its own",
    )
    parser.add_argument(
        "--calib-size", type=int, default=512, help="training images to calibrate on, stratified"
    )
    parser.add_argument(
        "--images", type=int, default=10_000, help="at most so many validation images, stratified"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice of images")
    parser.add_argument("--threads", type=int, help="of the engine when accuracy is measured; default: all")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    options = parser.parse_args()
    results, skipped = {}, {}
    for data, *networks in options.on:
        for file in networks:
            try:
                results[file] = measure(file, data, options)
            except Large2SmallError as error:  # say so, and go on with the networks that are here
                skipped[file] = str(error)
                continue
            if not options.json:
                show(file, results[file])
    if options.json:
        print(files.json_text({"machine": fingerprint(), "models": results, "skipped": skipped}))
    for file, reason in skipped.items():
        print(f"skipped {file}: {reason}", file=sys.stderr)
    return 0 if results else 2


def measure(file: str, data: str, options: argparse.Namespace) -> dict[str, Any]:
    """Every contender on one network. Raises Large2SmallError when a file or the images cannot be read."""
    path, _, name = file.partition(":")
    train, val = open_images(data, "train"), open_images(data, "val")
    found = checkpoint.load_any(path, name or None)
    network = models.build(found.model, len(train.class_names), found.model_args)
    checkpoint.load_weights(network, found)
    fp32 = from_torch.to_onnx(from_torch.merge(network.eval()), found.preprocess.input_size)
    used = samples.choose(train.labels, options.calib_size, options.seed)
    chosen = samples.choose(val.labels, options.images, options.seed)
    samples.require_apart(train, used, val)

    def logits_of(model: ModelProto, engine: Callable[..., np.ndarray] = run) -> np.ndarray:
        return engine(
            model, (batch for batch, _ in samples.batches(val, chosen, found.preprocess)), options.threads
        )

    reference, labels = logits_of(fp32), val.labels[chosen]
    rows, right = [], []
    for tool, method, make in contenders(
        fp32, CalibrationImages(found.preprocess, train, used, seed=options.seed), options
    ):
        with Peak() as peak:
            int8 = make()
        logits = logits_of(int8, run_as_written if method.endswith(UNROUNDED) else run)
        right.append(logits.argmax(1) == labels)
        score = asdict(verify.accuracy(reference, logits, labels))
        rows.append(
            {
                "tool": tool,
                "method": method,
                "top1": score["candidate_top1"],
                "drop": score["drop"],
                "flips": f"{score['right_to_wrong']}/{score['wrong_to_right']}",
                "agreement": score["agreement"],
                "kl": score["kl_nats"],
                "seconds": peak.seconds,
                "memory_mib": peak.mebibytes,
            }
        )
        print(
            f"{found.model}: {tool} {method} {score['candidate_top1']:.2f} %", file=sys.stderr
        )  # minutes apart on large images
    compare(rows, right)
    return {
        "model": found.model,
        "fp32_top1": 100 * float((reference.argmax(1) == labels).mean()),
        "images": len(labels),
        "calibrated_on": len(used),
        "onnxruntime_entropy_images_at_once": strided(len(used)),
        "rows": rows,
    }


def compare(rows: list[dict[str, Any]], right: list[np.ndarray]) -> None:
    """Into each row of ours: how it does on the very images against the more accurate of ONNX Runtime's
    (McNemar's test).
    """
    best = max(
        (i for i, row in enumerate(rows) if not row["tool"].startswith("ours")), key=lambda i: rows[i]["top1"]
    )
    for row, ours in zip(rows, right, strict=True):
        if row["tool"].startswith("ours"):
            found = verify.flips(right[best], ours)
            row["against"] = {
                "method": rows[best]["method"],
                "top1": rows[best]["top1"],
                "lost": found.right_to_wrong,
                "won": found.wrong_to_right,
                "mcnemar_p": verify.mcnemar_p(found),
            }


def contenders(
    fp32: ModelProto, calibration: CalibrationImages, options: argparse.Namespace
) -> Iterator[tuple[str, str, Callable[[], ModelProto]]]:
    """(tool, method, what makes the int8 graph) of everything that is compared."""
    for placement in options.placements:
        for method, weights in itertools.product(options.methods, options.weights):
            name = {"max": method, "float": method + UNROUNDED}.get(weights, f"{method}, weights {weights}")
            yield (
                f"ours {placement}",
                name,
                lambda p=placement, m=method, w=weights: ours(fp32, calibration, p, m, w),
            )
    for method in ("MinMax", "Entropy"):
        yield "ONNX Runtime", method, lambda m=method: by_onnxruntime(fp32, calibration, m)


def ours(
    fp32: ModelProto, calibration: CalibrationImages, placement: str, method: str, weights: str
) -> ModelProto:
    """As the export makes it, without its cache: seconds are those of a first export."""
    settings = Int8Options(calib_method=method, calib_cache="none", **WEIGHTS[weights])
    made, int8 = Calibrated(fp32, placement, settings, calibration).build()
    return with_float_weights(int8, fp32, made.layers) if weights == "float" else int8


def with_float_weights(int8: ModelProto, fp32: ModelProto, layers: Collection[str]) -> ModelProto:
    """The int8 graph, whose `layers` read their weights of `fp32` again."""
    before = {node.name: node.input[1] for node in fp32.graph.node if node.name in layers}
    for node in int8.graph.node:
        if node.name in before:
            node.input[1] = before[node.name]
    kept = {one.name for one in int8.graph.initializer}
    int8.graph.initializer.extend(
        one for one in fp32.graph.initializer if one.name in {*before.values()} - kept
    )
    return int8


def by_onnxruntime(fp32: ModelProto, calibration: CalibrationImages, method: str) -> ModelProto:
    """`quantize_static` with Q/DQ on the inputs of Conv and Gemm only, symmetric int8, per channel, float
    bias.
    """
    from onnxruntime import quantization

    count = len(calibration.used)
    more = (
        {"CalibStridedMinMax": strided(count)} if method == "Entropy" else {}
    )  # despite its name it works for every method
    with (
        tempfile.TemporaryDirectory(prefix="int8-accuracy-") as folder,
        contextlib.redirect_stdout(io.StringIO()),
        quiet(),
    ):
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(fp32, source)
        quantization.quantize_static(
            source,
            target,
            reader(calibration.images, calibration.used, calibration.preprocess),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm"],
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod[method],
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "OpTypesToExcludeOutputQuantization": ["Conv", "Gemm"],
                **more,
            },
        )
        return onnx.load(target)


def strided(count: int) -> int:
    """The largest number up to AT_ONCE that divides `count`, as ONNX Runtime wants it."""
    return max(size for size in range(1, AT_ONCE + 1) if count % size == 0)


def reader(images: ImageSet, used: np.ndarray, preprocess: Preprocess) -> Any:
    """The calibration images one by one, in ONNX Runtime's form."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.set_range(0, len(used))

        def __len__(self) -> int:
            return len(used)

        def set_range(self, start_index: int, end_index: int) -> None:
            self.batches = samples.batches(images, used[start_index:end_index], preprocess, size=1)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {from_torch.INPUT: batch[0]}

    return Reader()


def run(model: ModelProto, batches: Iterator[np.ndarray], threads: int | None) -> np.ndarray:
    """(N, K) logits on ONNX Runtime's CPU engine."""
    with tempfile.TemporaryDirectory(prefix="int8-accuracy-") as folder:
        onnx.save(model, Path(folder) / "model.onnx")
        engine = OrtBackend(Path(folder) / "model.onnx", "cpu", threads)
        return np.concatenate([engine.run(batch) for batch in batches])


def run_as_written(model: ModelProto, batches: Iterator[np.ndarray], threads: int | None) -> np.ndarray:
    """Like `run`, nothing optimized: ONNX Runtime would round float weights between Q/DQ by itself, per
    tensor.
    """
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    return np.concatenate([session.run(None, {from_torch.INPUT: batch})[0] for batch in batches])


class Peak:
    """Seconds of a block, and by how much the process's memory rose above where it was; None where Linux does
    not tell.
    """

    def __enter__(self) -> Peak:
        self.mebibytes: float | None = None
        self.before = None
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from now
            self.before = status("VmRSS")
        self.began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.began
        if self.before is not None:
            self.mebibytes = (status("VmHWM") - self.before) / 1024


def status(field: str) -> int:
    """KiB, from what Linux says about this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """ONNX Runtime's quantizer recommends what makes no difference here."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)


def show(file: str, result: dict[str, Any]) -> None:
    """One table, and in words whether ours is at least as accurate."""
    title = (
        f"{result['model']}: fp32 {result['fp32_top1']:.2f} % of {result['images']} images, calibrated on "
        f"{result['calibrated_on']}"
    )
    table = Table(
        *COLUMNS.values(),
        title=title,
        caption=(
            f"{file}; ONNX Runtime's Entropy reads "
            f"{result['onnxruntime_entropy_images_at_once']} images at a time"
        ),
    )
    forms = {
        "top1": ".2f",
        "drop": "+.2f",
        "agreement": ".2f",
        "kl": ".5f",
        "seconds": ".1f",
        "memory_mib": ".0f",
    }
    for row in result["rows"]:
        table.add_row(*("-" if row[key] is None else format(row[key], forms.get(key, "")) for key in COLUMNS))
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(table)
    for row in result["rows"]:
        if "against" in row:
            other = row["against"]
            verdict = "at least as accurate as" if row["top1"] >= other["top1"] else "LESS accurate than"
            console.print(
                f"{row['tool']} {row['method']} {row['top1']:.2f} %: {verdict} ONNX Runtime's"
                f" {other['method']}, {other['top1']:.2f} % ({other['lost']} images lost, {other['won']} won;"
                f" McNemar's p {other['mcnemar_p']:.2g})"
            )


if __name__ == "__main__":
    torch.set_num_threads(1)  # torch only builds the graph
    sys.exit(main())
