"""The process that builds one plan, started by export.trt.process.

In:  on stdin a line of JSON, the task; a second line, or the end of stdin, asks to stop.
Out: on stdout events as lines of JSON (start, step, finish, then done or error); the plan in the file that
the task names.
Elsewhere: the TensorRT calls (export.trt.build), what the layers mean (export.trt.layers), what is shown
(export.trt.process).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from onnx import ModelProto

from runtime import errors, files
from runtime.backends.tensorrt import cuda, messages
from runtime.backends.tensorrt import plan as plans
from runtime.errors import MissingError

from ..graph.read import read_onnx
from . import build, layers, timing_cache
from .build import Built, Profile, Settings, Watch

PR_SET_PDEATHSIG = 1
"""Of Linux, in <linux/prctl.h>."""


def _end_with_parent() -> None:
    """Let the system end this process when its parent has ended, however that ended (Linux)."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # other systems
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    """Build what stdin asks for. The library's own prints go to stderr, so that stdout holds events only."""
    events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and passes it on
    _end_with_parent()
    lock, stop = threading.Lock(), threading.Event()

    def tell(*values: Any) -> None:
        with lock:
            events.write(files.json_text(values) + "\n")
            events.flush()

    task = json.loads(sys.stdin.readline())
    threading.Thread(target=_stop_when_told, args=(stop,), daemon=True).start()
    watch = Watch(
        lambda *phase: tell("start", *phase),
        lambda *step: tell("step", *step),
        lambda phase: tell("finish", phase),
        stop.is_set,
    )
    try:
        tell("done", _build(task, watch))
    except errors.Large2SmallError as error:
        tell("error", type(error).__name__, str(error))
    except KeyboardInterrupt:
        return 130
    sys.stderr.flush()
    os._exit(0)  # a library's exit handlers must not undo what is done


def _stop_when_told(stop: threading.Event) -> None:
    """Set `stop` at the second line of stdin, or at its end: also when the parent is gone."""
    sys.stdin.readline()
    stop.set()


def _build(task: dict[str, Any], watch: Watch) -> dict[str, Any]:
    given = task["settings"]
    settings = Settings(**given | {"profiles": tuple(Profile(*sizes) for sizes in given["profiles"])})
    trt = plans.tensorrt_module(settings.flavor)
    device = _device(settings.flavor)
    path, began = Path(task["onnx"]), time.perf_counter()
    model = _checked_graph(path, trt.__version__, settings)
    cache = None
    if device["gpu"] and settings.flavor == "tensorrt":
        cache = timing_cache.path(task["timing_cache"], trt.__version__, device)
    built = build.build(trt, path, settings, timing_cache.read(cache), watch)
    not_kept = timing_cache.write(cache, built.timing_cache)
    seconds = time.perf_counter() - began
    Path(task["target"]).write_bytes(built.plan)
    return {
        **device,
        "version": built.version,
        "inputs": built.inputs,
        "outputs": built.outputs,
        "seconds": seconds,
        "timing_cache": {"file": cache.name if cache else None, "accepted": built.cache_accepted},
        "layers": _layers(trt, built, model, settings, device),
        "warnings": built.warnings + ([not_kept] if not_kept else []),
        "peak_mib": _peak_mib(),
    }


def _device(flavor: str) -> dict[str, str | None]:
    """The GPU the plan is built on. Raises MissingError for TensorRT without one: its builder may crash the
    process.
    """
    try:
        device = cuda.open_device()
    except MissingError as error:
        if flavor == "tensorrt":
            raise MissingError(
                f"TensorRT builds on an NVIDIA GPU only ({error}). Build where the GPU is, or give --flavor"
                " rtx, which builds without one"
            ) from error
        return dict.fromkeys(("gpu", "compute_capability", "driver"))
    try:
        return {
            "gpu": device.name,
            "compute_capability": ".".join(map(str, device.compute_capability)),
            "driver": device.driver_version,
        }
    finally:
        device.close()


def _checked_graph(path: Path, version: str, settings: Settings) -> ModelProto:
    model = read_onnx(path)
    if settings.flavor == "tensorrt":
        opsets = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
        build.check_opset(max(opsets, default=0), version)
    return model


def _layers(
    trt: Any, built: Built, model: ModelProto, settings: Settings, device: dict[str, str | None]
) -> dict[str, Any] | None:
    """The summary of the engine's layers, read from the log or asked of the engine where it can be opened."""
    if built.layer_dump:
        return layers.summarize(layers.from_dump(built.layer_dump), model, "build log")
    if not device["gpu"]:
        return None
    runtime = trt.Runtime(messages.logger(trt))
    if settings.version_compat:
        runtime.engine_host_code_allowed = (
            True  # such plans bring their own runtime; this one was built a moment ago
        )
    opened = runtime.deserialize_cuda_engine(built.plan)
    if opened is None:
        return None
    told = opened.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return layers.summarize(layers.from_inspector(told), model, "engine inspector")


def _peak_mib() -> float | None:
    """Most memory this process held so far (Linux; getrusage would count what its parent held before it);
    None elsewhere.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else None


if __name__ == "__main__":
    sys.exit(main())
