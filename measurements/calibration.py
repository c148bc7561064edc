"""Calibration of a ResNet-50 at 224 pixels: time and memory per image, against the calibrators of
onnxruntime.quantization.

    python measurements/calibration.py [--images 1000] [--timed 24] [--rounds 3] [--data DIR] [--only entropy]
    [--json]

Same fp32 graph, same images, same tensors (inputs and outputs of every Conv and Gemm). Every measurement is a
process of its own, so that memory is not shared; times are interleaved. Time: from the first image to all
ranges, reading images left out, median of the rounds; "busy" is what all threads computed, which other work
on the machine moves less. Growth: the slope of the memory held against the images seen, from an eighth of
them on (at least 8); ONNX Runtime's is taken on the timed images, ours also on --images. Images are noise
with a natural spectrum unless a folder is given; the network has random weights and stirred batch norms:
speed and memory do not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from runtime import files

ONNX_RUNTIME = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
OURS = ("minmax", "percentile", "entropy", "mse", "all four")
BATCH = 5
"""Images at a time in `distill export` at this size; ONNX Runtime is given one at a time, where its memory is
smallest."""


class Meter:
    """Time and memory of one process; reading images stops its clock."""

    def __init__(self, images: int) -> None:
        self.images, self.seen, self.waited, self.waited_busy = images, 0, 0.0, 0.0
        self.memory: list[tuple[int, int]] = []
        """(images seen, bytes resident) whenever the next images are asked for."""

    def stream(self, source: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
        """Batches of `size` images."""
        while self.seen < self.images:
            self.memory.append((self.seen, resident_bytes()))
            began, busy = time.perf_counter(), time.process_time()
            batch = np.stack([next(source) for _ in range(min(size, self.images - self.seen))])
            self.waited += time.perf_counter() - began
            self.waited_busy += time.process_time() - busy
            self.seen += len(batch)
            yield batch
        self.memory.append((self.seen, resident_bytes()))

    def start(self) -> None:
        self.began, self.busy = time.perf_counter(), time.process_time()

    def result(self) -> dict[str, float]:
        seconds = time.perf_counter() - self.began - self.waited
        busy = time.process_time() - self.busy - self.waited_busy
        settled = [(seen, held) for seen, held in self.memory if seen >= max(8, self.images // 8)]
        return {
            "images": self.images,
            "seconds_per_image": seconds / self.images,
            "busy_seconds_per_image": busy / self.images,
            "peak_mib": peak_bytes() / 2**20,
            "growth_kb_per_image": float(np.polyfit(*zip(*settled, strict=True), 1)[0]) / 1000,
        }


def resident_bytes() -> int:
    """Memory this process holds now; where that is not told, the most it has held."""
    if sys.platform != "linux":
        return peak_bytes()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int:
    """Most memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def pictures(data: str | None, side: int) -> Iterator[np.ndarray]:
    """(3, side, side) float32 images without end: of a folder, again and again, or noise whose amplitude
    falls with frequency.
    """
    if data is not None:
        from distill.data import open_data
        from runtime.preprocess import Preprocess

        images, preprocess = open_data(data, "train"), Preprocess(input_size=(3, side, side))
        while True:
            for index in range(len(images)):
                yield preprocess.batch([images.image(index)])[0]
    random = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]) + 1 / side
    while True:
        noise = np.fft.irfft2(np.fft.rfft2(random.normal(size=(3, side, side))) / frequency, s=(side, side))
        yield (noise / noise.std()).astype(np.float32)


def observed(model: Any) -> list[str]:
    """What onnxruntime.quantization observes of Conv and Gemm: their data inputs and their outputs."""
    return list(
        dict.fromkeys(
            name
            for node in model.graph.node
            if node.op_type in ("Conv", "Gemm")
            for name in (node.input[0], node.output[0])
        )
    )


def ours(file: Path, method: str, source: Iterator[np.ndarray], images: int) -> dict[str, float]:
    import onnx

    from export.int8 import calibrate, ranges

    model, meter = onnx.load(file), Meter(images)
    meter.start()
    histograms = calibrate.collect(model, observed(model), meter.stream(source, BATCH))
    for each in ranges.METHODS if method == "all four" else (method,):
        for histogram in histograms.values():
            ranges.find(histogram, each)
    return meter.result() | {"tensors": len(histograms)}


def onnx_runtime(file: Path, method: str, source: Iterator[np.ndarray], images: int) -> dict[str, float]:
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

    meter = Meter(images)
    batches = meter.stream(source, 1)

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(batches, None)
            return None if batch is None else {"images": batch}

    meter.start()
    with tempfile.TemporaryDirectory() as folder:
        calibrator = create_calibrator(
            str(file),
            ["Conv", "Gemm"],
            str(Path(folder) / "augmented.onnx"),
            calibrate_method=CalibrationMethod[ONNX_RUNTIME[method]],
            extra_options={"symmetric": True},
        )
        calibrator.collect_data(Reader())
        found = calibrator.compute_data()
    return meter.result() | {"tensors": len(found.data)}


