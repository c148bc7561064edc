"""The little of CUDA that running an engine takes: memory, copies, streams, events, graphs; on pycuda or
cuda-python.

In:  a device index.
Out: a `Device`; and where an array on a GPU is (`device_array`).
Elsewhere: the two libraries (runtime.backends.tensorrt.cuda_pycuda, runtime.backends.tensorrt.cuda_python),
what is run (runtime.backends.tensorrt.backend).

Both libraries work on the device's primary context, the one torch and TensorRT use. A call into CUDA needs it
current in the calling thread: `with device.active(): ...`. Copies and launches are asynchronous; results are
there after `stream.synchronize()`.
"""

from __future__ import annotations

import ctypes
import importlib
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ...errors import MissingError, UsageError

LIBRARIES = {
    "pycuda": ("runtime.backends.tensorrt.cuda_pycuda", "pycuda.driver"),
    "cuda-python": ("runtime.backends.tensorrt.cuda_python", "cuda.bindings.driver"),
}
"""Name -> our module, the module of the library; in the order they are tried."""


class Stream(Protocol):
    """A queue of work on the device; not the default one, which would wait for every other."""

    handle: int

    def synchronize(self) -> None:
        """Wait until everything put into it is done."""

    def close(self) -> None: ...


class Event(Protocol):
    """A mark in a stream."""

    def record(self, stream: Stream) -> None: ...

    def synchronize(self) -> None: ...

    def milliseconds_since(self, earlier: Event) -> float:
        """Time on the device between two recorded events, both done."""

    def close(self) -> None: ...


class Memory(Protocol):
    """Bytes on the device."""

    address: int
    nbytes: int

    def close(self) -> None: ...


class PinnedArray(Protocol):
    """Host memory that the device copies from and to by itself."""

    array: np.ndarray

    def close(self) -> None: ...


class Graph(Protocol):
    """Captured work that is launched as one."""

    def launch(self, stream: Stream) -> None: ...

    def close(self) -> None: ...


class Device(Protocol):
    """A GPU with its primary context retained. Everything but the attributes and `active` needs the context
    active.
    """

    library: str
    index: int
    name: str
    compute_capability: tuple[int, int]
    driver_version: str
    """Of NVIDIA's driver, such as 580.65.06; where it cannot be read, the CUDA version it brings."""
    cuda_version: str
    """Newest CUDA version the driver knows, such as 13.0."""
    total_memory: int
    """Bytes."""
    can_capture: bool

    def active(self) -> AbstractContextManager[None]: ...

    def stream(self) -> Stream: ...

    def event(self) -> Event: ...

    def alloc(self, nbytes: int) -> Memory: ...

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> PinnedArray: ...

    def to_device(self, address: int, array: np.ndarray, stream: Stream) -> None: ...

    def to_host(self, array: np.ndarray, address: int, stream: Stream) -> None: ...

    def on_device(self, target: int, source: int, nbytes: int, stream: Stream) -> None: ...

    def wait_for(self, stream: Stream, handle: int) -> None:
        """Let `stream` wait for what another library put into its stream `handle` so far."""

    def capture(self, stream: Stream, enqueue: Callable[[], None]) -> Graph: ...

    def free_memory(self) -> int: ...

    def close(self) -> None: ...


def open_device(index: int = 0, library: str | None = None) -> Device:
    """The GPU with this index. library: pycuda or cuda-python; the first that can be imported when None.

    Raises MissingError when there is no such library, no driver or no GPU, UsageError when the index is out
    of range.
    """
    if library is not None and library not in LIBRARIES:
        raise UsageError(f"CUDA library {library!r}: expected {' or '.join(LIBRARIES)}")
    reasons = []
    for name in [library] if library else LIBRARIES:
        ours, theirs = LIBRARIES[name]
        try:
            importlib.import_module(theirs)
        except ImportError as error:
            reasons.append(f"{name}: {' '.join(str(error).split())}")
            continue
        device: Device = importlib.import_module(ours).open_device(index)
        return device
    raise MissingError(
        f"no CUDA library can be used here ({'; '.join(reasons)}). A GPU needs NVIDIA's driver and "
        'pip install "large2small[tensorrt]" (pycuda) or "large2small[cuda-python]"'
    )


def require_index(index: int, count: int) -> None:
    """Raise MissingError for a machine without a GPU, UsageError for an index it does not have."""
    if count == 0:
        raise MissingError(
            "the NVIDIA driver finds no GPU here. Look at nvidia-smi, and at CUDA_VISIBLE_DEVICES"
        )
    if not 0 <= index < count:
        has = "1 GPU (cuda:0)" if count == 1 else f"{count} GPUs (cuda:0 to cuda:{count - 1})"
        raise UsageError(f"cuda:{index}: this machine has {has}. Give --device cuda:0")


