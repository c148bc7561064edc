"""`runtime.backends.tensorrt.cuda.Device` on cuda-python (cuda.bindings.driver): wheels for every platform,
no compiler, CUDA graphs.

In:  a device index.
Out: a `CudaPythonDevice`.
Elsewhere: what each call means (runtime.backends.tensorrt.cuda), the same on pycuda
(runtime.backends.tensorrt.cuda_pycuda).

Source: NVIDIA's CUDA driver API, docs.nvidia.com/cuda/cuda-driver-api.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from cuda.bindings import driver as cu

from ...errors import ArtifactError, MissingError
from . import cuda


def open_device(index: int) -> CudaPythonDevice:
    """Raises MissingError without a driver or a GPU, UsageError for an index that is not there."""
    try:
        status = cu.cuInit(0)[0]
    except RuntimeError as error:  # the library was not found
        raise MissingError("NVIDIA's driver is not installed here (libcuda is not found)") from error
    if status != cu.CUresult.CUDA_SUCCESS:
        raise MissingError(f"NVIDIA's driver does not start here ({status.name}). Look at nvidia-smi")
    cuda.require_index(index, _call(cu.cuDeviceGetCount))
    return CudaPythonDevice(index)


def _call(function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
    """The result of a driver call, its error raised as what it means to a user."""
    status, *values = function(*arguments)
    if status != cu.CUresult.CUDA_SUCCESS:
        raise ArtifactError(
            f"CUDA: {function.__name__} failed with {status.name}. Run again with CUDA_LAUNCH_BLOCKING=1 and "
            "report it"
        )
    return values[0] if len(values) == 1 else tuple(values) or None


class _Active:
    """The primary context pushed in this thread while the block runs."""

    def __init__(self, context: Any) -> None:
        self.context = context

    def __enter__(self) -> None:
        _call(cu.cuCtxPushCurrent, self.context)

    def __exit__(self, *_: object) -> None:
        _call(cu.cuCtxPopCurrent)


class _Owned:
    """Something of the driver's, destroyed once."""

    def __init__(self, destroy: Callable[..., Any], handle: Any) -> None:
        self._destroy, self._handle = destroy, handle

    def close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            _call(self._destroy, handle)


class _Stream(_Owned):
    def __init__(self) -> None:
        super().__init__(
            cu.cuStreamDestroy, _call(cu.cuStreamCreate, cu.CUstream_flags.CU_STREAM_NON_BLOCKING.value)
        )
        self.handle = int(self._handle)

    def synchronize(self) -> None:
        _call(cu.cuStreamSynchronize, self._handle)


class _Event(_Owned):
    def __init__(self) -> None:
        super().__init__(cu.cuEventDestroy, _call(cu.cuEventCreate, cu.CUevent_flags.CU_EVENT_DEFAULT.value))

    def record(self, stream: cuda.Stream) -> None:
        _call(cu.cuEventRecord, self._handle, cu.CUstream(stream.handle))

    def synchronize(self) -> None:
        _call(cu.cuEventSynchronize, self._handle)

    def milliseconds_since(self, earlier: _Event) -> float:
        return float(_call(cu.cuEventElapsedTime, earlier._handle, self._handle))


class _Memory(_Owned):
    def __init__(self, nbytes: int) -> None:
        status, address = cu.cuMemAlloc(nbytes)
        if status == cu.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise cuda.out_of_memory(nbytes, _call(cu.cuMemGetInfo)[0])
        if status != cu.CUresult.CUDA_SUCCESS:
            raise ArtifactError(f"CUDA: cuMemAlloc of {nbytes} bytes failed with {status.name}")
        super().__init__(cu.cuMemFree, address)
        self.address, self.nbytes = int(address), nbytes


class _Pinned(_Owned):
    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        dtype = np.dtype(dtype)
        count = math.prod(shape)
        address = _call(cu.cuMemAllocHost, max(count * dtype.itemsize, 1))
        super().__init__(cu.cuMemFreeHost, address)
        raw = (ctypes.c_uint8 * (count * dtype.itemsize)).from_address(int(address))
        self.array = np.frombuffer(raw, dtype).reshape(shape)