def child(options: argparse.Namespace) -> None:
    """One measurement, printed as JSON."""
    engine, _, method = options.child.partition(" ")
    source = pictures(options.data, options.side)
    measured = {"large2small": ours, "onnxruntime": onnx_runtime}[engine](
        options.model, method, source, options.images
    )
    print(files.json_text(measured))


def measure(name: str, images: int, model: Path, options: argparse.Namespace) -> dict[str, float]:
    """`child` in a process of its own."""
    command = [sys.executable, __file__, "--child", name, "--images", str(images), "--model", str(model)]
    command += ["--side", str(options.side), *(["--data", options.data] if options.data else [])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def write_resnet50(path: Path, side: int) -> None:
    """timm's resnet50 with random weights, and batch norms that are not the identity, as an fp32 graph."""
    import onnx
    import torch

    from distill import models
    from export.graph import from_torch

    torch.manual_seed(0)
    network = models.build("resnet50", 1000)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values, low, high in (
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 2.0),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.2, 0.2),
            ):
                values.uniform_(low, high)
    onnx.save(from_torch.to_onnx(from_torch.merge(network.eval()), (3, side, side)), path)


def rows(model: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Times of all calibrators on the same images, interleaved; then the memory of ours on many."""
    wanted = [f"onnxruntime {method}" for method in ONNX_RUNTIME] + [
        f"large2small {method}" for method in OURS
    ]
    wanted = [name for name in wanted if options.only is None or name.endswith(options.only)]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in wanted}
    for round_ in range(options.rounds):
        for name in sorted(wanted, reverse=bool(round_ % 2)):
            runs[name].append(measure(name, options.timed, model, options))
    found = []
    for name, results in runs.items():
        row: dict[str, Any] = {"calibrator": name, "rounds": len(results)}
        for key in results[0]:
            row[key] = statistics.median(result[key] for result in results)
        found.append(row)
    if options.images > options.timed:
        name = "large2small entropy"
        found.append({"calibrator": name, "rounds": 1} | measure(name, options.images, model, options))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1000, help="images for the memory of ours")
    parser.add_argument(
        "--timed", type=int, default=24, help="images for the comparison; ONNX Runtime holds 90 MiB for each"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=int, default=224, help="height and width of an image, pixels")
    parser.add_argument("--data", help="image folder, npz:FILE or hub set in place of noise")
    parser.add_argument(
        "--model", type=Path, help="fp32 ONNX file with an input `images`, in place of the ResNet-50"
    )
    parser.add_argument("--only", help="calibrators whose name ends so, such as entropy")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return
    if options.timed < 16:
        parser.error(
            f"--timed {options.timed}: expected 16 or more; the slope of memory starts at the 8th image"
        )
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or Path(folder) / "resnet50.onnx"
        if options.model is None:
            write_resnet50(model, options.side)
        found = rows(model, options)
    show(found, options)


def show(found: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """The table, the two ratios asked of entropy, and the conditions; or one JSON object."""
    from runtime.env import fingerprint, versions

    first = {row["calibrator"]: row for row in reversed(found)}
    pair = [first.get(f"{engine} entropy") for engine in ("onnxruntime", "large2small")]
    faster = pair[0]["seconds_per_image"] / pair[1]["seconds_per_image"] if all(pair) else None
    conditions = {
        "cpu": fingerprint()["cpu"],
        "versions": versions(("onnxruntime", "numpy")),
        "side": options.side,
    }
    if options.json:
        print(files.json_text({"rows": found, "entropy_times_faster": faster, **conditions}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "calibrator", "images", "tensors", "ms per image", "busy, ms", "peak MiB", "growth, kB per image"
    )
    for row in found:
        table.add_row(
            row["calibrator"],
            f"{row['images']:.0f}",
            f"{row['tensors']:.0f}",
            *(f"{row[key] * 1e3:.0f}" for key in ("seconds_per_image", "busy_seconds_per_image")),
            f"{row['peak_mib']:,.0f}",
            f"{row['growth_kb_per_image']:,.1f}",
        )
    Console(width=110).print(table)
    if faster is not None:
        print(f"entropy: {faster:.1f} x as fast as ONNX Runtime's (asked: 2)")
    if found[-1]["images"] == options.images > options.timed:
        print(
            f"growth at {options.images} images: {found[-1]['growth_kb_per_image']:.1f} kB per image (asked:"
            " below 10)"
        )
    print(
        f"median of {options.rounds} rounds, {conditions['cpu']}, {conditions['versions']}, {options.side} x"
        f" {options.side}"
    )


if __name__ == "__main__":
    main()
