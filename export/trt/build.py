"""An ONNX file becomes a TensorRT plan: one strongly typed sequence for TensorRT 10.3 to 11.4 and TensorRT
for RTX.

In:  an ONNX file whose precision is in the graph (Q/DQ, fp16), `Settings`.
Out: `Built`: the plan's bytes as TensorRT gave them, what the network takes and gives, its layers where the
log tells them.
Elsewhere: in a process of its own (export.trt.process), what the layers mean (export.trt.layers),
     running it (runtime.backends.tensorrt.backend).

The sequence is the one of NVIDIA's documentation (docs.nvidia.com/deeplearning/tensorrt, Python API).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from runtime.backends.tensorrt import messages
from runtime.errors import ArtifactError, MissingError, UsageError

SHOWN = 3
"""Errors of the parser that a message names."""

OPSETS = (((10, 9), 20), ((10, 13), 22), ((11, 0), 24))
"""(TensorRT before this version, the highest ONNX operator set its parser reads); later ones read LAST_OPSET
(docs.nvidia.com/deeplearning/tensorrt/latest/reference/onnx-opset-guide.html)."""

LAST_OPSET = 25

HARDWARE = {"none": "NONE", "ampere_plus": "AMPERE_PLUS", "same_cc": "SAME_COMPUTE_CAPABILITY"}
"""Our word -> TensorRT's, for GPUs other than the one that builds."""


class Profile(NamedTuple):
    """Batch sizes of one optimization profile: the smallest, the one tuned for, the largest."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True)
class Settings:
    """How to build."""

    flavor: str = "tensorrt"
    """tensorrt, or rtx for TensorRT for RTX, whose builder needs no GPU."""
    profiles: tuple[Profile, ...] = (Profile(1, 1, 1),)
    """One of equal sizes makes a static plan."""
    workspace: int | None = None
    """Bytes of scratch memory a layer may use; all of the device when None."""
    opt_level: int = 3
    """0 (fastest build) to 5."""
    hardware_compat: str = "none"
    version_compat: bool = False
    strip_weights: bool = False
    sparsity: bool = False
    tf32: bool = True
    """Let fp32 layers multiply in TF32, TensorRT's default."""

    @property
    def dynamic(self) -> bool:
        return len(self.profiles) > 1 or self.profiles[0].min != self.profiles[0].max


class Built(NamedTuple):
    """What the builder gave."""

    plan: bytes
    version: str
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    timing_cache: bytes | None
    cache_accepted: bool | None
    """False: the cache was of another machine or damaged and was left out; None: none was given."""
    layer_dump: str | None
    """The layers as TensorRT for RTX logs them, without a GPU."""
    warnings: list[str]


@dataclass
class Watch:
    """Told while the builder works, from whichever thread it uses; `canceled` is asked between steps."""

    start: Callable[[str, str | None, int], None] = lambda phase, parent, steps: None
    step: Callable[[str, int], None] = lambda phase, step: None
    finish: Callable[[str], None] = lambda phase: None
    canceled: Callable[[], bool] = lambda: False


def check_profiles(profiles: Sequence[Profile]) -> None:
    """Raise UsageError for sizes the builder would refuse without saying why, or only much later."""
    for profile in profiles:
        if not 1 <= profile.min <= profile.opt <= profile.max:
            raise UsageError(
                f"batch sizes {','.join(map(str, profile))}: expected 1 <= MIN <= OPT <= MAX, such as 1,8,32"
            )
    if not profiles:
        raise UsageError("no batch size given: expected at least one profile MIN,OPT,MAX")


def check_opset(opset: int, version: str) -> None:
    """Raise ArtifactError when this TensorRT's parser does not read the operator set."""
    found = tuple(int(part) for part in re.findall(r"\d{1,9}", version)[:2])
    highest = next((limit for before, limit in OPSETS if found < before), LAST_OPSET)
    if opset > highest:
        raise ArtifactError(
            f"the graph uses ONNX opset {opset}; TensorRT {version} reads up to {highest}. Give --opset 19"
        )


def build(
    trt: ModuleType, onnx: Path, settings: Settings, cache: bytes | None = None, watch: Watch | None = None
) -> Built:
    """Parse, configure, build. trt: the module of `settings.flavor`; cache: an older timing cache of this
    machine.

    Raises ArtifactError with the parser's or builder's own reason, MissingError when no builder can be made
    here, KeyboardInterrupt when the watch says canceled.
    """
    check_profiles(settings.profiles)
    with messages.logged() as log:
        return _build(trt, onnx, settings, cache, watch or Watch(), log)


def _build(
    trt: ModuleType, onnx: Path, settings: Settings, cache: bytes | None, watch: Watch, log: messages.Log
) -> Built:
    logger = messages.logger(trt)
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # how the bindings say that the library's factory returned null
        raise MissingError(
            f"TensorRT {trt.__version__} cannot make a builder here ({log.reason()}). It needs an NVIDIA GPU"
            " and its driver; --flavor rtx builds without"
        ) from error
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        raise ArtifactError(
            f"{onnx.name}: TensorRT {trt.__version__} cannot parse it:"
            f" {_parser_errors(parser) or log.reason()}"
        )
    config = _configure(trt, builder, settings)
    _set_batch(trt, builder, network, config, settings, onnx)
    timing, accepted = _timing_cache(trt, config, cache, settings)
    monitor = _monitor(trt, watch)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if watch.canceled():
        raise KeyboardInterrupt
    if plan is None:
        raise ArtifactError(
            f"{onnx.name}: TensorRT {trt.__version__} cannot build it: {_advice(log.reason())}"
        )
    return Built(
        bytes(plan),
        trt.__version__,
        _tensors(network, "input"),
        _tensors(network, "output"),
        bytes(timing.serialize()) if timing is not None else None,
        accepted,
        log.layer_dump,
        log.of("WARNING"),
    )