def out_of_memory(nbytes: int, free: int | None) -> MissingError:
    """The error for memory that cannot be had."""
    left = "" if free is None else f", {free / 2**20:,.0f} MiB are free"
    return MissingError(
        f"out of GPU memory: {nbytes / 2**20:,.1f} MiB asked for{left}. Give a smaller --batch or fewer "
        "--contexts, or stop what else uses the GPU"
    )


def driver_version(cuda: str) -> str:
    """NVIDIA's driver version on Linux; elsewhere the CUDA version it brings, in words."""
    try:
        found = re.search(
            r"Kernel Module(?: for \S+)?\s+(\d+\.\d+[\d.]*)", Path("/proc/driver/nvidia/version").read_text()
        )
    except OSError:
        found = None
    return found[1] if found else f"CUDA {cuda}"


class DeviceArray(NamedTuple):
    """An array that is on a GPU."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype
    stream: int | None
    """Handle of the stream that may still be writing it; None when nothing needs to be waited for."""
    owner: Any
    """Keeps the memory alive."""
    gpu: int | None = None
    """Index of the GPU, where the array says it; the interface does not."""


DEFAULT_STREAM = 1
"""What `__cuda_array_interface__` calls the legacy default stream; 2 is the one of each thread."""


def device_array(array: Any) -> DeviceArray:
    """Where an array of torch, CuPy, Numba, JAX and others is, by `__cuda_array_interface__` or
    `__dlpack__`.

    Version 3 of the interface names the stream to wait for; torch gives version 2, without one, and is asked
    by DLPack instead. Raises UsageError for one that is not on a CUDA device, not contiguous, or not given
    away (such as one that requires grad).
    """
    try:
        found = getattr(array, "__cuda_array_interface__", None)
        if found and ("stream" in found or not hasattr(array, "__dlpack__")):
            return _from_interface(array, found)
        if hasattr(array, "__dlpack__"):
            return _from_dlpack(array)
    except (RuntimeError, BufferError, TypeError) as error:
        raise UsageError(
            f"a {type(array).__name__} on the GPU cannot be read: {' '.join(str(error).split())}"
        ) from error
    raise UsageError(
        f"a {type(array).__name__} is neither a numpy array nor an array on a GPU (no"
        " __cuda_array_interface__, no __dlpack__)"
    )


def _from_interface(array: Any, found: dict[str, Any]) -> DeviceArray:
    """As numba.readthedocs.io, "CUDA Array Interface (Version 3)", says; without a stream the default one is
    waited for.
    """
    shape, dtype = tuple(found["shape"]), np.dtype(found["typestr"])
    _require_contiguous(found.get("strides"), shape, dtype.itemsize)
    return DeviceArray(int(found["data"][0]), shape, dtype, found.get("stream", DEFAULT_STREAM), array)


def _require_contiguous(strides: Any, shape: tuple[int, ...], itemsize: int) -> None:
    """strides: in units of itemsize bytes when itemsize is 1, as the interface gives them otherwise; None is
    contiguous.
    """
    expected = itemsize
    for size, stride in zip(reversed(shape), reversed(strides or ()), strict=False):
        if size > 1 and stride != expected:
            raise UsageError(
                f"array with shape {shape} is not contiguous (strides {tuple(strides)}). Give"
                " array.contiguous()"
            )
        expected *= size


# The structs of DLPack 0.x, which unversioned capsules still carry (github.com/dmlc/dlpack,
# include/dlpack/dlpack.h).


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


CUDA_DEVICES = (2, 13)
"""DLPack's kDLCUDA and kDLCUDAManaged."""

CODES = {0: "i", 1: "u", 2: "f"}


def _from_dlpack(array: Any) -> DeviceArray:
    kind, index = array.__dlpack_device__()
    if int(kind) not in CUDA_DEVICES:
        raise UsageError(
            f"a {type(array).__name__} is on a device of DLPack type {int(kind)}, not on a CUDA GPU. "
            "Give it as numpy"
        )
    capsule = array.__dlpack__(
        stream=DEFAULT_STREAM
    )  # so that reading on the default stream, and after it, is safe
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    tensor = _DLTensor.from_address(pointer(capsule, b"dltensor"))
    if tensor.code not in CODES or tensor.lanes != 1:
        raise UsageError(
            f"an array of DLPack type code {tensor.code} with {tensor.lanes} lanes; expected float32"
        )
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    if tensor.strides:
        _require_contiguous([tensor.strides[i] for i in range(tensor.ndim)], shape, 1)
    dtype = np.dtype(f"{CODES[tensor.code]}{tensor.bits // 8}")
    # The capsule is not consumed: when it goes, its own destructor lets the tensor go.
    return DeviceArray(
        int(tensor.data or 0) + tensor.byte_offset, shape, dtype, DEFAULT_STREAM, (array, capsule), int(index)
    )