class _Graph(_Owned):
    def __init__(self, executable: Any) -> None:
        super().__init__(cu.cuGraphExecDestroy, executable)

    def launch(self, stream: cuda.Stream) -> None:
        _call(cu.cuGraphLaunch, self._handle, cu.CUstream(stream.handle))


class CudaPythonDevice:
    """See runtime.backends.tensorrt.cuda.Device."""

    library = "cuda-python"
    can_capture = True

    def __init__(self, index: int) -> None:
        self.index = index
        self._device = _call(cu.cuDeviceGet, index)
        self.name = _call(cu.cuDeviceGetName, 256, self._device).split(b"\0")[0].decode()
        attribute = cu.CUdevice_attribute
        self.compute_capability = (
            _call(
                cu.cuDeviceGetAttribute, attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, self._device
            ),
            _call(
                cu.cuDeviceGetAttribute, attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, self._device
            ),
        )
        version = _call(cu.cuDriverGetVersion)
        self.cuda_version = f"{version // 1000}.{version % 1000 // 10}"
        self.driver_version = cuda.driver_version(self.cuda_version)
        self.total_memory = int(_call(cu.cuDeviceTotalMem, self._device))
        self._context = _call(cu.cuDevicePrimaryCtxRetain, self._device)

    def active(self) -> _Active:
        return _Active(self._context)

    def stream(self) -> _Stream:
        return _Stream()

    def event(self) -> _Event:
        return _Event()

    def alloc(self, nbytes: int) -> _Memory:
        return _Memory(nbytes)

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> _Pinned:
        return _Pinned(shape, dtype)

    def to_device(self, address: int, array: np.ndarray, stream: cuda.Stream) -> None:
        _call(
            cu.cuMemcpyHtoDAsync,
            cu.CUdeviceptr(address),
            array.ctypes.data,
            array.nbytes,
            cu.CUstream(stream.handle),
        )

    def to_host(self, array: np.ndarray, address: int, stream: cuda.Stream) -> None:
        _call(
            cu.cuMemcpyDtoHAsync,
            array.ctypes.data,
            cu.CUdeviceptr(address),
            array.nbytes,
            cu.CUstream(stream.handle),
        )

    def on_device(self, target: int, source: int, nbytes: int, stream: cuda.Stream) -> None:
        _call(
            cu.cuMemcpyDtoDAsync,
            cu.CUdeviceptr(target),
            cu.CUdeviceptr(source),
            nbytes,
            cu.CUstream(stream.handle),
        )

    def wait_for(self, stream: cuda.Stream, handle: int) -> None:
        event = _call(cu.cuEventCreate, cu.CUevent_flags.CU_EVENT_DISABLE_TIMING.value)
        _call(cu.cuEventRecord, event, cu.CUstream(handle))
        _call(cu.cuStreamWaitEvent, cu.CUstream(stream.handle), event, 0)
        _call(cu.cuEventDestroy, event)  # the driver keeps it until it was passed

    def capture(self, stream: cuda.Stream, enqueue: Callable[[], None]) -> _Graph:
        """Record what `enqueue` puts into the stream instead of running it. Raises what enqueue raises, the
        capture ended.
        """
        handle = cu.CUstream(stream.handle)
        _call(cu.cuStreamBeginCapture, handle, cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        try:
            enqueue()
        except BaseException:
            status, graph = cu.cuStreamEndCapture(handle)
            if status == cu.CUresult.CUDA_SUCCESS and graph is not None:
                cu.cuGraphDestroy(graph)
            raise
        graph = _call(cu.cuStreamEndCapture, handle)
        try:
            return _Graph(_call(cu.cuGraphInstantiate, graph, 0))
        finally:
            _call(cu.cuGraphDestroy, graph)

    def free_memory(self) -> int:
        return int(_call(cu.cuMemGetInfo)[0])

    def close(self) -> None:
        """Let the primary context go; calling again does nothing."""
        context, self._context = self._context, None
        if context is not None:
            _call(cu.cuDevicePrimaryCtxRelease, self._device)
