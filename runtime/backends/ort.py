"""ONNX Runtime: run an .onnx file on the provider asked for, and on no other.

In:  path, device, provider, thread count.
Out: `OrtBackend.run((N, C, H, W) float32) -> (N, K) float32`; input and output names and shapes; the file's metadata map.
Elsewhere: what the numbers mean (runtime.predictor).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..errors import ArtifactError, MissingError, UsageError

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
"""Our word -> ONNX Runtime's; the last two run on the device cuda."""


class OrtBackend:
    """An open ONNX Runtime session. `run` may be called from many threads at once."""

    engine = "onnxruntime"

    def __init__(self, path: str | Path, device: str = "cpu", threads: int | None = None, *, provider: str | None = None,
                 integer_kernels: bool = True) -> None:
        """provider: cpu, cuda or tensorrt, by default the device's. integer_kernels: let the engine fuse Q/DQ with the layers
        between; without, it computes them as the graph says.
        """
        try:
            import onnxruntime as ort
        except ImportError:
            extra = "gpu" if device.startswith("cuda") else "cpu"
            raise MissingError(f'{path} needs ONNX Runtime. Install it: pip install "large2small[{extra}]"') from None
        self.path, self.device = Path(path), device
        self.provider, options = _provider(device, provider, ort.get_available_providers())
        self.session = _open(ort, self.path, self.provider, options, threads, integer_kernels)
        active = self.session.get_providers()[0]
        if active != self.provider:
            raise MissingError(f"{path}: asked for {self.provider}, ONNX Runtime uses {active}. "
                               "Its libraries did not load here; choose another --device")
        self.session.disable_fallback()
        self.version = ort.__version__
        self.threads = threads
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
            found = ", ".join(f"{i.name}: {i.type} {i.shape}" for i in inputs)
            raise ArtifactError(f"{path}: inputs are {found}; expected one float input (N, C, H, W)")
        self.input_name = inputs[0].name
        self.input_shape = [size if isinstance(size, int) else None for size in inputs[0].shape]
        self.output_name = outputs[0].name
        self._output_names = [self.output_name]

    def run(self, batch: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """(N, C, H, W) float32 -> first output, (N, K) float32; copied to `out` when given."""
        logits = self.session.run(self._output_names, {self.input_name: batch})[0]
        if out is None:
            return logits
        require_out(out, logits.shape)
        out[...] = logits
        return out

    def metadata_map(self) -> Mapping[str, str]:
        """The file's `metadata_props`."""
        return self.session.get_modelmeta().custom_metadata_map


def require_out(out: object, shape: tuple[int, ...]) -> None:
    """Raise UsageError unless `out` is a float32 array of this shape."""
    if not isinstance(out, np.ndarray) or out.dtype != np.float32 or out.shape != shape or not out.flags.writeable:
        given = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else f"a {type(out).__name__}"
        raise UsageError(f"out is {given}; expected a writeable float32 array {shape}")


def _provider(device: str, provider: str | None, available: list[str]) -> tuple[str, dict[str, str]]:
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise UsageError(f"device {device!r}: expected cpu, cuda or cuda:INDEX")
    chosen = provider or kind
    if chosen not in PROVIDERS:
        raise UsageError(f"provider {provider!r}: expected {', '.join(PROVIDERS)}")
    if (chosen == "cpu") != (kind == "cpu"):
        fitting = 'cpu' if chosen == 'cpu' else 'cuda'
        raise UsageError(f"provider {chosen} does not run on device {device}. Give --device {fitting}")
    name = PROVIDERS[chosen]
    if name not in available:
        raise MissingError(f"device {device!r} needs {name}; this ONNX Runtime has {', '.join(available)}. "
                           'Install it: pip install "large2small[gpu]" (it replaces the cpu package)')
    return name, {"device_id": index} if index else {}


def _open(ort, path: Path, provider: str, options: dict[str, str], threads: int | None, integer_kernels: bool):
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    if threads is not None and threads < 1:
        raise UsageError(f"threads {threads}: expected 1 or more")
    settings = ort.SessionOptions()
    settings.log_severity_level = 3  # errors only: what matters is raised
    # Between calls the engine's threads sleep instead of spinning: an application's other work, and other artifacts open
    # beside this one, keep their cores (four artifacts in turn on two cores: p99 0.9 to 3.6 ms instead of 8.6 to 13.5 ms).
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    if provider != PROVIDERS["cpu"]:  # a node the provider cannot take is an error, not a silent trip to the CPU
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if not integer_kernels:
        settings.add_session_config_entry("session.disable_quant_qdq", "1")
    settings.intra_op_num_threads = threads or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else threads or 0
    try:
        return ort.InferenceSession(str(path), settings, providers=[(provider, options)])
    except Exception as error:  # onnxruntime's exception classes share no public base
        reason = " ".join(str(error).split())
        raise ArtifactError(f"{path}: ONNX Runtime {ort.__version__} cannot open it ({reason[:300]})") from error
