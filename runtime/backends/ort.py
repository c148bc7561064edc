"""ONNX Runtime: run an .onnx file on the provider asked for, and on no other.

In:  path, device, provider, thread count.
Out: `OrtBackend.run((N, C, H, W) float32) -> (N, K) float32`; input and output names and shapes; the file's
metadata map.
Elsewhere: what the numbers mean (runtime.predictor).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..artifact import Metadata, check_file, read_map
from ..errors import ArtifactError, MissingError, UsageError
from ..files import no_artifact, sha256
from . import Engine, Library, Settings, is_index, known_batch_sizes, metadata_of, signature
from .onnx_file import metadata_props, require_whole

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""Our word -> ONNX Runtime's; the last two run on the device cuda."""

NO_CPU = "session.disable_cpu_ep_fallback"
"""A layer that the provider cannot take is then an error, not a silent trip to the CPU."""


class OrtBackend:
    """An open ONNX Runtime session. `run` may be called from many threads at once."""

    engine = "onnxruntime"

    def __init__(
        self,
        path: str | Path,
        device: str | None = None,
        threads: int | None = None,
        *,
        provider: str | None = None,
        integer_kernels: bool = True,
        profile: Path | None = None,
    ) -> None:
        """device: cpu, cuda or cuda:INDEX, by default the provider's. provider: cpu, cuda or tensorrt, by
        default the device's; with neither, cpu. integer_kernels: let the engine fuse Q/DQ with the layers
        between; without, it computes them as the graph says. profile: start of the name of a file in which
        the engine keeps the time of every layer.

        Raises UsageError when device and provider contradict each other, MissingError when the provider is
        not here or does not load, ArtifactError when ONNX Runtime cannot open the file or the provider cannot
        take all of it.
        """
        try:
            from .telemetry import onnxruntime as ort
        except ImportError as error:
            extra = "cpu" if (provider or device or "cpu").startswith("cpu") else "gpu"
            raise MissingError(
                f'{path} needs ONNX Runtime. Install it: pip install "large2small[{extra}]" '
                f"({' '.join(str(error).split())})"
            ) from error
        self.path = Path(path)
        self.device = device if device is not None else "cpu" if provider in (None, "cpu") else "cuda"
        self.provider, options = _provider(self.device, provider, ort.get_available_providers())
        if not self.path.is_file():
            raise no_artifact(path)
        require_whole(self.path)
        if self.provider == PROVIDERS["tensorrt"]:
            options |= _tensorrt_options(self.path)
        self.session = _open(ort, self.path, self.provider, options, threads, integer_kernels, profile)
        if self.session.get_providers()[0] != self.provider:
            raise _not_active(self.path, self.provider, self.session)
        self.session.disable_fallback()
        self.version = str(ort.__version__)
        self.threads = threads
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        signature.require_classifier(str(path), [_port(each) for each in inputs], [_port(o) for o in outputs])
        self.input_name = inputs[0].name
        self.input_shape: list[int | None] = [
            size if isinstance(size, int) else None for size in inputs[0].shape
        ]
        self.batch_sizes = known_batch_sizes(self.input_shape)
        self.output_name = outputs[0].name
        self._output_names = [self.output_name]

    def run(self, batch: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """(N, C, H, W) float32 -> first output, (N, K) float32; copied to `out` when given."""
        logits: np.ndarray = self.session.run(self._output_names, {self.input_name: batch})[0]
        if out is None:
            return logits
        require_out(out, logits.shape)
        out[...] = logits
        return out

    def metadata_map(self) -> Mapping[str, str]:
        """The file's `metadata_props`, by our own reader: ONNX Runtime's raises at text that is not UTF-8."""
        return metadata_props(self.path)

    def close(self) -> None:
        """Nothing to do: the session goes with its last reference, after the calls that still run."""


def open_file(path: Path, settings: Settings) -> tuple[OrtBackend, Metadata]:
    """The file on the provider asked for, and its metadata. Raises as `OrtBackend` and its seal do."""
    if settings.verify:
        check_file(path)
    device, threads, provider = settings.device, settings.threads, settings.provider
    backend = OrtBackend(path, device, threads, provider=provider)
    metadata = metadata_of(backend.metadata_map(), path)
    if metadata.precision == "int8+fp16":
        # ONNX Runtime 1.32 makes int32 biases with fp16 scales, which overflow
        backend = OrtBackend(path, device, threads, provider=provider, integer_kernels=False)
    return backend, metadata


ENGINE = Engine(
    name="onnxruntime",
    title="ONNX Runtime",
    file="an ONNX file",
    suffixes=(".onnx",),
    reads=("threads", "provider"),
    open=open_file,
    preferred=True,
    libraries=(
        Library(
            "onnxruntime",
            "ONNX Runtime",
            'pip install "large2small[cpu]"',
            details=lambda module: module.get_available_providers(),
        ),
    ),
)


def _port(value: Any) -> signature.Port:
    """An input or output of a session. Its types are called tensor(float), and an unknown shape is []."""
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    sizes = [size if isinstance(size, int) else None for size in value.shape]
    return signature.Port(
        value.name, {"float": "float32", "double": "float64"}.get(kind, kind), sizes or None
    )


def require_out(out: object, shape: tuple[int, ...]) -> None:
    """Raise UsageError unless `out` is a writeable float32 array of this shape."""
    if (
        not isinstance(out, np.ndarray)
        or out.dtype != np.float32
        or out.shape != shape
        or not out.flags.writeable
    ):
        given = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else f"a {type(out).__name__}"
        raise UsageError(f"out is {given}; expected a writeable float32 array {shape}")


def _provider(device: str, provider: str | None, available: list[str]) -> tuple[str, dict[str, Any]]:
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not (kind == "cuda" and is_index(index))):
        raise UsageError(f"device {device!r}: expected cpu, cuda or cuda:INDEX")
    chosen = kind if provider is None else provider
    if chosen not in PROVIDERS:
        raise UsageError(f"provider {provider!r}: expected {', '.join(PROVIDERS)}")
    if (chosen == "cpu") != (kind == "cpu"):
        fitting = "cpu" if chosen == "cpu" else "cuda"
        raise UsageError(f"provider {chosen} does not run on device {device}. Give --device {fitting}")
    name = PROVIDERS[chosen]
    if name not in available:
        raise MissingError(
            f"provider {chosen} on device {device} needs {name}; this ONNX Runtime has"
            f' {", ".join(available)}. Install it: pip install "large2small[gpu]" (it replaces the cpu'
            " package)"
        )
    return name, {"device_id": index} if index else {}


