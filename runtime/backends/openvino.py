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

from ..artifact import Metadata, check_file
from ..errors import ArtifactError, MissingError, UsageError
from ..files import no_artifact
from . import (
    Engine,
    Library,
    Settings,
    is_index,
    known_batch_sizes,
    metadata_of,
    signal_stack,
    signature,
)
from .onnx_file import metadata_props, require_whole
from .ort import require_out

HINTS = ("latency", "throughput")


class OpenVinoBackend:
    """A compiled model. `run` may be called from many threads at once; each call borrows a request of its
    own.
    """

    engine = "openvino"

    def __init__(
        self,
        path: str | Path,
        device: str = "cpu",
        threads: int | None = None,
        *,
        hint: str = "latency",
        profile: bool = False,
    ) -> None:
        """device: cpu, gpu, gpu:INDEX or npu. threads: of the CPU. hint: latency (one call uses all threads)
        or throughput (many calls at once share them).

        Raises MissingError when the package or the device is not here, or the device has no f32;
        ArtifactError when OpenVINO cannot open the file.
        """
        try:
            from .telemetry import openvino
        except ImportError as error:
            raise MissingError(
                f'{path} on OpenVINO needs its package. Install it: pip install "large2small[openvino]" '
                f"({' '.join(str(error).split())})"
            ) from error
        self.path, self.device, self.hint = Path(path), device, hint
        _check(self.path, device, threads, hint)
        self._metadata = metadata_props(self.path)
        require_whole(self.path)
        self.version: str = openvino.get_version().split("-")[0]
        with signal_stack.kept():
            core = openvino.Core()
            plugin = _plugin(device, core.available_devices)
            model = _read(core, self.path)
            self.input_shape = _input_shape(model, self.path)
            self.batch_sizes = known_batch_sizes(self.input_shape)
            self._compiled = _compile(core, model, plugin, _settings(threads, hint, profile), self.path)
        self.threads: int | None = (
            self._compiled.get_property("INFERENCE_NUM_THREADS") if plugin == "CPU" else None
        )
        self.provider = f"OpenVINO {plugin} {_precision(self._compiled, plugin, self.path)}, {hint} hint"
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def run(self, batch: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """(N, C, H, W) float32 -> first output, (N, K) float32; copied to `out` when given."""
        try:
            request = self._requests.get_nowait()
        except queue.Empty:
            request = self._compiled.create_infer_request()
        try:
            logits: np.ndarray = request.infer({0: batch}, share_inputs=True, share_outputs=True)[0]
            if out is None:
                kept: np.ndarray = logits.copy()  # the request's own memory, which the next call writes
                return kept
            require_out(out, logits.shape)
            out[...] = logits
            return out
        finally:
            self._requests.put(request)

    def last_profile(self) -> list[tuple[str, str, float]]:
        """(name, operator, seconds) of each layer in the last call, of a backend opened with profile=True."""
        request = self._requests.get_nowait()
        try:
            return [
                (each.node_name, each.node_type, each.real_time.total_seconds())
                for each in request.profiling_info
                if each.real_time.total_seconds() > 0
            ]
        finally:
            self._requests.put(request)

    def metadata_map(self) -> Mapping[str, str]:
        """The file's `metadata_props`."""
        return self._metadata

    def close(self) -> None:
        """Nothing to do: the model goes with its last reference, after the calls that still run."""


def open_file(path: Path, settings: Settings) -> tuple[OpenVinoBackend, Metadata]:
    """The file on the plugin of the device, by default the CPU's, and its metadata. Raises as
    `OpenVinoBackend` and its seal do.
    """
    if settings.verify:
        check_file(path)
    device = "cpu" if settings.device is None else settings.device
    backend = OpenVinoBackend(path, device, settings.threads, hint=settings.hint)
    return backend, metadata_of(backend.metadata_map(), path)


def _devices(openvino: Any) -> list[str]:
    with signal_stack.kept():
        found: list[str] = openvino.Core().available_devices
        return found


ENGINE = Engine(
    name="openvino",
    title="OpenVINO",
    file="an ONNX file",
    suffixes=(".onnx",),
    reads=("threads", "hint"),
    open=open_file,
    libraries=(
        Library(
            "openvino",
            "OpenVINO",
            'pip install "large2small[openvino]"',
            details=_devices,
        ),
    ),
)


def _check(path: Path, device: str, threads: int | None, hint: str) -> None:
    if not path.is_file():
        raise no_artifact(path)
    if hint not in HINTS:
        raise UsageError(f"hint {hint!r}: expected {' or '.join(HINTS)}")
    if threads is not None and threads < 1:
        raise UsageError(f"threads {threads}: expected 1 or more")
    if threads is not None and device.lower() != "cpu":
        raise UsageError(
            f"threads {threads} on device {device}: only the CPU has threads to choose. Leave threads out"
        )


def _plugin(device: str, available: list[str]) -> str:
    """OpenVINO's name of the device; cuda is not one of them."""
    kind, _, index = device.lower().partition(":")
    if kind not in ("cpu", "gpu", "npu") or (index and not (kind == "gpu" and is_index(index))):
        raise UsageError(f"device {device!r}: OpenVINO takes cpu, gpu, gpu:INDEX or npu")
    name = f"{kind.upper()}.{index}" if index else kind.upper()
    # one GPU is listed as GPU, several as GPU.0, GPU.1; "GPU" means the first of them either way
    if name not in available and name.removesuffix(".0") not in {
        each.removesuffix(".0") for each in available
    }:
        raise MissingError(
            f"device {device!r}: OpenVINO finds {', '.join(available) or 'none'} here. Give --device cpu, or "
            "install the device's driver"
        )
    return name


def _settings(threads: int | None, hint: str, profile: bool = False) -> dict[str, Any]:
    # f32: the plugin would compute fp32 layers in bf16 where the CPU has it, which is not the network that
    # was verified. Int8 layers are int8 all the same, as they are in the graph.
    settings: dict[str, Any] = {"PERFORMANCE_HINT": hint.upper(), "INFERENCE_PRECISION_HINT": "f32"}
    if profile:
        settings["PERF_COUNT"] = True
    return settings if threads is None else settings | {"INFERENCE_NUM_THREADS": threads}


def _read(core: Any, path: Path) -> Any:
    try:
        return core.read_model(str(path))
    except RuntimeError as error:
        raise ArtifactError(f"{path}: OpenVINO cannot open it ({_reason(error)})") from error


def _compile(core: Any, model: Any, plugin: str, settings: dict[str, Any], path: Path) -> Any:
    try:
        return core.compile_model(model, plugin, settings)
    except RuntimeError as error:
        raise ArtifactError(
            f"{path}: OpenVINO's {plugin} cannot run it in f32 ({_reason(error)}). Choose another --device,"
            " or --engine-backend onnxruntime"
        ) from error


def _reason(error: RuntimeError) -> str:
    return " ".join(str(error).split())[:300]


def _precision(compiled: Any, plugin: str, path: Path) -> str:
    """f32, as the compiled model reports it; raises MissingError when the plugin chose another one."""
    precision: str = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if precision != "f32":
        raise MissingError(
            f"{path}: OpenVINO's {plugin} computes in {precision}, not in f32. Choose another --device"
        )
    return precision


def _input_shape(model: Any, path: Path) -> list[int | None]:
    inputs, outputs = ([_port(each) for each in ports] for ports in (model.inputs, model.outputs))
    signature.require_classifier(str(path), inputs, outputs)
    return list(inputs[0].shape or ())


def _port(value: Any) -> signature.Port:
    """An input or output of a model, whose dtypes OpenVINO calls f32 and i64."""
    sizes = value.partial_shape
    kind = value.element_type.get_type_name()
    whole = {"f": "float", "i": "int", "u": "uint"}.get(kind[0], "") if kind[1:].isdigit() else ""
    kind = whole + kind[1:] if whole else kind
    shape = None if sizes.rank.is_dynamic else [None if s.is_dynamic else s.get_length() for s in sizes]
    names = value.get_names()
    return signature.Port(min(names) if names else "without a name", kind, shape)
