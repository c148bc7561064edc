"""OpenVINO: run an .onnx file on its CPU, GPU or NPU plugin, in the precision that the file says.

In:  path, device, thread count, hint.
Out: `OpenVinoBackend.run((N, C, H, W) float32) -> (N, K) float32`; input shape; the file's metadata map.
Elsewhere: what the numbers mean (runtime.predictor), the same file on another engine (runtime.backends.ort).
"""

from __future__ import annotations

import queue
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArtifactError, MissingError, UsageError
from .ort import require_out

HINTS = ("latency", "throughput")

METADATA = ("framework", "large2small")
"""Where OpenVINO's ONNX reader keeps an entry of `metadata_props`."""


class OpenVinoBackend:
    """A compiled model. `run` may be called from many threads at once; each call borrows a request of its own."""

    engine = "openvino"

    def __init__(self, path: str | Path, device: str = "cpu", threads: int | None = None, *, hint: str = "latency") -> None:
        """hint: latency (one request uses all threads) or throughput (many calls at once share them)."""
        try:
            import openvino
        except ImportError:
            raise MissingError(f'{path} on OpenVINO needs its package. Install it: pip install "large2small[openvino]"') from None
        if hint not in HINTS:
            raise UsageError(f"hint {hint!r}: expected {' or '.join(HINTS)}")
        if threads is not None and threads < 1:
            raise UsageError(f"threads {threads}: expected 1 or more")
        self.path, self.device, self.threads, self.hint = Path(path), device, threads, hint
        self.version = openvino.get_version().split("-")[0]
        core = openvino.Core()
        plugin = _plugin(device, core.available_devices)
        model = _read(core, self.path)
        self._metadata = _metadata_of(model)
        self.input_shape = _input_shape(model, self.path)
        # The plugin would compute fp32 layers in bf16 where the CPU has it: fast, but not the network that was verified.
        settings: dict[str, Any] = {"PERFORMANCE_HINT": hint.upper(), "INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        self._compiled = core.compile_model(model, plugin, settings)
        precision = self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if precision != "f32":
            raise MissingError(f"{path}: OpenVINO's {plugin} computes in {precision}, not in f32. Choose another --device")
        self.provider = f"OpenVINO {plugin} {precision}, {hint} hint"
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def run(self, batch: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """(N, C, H, W) float32 -> (N, K) float32; copied to `out` when given."""
        try:
            request = self._requests.get_nowait()
        except queue.Empty:
            request = self._compiled.create_infer_request()
        try:
            logits = request.infer({0: batch}, share_inputs=True)[0]
            if out is None:
                return logits.copy()  # the request's own memory, which the next call writes
            require_out(out, logits.shape)
            out[...] = logits
            return out
        finally:
            self._requests.put(request)

    def metadata_map(self) -> Mapping[str, str]:
        """The file's entry of `metadata_props` that this project reads."""
        return self._metadata


def _plugin(device: str, available: list[str]) -> str:
    """OpenVINO's name of the device; cuda is not one of them."""
    kind, _, index = device.lower().partition(":")
    if kind not in ("cpu", "gpu", "npu") or (index and not index.isdigit()):
        raise UsageError(f"device {device!r}: OpenVINO takes cpu, gpu, gpu:INDEX or npu")
    name = f"{kind.upper()}.{index}" if index else kind.upper()
    if not any(each == name or each.split(".")[0] == name for each in available):
        raise MissingError(f"device {device!r}: OpenVINO finds {', '.join(available) or 'none'} here. Give --device cpu, or "
                           "install the device's driver")
    return name


def _read(core: Any, path: Path) -> Any:
    try:
        return core.read_model(str(path))
    except RuntimeError as error:
        raise ArtifactError(f"{path}: OpenVINO cannot open it ({' '.join(str(error).split())[:300]})") from error


def _metadata_of(model: Any) -> dict[str, str]:
    if not model.has_rt_info(list(METADATA)):
        return {}
    return {METADATA[1]: model.get_rt_info(list(METADATA)).astype(str)}


def _input_shape(model: Any, path: Path) -> list[int | None]:
    sizes = model.inputs[0].partial_shape if len(model.inputs) == 1 else []
    shape = [None if size.is_dynamic else size.get_length() for size in sizes]
    if len(shape) != 4 or model.inputs[0].element_type.get_type_name() != "f32":
        found = ", ".join(f"{each.any_name}: {each.element_type} {each.partial_shape}" for each in model.inputs)
        raise ArtifactError(f"{path}: inputs are {found}; expected one float input (N, C, H, W)")
    return shape