def _tensorrt_options(path: Path) -> dict[str, Any]:
    """The precision that the file says, and engines kept for the next time in a folder of this very file.

    TensorRT 10 takes Q/DQ and half only where their flags are given; Q/DQ needs no calibration table. The
    engine's file name does not tell two files of one graph apart, so each has its folder (ONNX Runtime's
    TensorRT page, "TensorRT EP Caches").
    """
    precision = read_map(metadata_props(path), str(path)).precision
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = caches / "large2small" / "onnxruntime-tensorrt" / sha256(path)[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{folder}: engines cannot be kept there ({error.strerror}). Set XDG_CACHE_HOME to a folder that"
            " can be written"
        ) from error
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
        "trt_int8_enable": str(int("int8" in precision)),
        "trt_fp16_enable": str(int("fp16" in precision)),
    }


def _open(
    ort: Any,
    path: Path,
    provider: str,
    options: dict[str, Any],
    threads: int | None,
    integer_kernels: bool,
    profile: Path | None = None,
) -> Any:
    settings = _session_options(ort, threads, integer_kernels)
    if profile:
        settings.enable_profiling, settings.profile_file_prefix = True, str(profile)
    if provider != PROVIDERS["cpu"]:
        settings.add_session_config_entry(NO_CPU, "1")
    try:
        return ort.InferenceSession(str(path), settings, providers=[(provider, options)])
    except Exception as error:  # onnxruntime's exception classes share no public base
        reason = " ".join(str(error).split())
        if provider != PROVIDERS["cpu"] and (without := _without_it(ort, path, provider, options)):
            raise without from error
        raise ArtifactError(
            f"{path}: ONNX Runtime {ort.__version__} cannot open it with {provider} ({reason[:300]})"
        ) from error


def _session_options(ort: Any, threads: int | None, integer_kernels: bool) -> Any:
    if threads is not None and threads < 1:
        raise UsageError(f"threads {threads}: expected 1 or more")
    settings = ort.SessionOptions()
    settings.log_severity_level = 3  # errors only: what matters is raised
    # Between calls the engine's threads sleep instead of spinning: an application's other work, and other
    # artifacts open beside this one, keep their cores (four artifacts in turn on two cores: p99 0.9 to 3.6 ms
    # instead of 8.6 to 13.5 ms).
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    if not integer_kernels:
        settings.add_session_config_entry("session.disable_quant_qdq", "1")
    settings.intra_op_num_threads = (
        threads or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else threads or 0
    )
    return settings


def _without_it(ort: Any, path: Path, provider: str, options: dict[str, Any]) -> MissingError | None:
    """The error to raise when the provider's libraries do not load here; None when they do, and the file is
    at fault.

    Both fail alike where the CPU is forbidden; where it is allowed, ONNX Runtime says which provider it came
    down to.
    """
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    try:
        session = ort.InferenceSession(str(path), settings, providers=[(provider, options)])
    except Exception:
        return None
    return None if session.get_providers()[0] == provider else _not_active(path, provider, session)


def _not_active(path: Path, provider: str, session: Any) -> MissingError:
    return MissingError(
        f"{path}: asked for {provider}, ONNX Runtime uses {session.get_providers()[0]}. Its libraries did not"
        " load here (CUDA, cuDNN or TensorRT of the right version, see distill env); choose another --device"
    )
