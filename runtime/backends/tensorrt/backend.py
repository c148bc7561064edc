"""TensorRT, and TensorRT for RTX: run a .plan on the GPU it was built for, in any number of threads.

In:  a plan with its metadata beside it, a GPU, how many calls may run at once.
Out: `TrtBackend.run((N, C, H, W) float32) -> (N, K) float32`, from host or GPU to host or GPU; input shape;
the metadata.
Elsewhere: whether the plan fits this machine (runtime.backends.tensorrt.plan), buffers and launches
(runtime.backends.tensorrt.slots).

Nothing of TensorRT is touched before a driver and a GPU were found: without one its Runtime can crash the
process.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ... import files
from ...artifact import Metadata
from ...errors import ArtifactError, MissingError, UsageError
from ...records import FileHash
from .. import BatchSizes
from ..ort import require_out
from . import cuda, messages, plan
from .cuda import Device, DeviceArray
from .slots import LoadedEngine, Pool, Sizes, Slot, forget_variables


class TrtBackend:
    """An open plan. `run` may be called from many threads; `contexts` of them run at once, the
    others wait.
    """

    def __init__(
        self,
        path: str | Path,
        device: str = "cuda",
        *,
        contexts: int = 1,
        cuda_graph: bool = False,
        verify: bool = True,
    ) -> None:
        """cuda_graph: replay captured launches, which needs cuda-python. verify: hash the plan first;
        without, one of another origin opens too. Raises ArtifactError, MissingError and UsageError as
        runtime.backends.tensorrt.plan, runtime.backends.tensorrt.cuda and TensorRT say.
        """
        if contexts < 1:
            raise UsageError(f"contexts {contexts}: expected 1 or more")
        self.path, self.device = Path(path), device
        self.threads: int | None = None
        index = plan.gpu_index(device)
        self.metadata = plan.preflight(self.path, verify)
        trt = plan.require_version(self.path, self.metadata)
        self.engine = "tensorrt_rtx" if trt.__name__ == plan.MODULES["rtx"] else "tensorrt"
        self.version = str(trt.__version__)
        try:
            gpu = cuda.open_device(index, "cuda-python" if cuda_graph else None)
        except MissingError as error:
            raise MissingError(
                f"{self.path}: a plan runs on an NVIDIA GPU: {error}. Its ONNX file runs on a CPU too"
            ) from error
        self._held = held = _Held(gpu)
        self._let_go = weakref.finalize(
            self, held.close
        )  # also at the interpreter's exit, while the driver is still there
        try:
            plan.require_gpu(self.path, self.metadata, gpu)
            self._image, self._classes, self._profiles = held.open(
                self.path, trt, self.metadata, contexts, cuda_graph
            )
        except BaseException as error:
            with gpu.active():
                forget_variables(error)
            self.close()
            raise
        self.provider = (
            f"{plan.PRODUCTS[plan.FLAVORS[trt.__name__]]} on {gpu.name} (compute capability "
            f"{'.'.join(map(str, gpu.compute_capability))}, driver {gpu.driver_version}, {gpu.library}"
            f"{', CUDA graphs' if cuda_graph else ''})"
        )
        sizes = {size for each in self._profiles for size in (each.min, each.max)}
        self.batch_sizes: BatchSizes = [(each.min, each.max) for each in self._profiles]
        self.input_shape: list[int | None] = [sizes.pop() if len(sizes) == 1 else None, *self._image]

    def run(self, batch: np.ndarray, out: Any = None) -> Any:
        """(N, C, H, W) float32 -> (N, K) float32. out: a numpy array, or an array on this GPU; a numpy array
        is made when None.

        Raises UsageError for a batch size that the plan was not built for.
        """
        return self._run(batch, out)

    def run_on_device(self, batch: Any, out: Any = None) -> Any:
        """Like `run`, for a batch that is on this GPU (`__cuda_array_interface__` or `__dlpack__`) and is
        read there.

        What its producer still has in its stream is waited for; the logits are complete when this returns.
        """
        source, image = self._here(batch, "batch"), self._image
        if source.dtype != np.float32 or source.shape[1:] != image or len(source.shape) != 4:
            sizes = ", ".join(map(str, image))
            raise UsageError(
                f"batch is {source.dtype} {source.shape} on the GPU; expected float32 (N, {sizes})"
            )
        return self._run(source, out)

    def close(self) -> None:
        """Free everything on the GPU once the running calls are done; calling again does nothing."""
        self._let_go()

    def _run(self, source: np.ndarray | DeviceArray, out: Any) -> Any:
        count = source.shape[0]
        shape = (count, self._classes)
        sizes = self._profile(count)
        if out is None:
            out = np.empty(shape, np.float32)
        target = self._target(out, shape)
        with self._held.pool.lend() as slot, self._held.device.active():
            slot.run(sizes, source, target)
        return out

    def _target(self, out: Any, shape: tuple[int, int]) -> np.ndarray | DeviceArray:
        """`out` as somewhere to write. Raises UsageError unless it is float32 of this shape, on the host or
        on this GPU.
        """
        if isinstance(out, np.ndarray):
            require_out(out, shape)
            return out
        target = self._here(out, "out")
        if target.dtype != np.float32 or target.shape != shape:
            raise UsageError(f"out is {target.dtype} {target.shape} on the GPU; expected float32 {shape}")
        return target

    def _here(self, array: Any, name: str) -> DeviceArray:
        found, here = cuda.device_array(array), self._held.device.index
        if found.gpu not in (None, here):
            raise UsageError(
                f"{name} is on cuda:{found.gpu}; the plan is open on cuda:{here}. Copy it there, or open "
                f'the plan with device="cuda:{found.gpu}"'
            )
        return found

    def _profile(self, count: int) -> Sizes:
        """The profile with the smallest largest batch that takes `count` images."""
        for sizes in self._profiles:
            if sizes.min <= count <= sizes.max:
                return sizes
        takes = " or ".join(
            f"{size.min}" if size.min == size.max else f"{size.min} to {size.max}" for size in self._profiles
        )
        raise UsageError(
            f"{self.path}: takes batches of {takes} images, given {count}. Split or fill the batch, or build"
            " for it: distill export trt --dynamic MIN,OPT,MAX"
        )


class _Held:
    """All that must be freed, without a reference to the backend, which may be gone when it is."""

    def __init__(self, device: Device) -> None:
        self.device, self.pool = device, Pool(Path(), [])
        self.runtime: Any = None
        self.opened: LoadedEngine | None = None

    def open(
        self, path: Path, trt: ModuleType, meta: Metadata, contexts: int, cuda_graph: bool
    ) -> tuple[tuple[int, int, int], int, list[Sizes]]:
        """(image (C, H, W), classes, profiles). Raises what TensorRT says; `close` is due then too."""
        with self.device.active(), contextlib.ExitStack() as undo:
            self.runtime = trt.Runtime(messages.logger(trt))
            engine = _deserialize(path, trt, self.runtime, meta, self.device)
            _refit(path, trt, engine, meta)
            opened, profiles = _checked(path, trt, engine, self.device)
            self.opened = opened
            slots: list[Slot] = []
            for _ in range(contexts):
                slots.append(Slot(opened, cuda_graph))
                undo.callback(slots[-1].close)
            slots[0].prepare(profiles[0])  # what it cannot do, or has no memory for, is said now
            undo.pop_all()
        self.pool = Pool(path, slots)
        return opened.image, opened.classes, profiles

    def close(self) -> None:
        """Wait for running calls; free contexts and graphs, buffers, streams, engine, runtime, device, in
        this order.
        """
        slots = self.pool.close()
        with contextlib.ExitStack() as last_first:  # goes on when one of them fails
            last_first.callback(self.device.close)
            last_first.enter_context(self.device.active())
            last_first.callback(setattr, self, "runtime", None)
            last_first.callback(setattr, self, "opened", None)
            while slots:
                last_first.callback(slots.pop().close)


def _deserialize(path: Path, trt: ModuleType, runtime: Any, meta: Metadata, device: Device) -> Any:
    if meta.engine and meta.engine.flags.version_compat:
        runtime.engine_host_code_allowed = (
            True  # such plans bring their own runtime; the hash says that it is ours
        )
    before = messages.RECENT.count
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        flavor = plan.FLAVORS[trt.__name__]
        raise ArtifactError(
            f"{path}: TensorRT {trt.__version__} cannot open it on {device.name}: "
            f"{messages.explain(messages.RECENT.reason(before))}.{plan.unsupported_gpu(flavor, device)} "
            f"{plan.rebuild(path)}"
        )
    return engine


def _refit(path: Path, trt: ModuleType, engine: Any, meta: Metadata) -> None:
    """Give a plan that was built without its weights those of the ONNX file beside it."""
    if not meta.engine or not meta.engine.flags.strip_weights:
        return
    source = meta.engine.onnx or FileHash()
    onnx = path.with_name(Path(source.file or "").name or "the ONNX file")
    if not onnx.is_file():
        raise ArtifactError(
            f"{path}: was built without its weights, and {onnx.name}, which has them, is not beside it. "
            "Copy both files"
        )
    if files.sha256(onnx) != source.sha256:
        raise ArtifactError(
            f"{onnx}: not the file {path.name} was built from (SHA-256 differs), so its weights do not fit. "
            "Copy both files again"
        )
    before, logger = messages.RECENT.count, messages.logger(trt)
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    read = parser.refit_from_file(str(onnx))
    missing = refitter.get_missing_weights()
    if not read or missing or not refitter.refit_cuda_engine():
        errors = [" ".join(parser.get_error(i).desc().split()) for i in range(parser.num_errors)]
        reason = (
            f"no weights for {', '.join(missing[:4])}"
            if missing
            else "; ".join(errors) or messages.RECENT.reason(before)
        )
        raise ArtifactError(
            f"{path}: the weights of {onnx.name} cannot be put into it: {reason}. {plan.rebuild(path)}"
        )


def _checked(path: Path, trt: ModuleType, engine: Any, device: Device) -> tuple[LoadedEngine, list[Sizes]]:
    """The engine with its names and sizes, profiles by size. Raises ArtifactError for one that is not an
    image classifier.
    """
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    outputs = [name for name in names if name not in inputs]
    found = ", ".join(
        f"{name} {_dtype(trt, engine, name)} {tuple(engine.get_tensor_shape(name))}" for name in names
    )
    if len(inputs) != 1 or len(outputs) != 1:
        raise ArtifactError(
            f"{path}: has {found}; expected one input (N, C, H, W) and one output (N, classes)"
        )
    image, logits = (tuple(engine.get_tensor_shape(name)) for name in (inputs[0], outputs[0]))
    fixed = len(image) == 4 and min(image[1:]) > 0 and len(logits) == 2 and logits[1] > 0
    if not fixed or any(engine.get_tensor_dtype(name) != trt.float32 for name in names):
        raise ArtifactError(
            f"{path}: has {found}; expected float32 (N, C, H, W) with only N open, and float32 (N, classes)"
        )
    for name in names:
        if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise ArtifactError(
                f"{path}: tensor {name} is on the host, as values that decide shapes do; expected images only"
            )
        if engine.get_tensor_format(name) != trt.TensorFormat.LINEAR:
            raise ArtifactError(
                f"{path}: tensor {name} is stored as {engine.get_tensor_format_desc(name)}; expected linear. "
                "Build it without other I/O formats"
            )
    sizes = [
        Sizes(index, *_batches(engine, inputs[0], index)) for index in range(engine.num_optimization_profiles)
    ]
    opened = LoadedEngine(
        path, trt, engine, device, inputs[0], outputs[0], image[1:], logits[1], threading.Lock()
    )
    return opened, sorted(sizes, key=lambda each: each.max)


def _batches(engine: Any, name: str, profile: int) -> tuple[int, int]:
    """(smallest, largest) batch size of a profile."""
    batch, *_ = engine.get_tensor_shape(name)
    if batch > 0:
        return batch, batch
    least, _, most = engine.get_tensor_profile_shape(name, profile)
    return least[0], most[0]


def _dtype(trt: ModuleType, engine: Any, name: str) -> str:
    return (
        "float32"
        if engine.get_tensor_dtype(name) == trt.float32
        else engine.get_tensor_dtype(name).name.lower()
    )
