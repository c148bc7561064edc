"""Everything that a machine with an NVIDIA GPU can show, in one run, as one JSON file and a table.

    python measurements/gpu.py [--output docs/results/NAME] [--only STEP ...] [--minutes 25]

Steps: environment, tests (those marked gpu), cuda (both libraries: bandwidth, 10,000 round trips without a
leak), onnxruntime (CUDA and TensorRT providers), tensorrt and rtx (plans of ResNet-50 in every precision:
built, checked, timed with and without CUDA graphs), training (ResNet-50 at 224 pixels in fp32, bf16, fp16). A
step that cannot run here is recorded with the reason, a step that fails with its last words; neither stops
the others. Writes NAME.json and NAME.md; without --output both go to stdout.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from runtime import env, files
from runtime.backends.tensorrt import cuda
from runtime.errors import Large2SmallError, MissingError

CALLS = 10_000
MEBIBYTES = 64
LATENCY = ("--batch", "1", "--iterations", "500", "--boundary", "compute", "--json")
PRECISIONS = ("fp32", "fp16", "int8", "int8+fp16")


class NotHere(Exception):
    """A step that this machine cannot run; its text is the reason."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, help="NAME of NAME.json and NAME.md")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=tuple(STEPS), help="some steps")
    parser.add_argument("--minutes", type=float, default=25, help="no step begins after so long")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    found: dict[str, Any] = {"machine": env.fingerprint(), "steps": {}}
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        for name in options.only:
            found["steps"][name] = attempt(STEPS[name], Path(folder), end)
            step = found["steps"][name]
            print(f"{name}: {step['status']} {step.get('reason', '')}", file=sys.stderr, flush=True)
            if options.output:
                files.write_text(options.output.with_suffix(".json"), files.json_text(found, indent=1))
    if options.output:
        files.write_text(options.output.with_suffix(".md"), to_markdown(found))
    else:
        print(files.json_text(found, indent=1))
        print(to_markdown(found))
    return int(any(step["status"] == "failed" for step in found["steps"].values()))


def attempt(step: Callable[[Path], dict[str, Any]], folder: Path, end: float) -> dict[str, Any]:
    """What the step found, or why it found nothing."""
    if time.monotonic() > end:
        return {"status": "not run", "reason": "out of time"}
    began = time.monotonic()
    try:
        return {"status": "ok", **step(folder), "wall_s": round(time.monotonic() - began, 1)}
    except (NotHere, MissingError) as error:
        return {"status": "not run", "reason": str(error)}
    except (
        Large2SmallError,
        RuntimeError,
        ValueError,
        OSError,
        KeyError,
        subprocess.SubprocessError,
    ) as error:
        return {
            "status": "failed",
            "reason": f"{type(error).__name__}: {' '.join(str(error).split())[-600:]}",
        }