def _configure(trt: ModuleType, builder: Any, settings: Settings) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the inspector knows names only
    config.builder_optimization_level = settings.opt_level
    if settings.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace)
    if not settings.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if settings.hardware_compat != "none":
        name = HARDWARE[settings.hardware_compat]
        if not hasattr(trt.HardwareCompatibilityLevel, name):
            raise UsageError(
                f"--hardware-compat {settings.hardware_compat}: TensorRT {trt.__version__} does not have it "
                "(10.9 is the first). Give ampere_plus or none"
            )
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, name)
    if settings.version_compat:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if settings.strip_weights:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
    if settings.sparsity:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    return config


def _set_batch(
    trt: ModuleType, builder: Any, network: Any, config: Any, settings: Settings, onnx: Path
) -> None:
    """A static plan gets its batch size written into the network, so that no shape is computed; a dynamic one
    gets profiles.
    """
    if network.num_inputs != 1:
        raise ArtifactError(f"{onnx.name}: has {network.num_inputs} inputs; expected one (N, C, H, W)")
    images = network.get_input(0)
    batch, *sizes = tuple(images.shape)
    if len(sizes) != 3 or any(size < 1 for size in sizes):
        raise ArtifactError(
            f"{onnx.name}: input {images.name} is {tuple(images.shape)}; expected (N, C, H, W) with only N"
            " open. Export it with distill export onnx --img-size SIZE"
        )
    if batch != -1:
        if settings.profiles != (Profile(batch, batch, batch),):
            raise ArtifactError(
                f"{onnx.name}: its batch size is fixed at {batch}. Give --batch {batch}, or a checkpoint"
            )
        return
    if not settings.dynamic:
        images.shape = (settings.profiles[0].opt, *sizes)
        return
    for sizes_of in settings.profiles:
        profile = builder.create_optimization_profile()
        profile.set_shape(images.name, *((size, *sizes) for size in sizes_of))
        if config.add_optimization_profile(profile) < 0:
            raise ArtifactError(
                f"{onnx.name}: TensorRT {trt.__version__} refuses the batch sizes"
                f" {','.join(map(str, sizes_of))} for input {images.name}"
            )


def _timing_cache(
    trt: ModuleType, config: Any, cache: bytes | None, settings: Settings
) -> tuple[Any, bool | None]:
    """(the cache in use, whether the old one was accepted); TensorRT for RTX has none, it times on the user's
    GPU.
    """
    if settings.flavor == "rtx":
        return None, None
    timing = config.create_timing_cache(cache or b"")
    accepted = bool(timing is not None and config.set_timing_cache(timing, False))
    if not accepted:  # garbage, or of another GPU or version
        timing = config.create_timing_cache(b"")
        config.set_timing_cache(timing, False)
    return timing, accepted if cache else None


def _tensors(network: Any, kind: str) -> list[dict[str, Any]]:
    tensors = [getattr(network, f"get_{kind}")(i) for i in range(getattr(network, f"num_{kind}s"))]
    return [{"name": t.name, "dtype": _dtype(t.dtype), "shape": list(t.shape)} for t in tensors]


def _dtype(dtype: Any) -> str:
    """numpy's word for TensorRT's."""
    return {
        "FLOAT": "float32",
        "HALF": "float16",
        "INT8": "int8",
        "INT32": "int32",
        "INT64": "int64",
        "BOOL": "bool",
    }.get(dtype.name, dtype.name.lower())


def _parser_errors(parser: Any) -> str:
    """Node, operator and reason of every error, the first few in words."""
    lines = []
    for error in map(parser.get_error, range(parser.num_errors)):
        node, operator = error.node_name() or error.node(), error.node_operator() or "unknown operator"
        lines.append(
            (f"node {node} ({operator}): " if error.node() >= 0 else "") + " ".join(error.desc().split())
        )
    more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return "; ".join(lines[:SHOWN]) + more


def _advice(reason: str) -> str:
    """The reason, and what helps against it where that is known."""
    found = re.search(r"Could not find any implementation for node ([^\s{]+)", reason)
    if found:
        return f"{reason}. Leave that layer float: --exclude '{found[1].rstrip('.')}'"
    if re.search(r"out of memory|OutOfMemory|insufficient memory", reason, re.IGNORECASE):
        return f"{reason}. Give a smaller --workspace, --opt-level or batch"
    return reason


def _monitor(trt: ModuleType, watch: Watch) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined, misc]
        """TensorRT's callback; anything but True from step_complete cancels the build."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            watch.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            watch.step(phase_name, step)
            return not watch.canceled()

        def phase_finish(self, phase_name: str) -> None:
            watch.finish(phase_name)

    return Monitor()
