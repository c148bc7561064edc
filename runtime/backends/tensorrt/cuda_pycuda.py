"""`runtime.backends.tensorrt.cuda.Device` on pycuda, which has no CUDA graphs.

In:  a device index.
Out: a `PycudaDevice`.
Elsewhere: what each call means (runtime.backends.tensorrt.cuda), the same on cuda-python
(runtime.backends.tensorrt.cuda_python).

Never pycuda.autoinit: it makes a context of its own beside the primary one, and then torch, TensorRT and
pycuda do not see each other's memory. Source: documen.tician.de/pycuda/driver.html.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pycuda.driver as drv

from ...errors import ArtifactError, MissingError
from . import cuda, driver


def open_device(index: int) -> PycudaDevice:
    """Raises MissingError without a driver or a GPU, UsageError for an index that is not there."""
    try:
        drv.init()
        count = drv.Device.count()
    except drv.Error as error:
        raise MissingError(f"NVIDIA's driver does not start here ({error}). Look at nvidia-smi") from error
    cuda.require_index(index, count)
    return PycudaDevice(index)


class _Active:
    """The primary context pushed in this thread while the block runs; pycuda's errors become ours."""

    def __init__(self, context: Any) -> None:
        self.context = context

    def __enter__(self) -> None:
        self.context.push()

    def __exit__(self, _kind: Any, error: BaseException | None, _trace: Any) -> None:
        drv.Context.pop()
        if isinstance(error, drv.Error):
            raise ArtifactError(
                f"CUDA: {' '.join(str(error).split())}. Run again with CUDA_LAUNCH_BLOCKING=1 and report it"
            ) from error


class _Owned:
    """Something of pycuda's, let go once; pycuda destroys it then, or when the last copy elsewhere goes."""

    def __init__(self, held: Any) -> None:
        self._held = held

    def close(self) -> None:
        self._held = None


class _Stream(_Owned):
    def __init__(self) -> None:
        super().__init__(drv.Stream(1))  # 1: does not wait for the default stream
        self.handle = int(self._held.handle)

    def synchronize(self) -> None:
        self._held.synchronize()


class _Event(_Owned):
    def __init__(self) -> None:
        super().__init__(drv.Event())

    def record(self, stream: _Stream) -> None:
        self._held.record(stream._held)

    def synchronize(self) -> None:
        self._held.synchronize()

    def milliseconds_since(self, earlier: _Event) -> float:
        return float(earlier._held.time_till(self._held))


class _Memory(_Owned):
    def __init__(self, nbytes: int) -> None:
        try:
            super().__init__(drv.mem_alloc(nbytes))
        except drv.MemoryError as error:
            raise cuda.out_of_memory(nbytes, drv.mem_get_info()[0]) from error
        self.address, self.nbytes = int(self._held), nbytes

    def close(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.free()


class _Pinned(_Owned):
    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self.array = drv.pagelocked_empty(shape, np.dtype(dtype))
        super().__init__(self.array.base)

    def close(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.free()


class PycudaDevice:
    """See runtime.backends.tensorrt.cuda.Device."""

    library = "pycuda"
    can_capture = False

    def __init__(self, index: int) -> None:
        self.index = index
        device = drv.Device(index)
        self.name = device.name()
        self.compute_capability = tuple(device.compute_capability())
        version = drv.get_driver_version()
        self.cuda_version = f"{version // 1000}.{version % 1000 // 10}"
        self.driver_version = cuda.driver_version(self.cuda_version)
        self.total_memory = int(device.total_memory())
        self._context = device.retain_primary_context()

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

    def to_device(self, address: int, array: np.ndarray, stream: _Stream) -> None:
        drv.memcpy_htod_async(address, array, stream._held)

    def to_host(self, array: np.ndarray, address: int, stream: _Stream) -> None:
        drv.memcpy_dtoh_async(array, address, stream._held)

    def on_device(self, target: int, source: int, nbytes: int, stream: _Stream) -> None:
        drv.memcpy_dtod_async(target, source, nbytes, stream._held)

    def wait_for(self, stream: _Stream, handle: int) -> None:
        """pycuda cannot name another library's stream, so everything on the device is waited for."""
        drv.Context.synchronize()

    def capture(self, stream: _Stream, enqueue: Callable[[], None]) -> cuda.Graph:
        raise MissingError(
            "CUDA graphs need cuda-python; pycuda has none. Install it: pip install"
            ' "large2small[cuda-python]"'
        )

    def free_memory(self) -> int:
        return int(drv.mem_get_info()[0])

    def close(self) -> None:
        """Let the primary context go, from any thread; calling again does nothing."""
        context, self._context = self._context, None
        if context is not None:
            # pycuda's detach does nothing in a thread where the context is not active, unless it made it
            # there, and leaves a primary context current; so: active for pycuda, not current for the driver.
            context.push()
            ctypes.CDLL(driver.LIBRARY).cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
            context.detach()