def command(*words: str, minutes: float = 9) -> str:
    """stdout of a Python module or script of ours. Raises RuntimeError with its last words when it fails."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=60 * minutes)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(words)}: exit code {done.returncode}:"
            f" {done.stderr.strip()[-500:] or done.stdout[-500:]}"
        )
    return done.stdout


def environment(_: Path) -> dict[str, Any]:
    return {"env": json.loads(command("-m", "distill", "env", "--json"))}


def tests(_: Path) -> dict[str, Any]:
    cuda.open_device().close()
    words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-rs", "tests"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=540)
    lines = done.stdout.strip().splitlines()
    if done.returncode not in (0, 5):  # 5: nothing was collected
        raise RuntimeError(
            " | ".join(line for line in lines if line.startswith(("FAILED", "ERROR"))) or lines[-1]
        )
    return {"summary": lines[-1], "skipped": [line for line in lines if line.startswith("SKIPPED")]}


def cuda_layer(_: Path) -> dict[str, Any]:
    found = {}
    for library in cuda.LIBRARIES:
        try:
            found[library] = exercise(cuda.open_device(0, library))
        except MissingError as error:
            found[library] = {"not_run": str(error)}
    if all("not_run" in each for each in found.values()):
        raise NotHere("; ".join(each["not_run"] for each in found.values()))
    return {"libraries": found}


def exercise(device: cuda.Device) -> dict[str, Any]:
    """Bandwidth through pinned memory by events, and the free memory before and after many calls."""
    with device.active():
        stream, start, stop = device.stream(), device.event(), device.event()
        host, memory = device.pinned((MEBIBYTES * 2**20,), np.uint8), device.alloc(MEBIBYTES * 2**20)
        host.array[:] = np.arange(len(host.array), dtype=np.uint32).astype(np.uint8)
        expected, rates = host.array.copy(), {"to_device": [], "to_host": []}
        for _ in range(10):
            for name, copy in (
                ("to_device", lambda: device.to_device(memory.address, host.array, stream)),
                ("to_host", lambda: device.to_host(host.array, memory.address, stream)),
            ):
                start.record(stream)
                copy()
                stop.record(stream)
                stop.synchronize()
                rates[name].append(MEBIBYTES / 1024 / (stop.milliseconds_since(start) / 1e3))
        if not np.array_equal(host.array, expected):
            raise RuntimeError(f"{device.library}: what came back is not what was sent")
        small, before = device.pinned((256,), np.float32), device.free_memory()
        began = time.perf_counter()
        for _ in range(CALLS):
            device.to_device(memory.address, small.array, stream)
            device.to_host(small.array, memory.address, stream)
            stream.synchronize()
        each = (time.perf_counter() - began) / CALLS
        leaked = before - device.free_memory()
        for owned in (stream, start, stop, host, small, memory):
            owned.close()
    found = {
        "gpu": device.name,
        "capability": ".".join(map(str, device.compute_capability)),
        "driver": device.driver_version,
        **{f"{name}_gib_per_s": statistics.median(values) for name, values in rates.items()},
        "round_trip_1kib_us": each * 1e6,
        "leaked_bytes_in_10000_calls": leaked,
    }
    device.close()
    return found


def onnx_files(folder: Path) -> dict[str, Path]:
    """ResNet-50 in every precision, made once by the same code as measurements/engines.py."""
    sys.path.insert(0, str(Path(__file__).parent))
    import engines

    paths = {precision: folder / f"resnet50.{precision}.onnx" for precision in PRECISIONS}
    if not all(path.exists() for path in paths.values()):
        engines.write_files("resnet50", list(PRECISIONS), folder)
    return paths


def onnxruntime_providers(folder: Path) -> dict[str, Any]:
    cuda.open_device().close()
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise NotHere("this ONNX Runtime has no CUDA provider: pip install onnxruntime-gpu")
    rows = {}
    for precision, path in onnx_files(folder).items():
        for provider in ("cuda", "tensorrt"):
            if (
                provider == "tensorrt"
                and "TensorrtExecutionProvider" not in onnxruntime.get_available_providers()
            ):
                continue
            rows[f"{precision} {provider}"] = latency(path, "--device", "cuda", "--provider", provider)
    return {"latency": rows}


def latency(path: Path, *flags: str) -> dict[str, Any]:
    """p50 and p99 in ms of one image, or why not."""
    try:
        said = json.loads(command("-m", "bench", "latency", "--engine", str(path), *LATENCY, *flags))
    except RuntimeError as error:
        return {"failed": str(error)[-400:]}
    timed = said["compute"]
    return {
        "p50_ms": timed["latency_p50_ms"],
        "p99_ms": timed["latency_p99_ms"],
        "provider": said["provider"],
    }


def plans(flavor: str, module: str) -> Callable[[Path], dict[str, Any]]:
    def step(folder: Path) -> dict[str, Any]:
        if find_spec(module) is None:
            raise NotHere(f"{module} is not installed")
        cuda.open_device().close()
        rows = {}
        for precision, path in onnx_files(folder).items():
            plan = folder / f"{flavor}.{precision}.plan"
            try:
                said = json.loads(
                    command(
                        "-m",
                        "distill",
                        "export",
                        "trt",
                        str(path),
                        "--flavor",
                        flavor,
                        "--output",
                        str(plan),
                        "--dynamic",
                        "1,1,16",
                        "--json",
                        "--overwrite",
                    )
                )
            except RuntimeError as error:
                rows[precision] = {"failed": str(error)[-400:]}
                continue
            rows[precision] = {
                "build_s": said["build_seconds"],
                "state": said["state"],
                "layers": said["layers"],
                "agreement_percent": said["agreement_percent"],
                "warnings": said["warnings"],
                "plain": latency(plan),
                "cuda_graph": latency(plan, "--cuda-graph"),
            }
        return {"plans": rows}

    return step


def training(folder: Path) -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        raise NotHere("torch sees no GPU here")
    generator = np.random.default_rng(0)
    for split, count in (("train", 2048), ("val", 64)):
        x = generator.integers(0, 255, (count, 224, 224, 3), dtype=np.uint8)
        np.savez(folder / f"{split}.npz", x=x, y=np.arange(count) % 8)
    rows = {}
    for name, flags in {
        "fp32": (),
        "bf16": ("--amp", "--amp-dtype", "bf16"),
        "fp16": ("--amp", "--amp-dtype", "fp16"),
    }.items():
        run = folder / name
        command(
            "-m",
            "distill",
            "train",
            "--teacher",
            "none",
            "--student",
            "resnet50",
            "--data",
            f"npz:{folder}",
            "--epochs",
            "2",
            "--batch",
            "64",
            "--device",
            "cuda",
            "--workers",
            "8",
            "--output",
            str(run),
            *flags,
        )
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        rows[name] = {"images_per_s": last["train_images_per_s"]}
    return {"resnet50_224": rows}


STEPS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "environment": environment,
    "tests": tests,
    "cuda": cuda_layer,
    "onnxruntime": onnxruntime_providers,
    "tensorrt": plans("tensorrt", "tensorrt"),
    "rtx": plans("rtx", "tensorrt_rtx_bindings"),
    "training": training,
}


def to_markdown(found: dict[str, Any]) -> str:
    """One row for each figure, under the machine it was taken on."""
    machine = found["machine"]
    lines = [
        f"{machine['gpu'] or 'no GPU'}, {machine['cpu']}, {machine['cores']} cores, {machine['system']}",
        "",
        "| step | what | figure |",
        "|---|---|---|",
    ]
    for name, step in found["steps"].items():
        if step["status"] != "ok":
            lines.append(f"| {name} | {step['status']} | {step['reason']} |")
            continue
        lines += [
            f"| {name} | {path} | {value} |"
            for path, value in flat(step)
            if not path.startswith(("env.", "status"))
        ]
    return "\n".join(lines) + "\n"


def flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    """[(dotted path, text)] of every number and word in nested dicts."""
    if isinstance(value, dict):
        return [
            pair for key, each in value.items() for pair in flat(each, f"{path}.{key}" if path else str(key))
        ]
    return [(path, f"{value:.4g}" if isinstance(value, float) else str(value))]


if __name__ == "__main__":
    sys.exit(main())
