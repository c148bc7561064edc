"""NVIDIA's driver, asked directly: which GPUs are there, and which CUDA they can run.

In:  nothing; the driver's own library, where there is one.
Out: `Driver`, or the reason why there is none. Nothing is allocated on a GPU, and no context is made.
Elsewhere: memory and streams (runtime.backends.tensorrt.cuda), everything else about the machine
(runtime.env).
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass

LIBRARY = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"

MAJOR, MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR (cuda.h)."""

NAME_BYTES = 256


@dataclass(frozen=True)
class Gpu:
    """One GPU, numbered as CUDA numbers it (CUDA_VISIBLE_DEVICES counts)."""

    index: int
    name: str
    compute_capability: str
    """As in 9.0."""
    memory_bytes: int


@dataclass(frozen=True)
class Driver:
    """What the driver says."""

    cuda: str
    """The newest CUDA it runs, as in 13.0."""
    gpus: list[Gpu]


def find(library: str = LIBRARY) -> Driver | str:
    """The driver, or one sentence on why none can be used."""
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return f"no NVIDIA driver here ({library} cannot be loaded)"
    try:
        _call(cuda, "cuInit", 0)
        version, count = ctypes.c_int(), ctypes.c_int()
        _call(cuda, "cuDriverGetVersion", ctypes.byref(version))
        _call(cuda, "cuDeviceGetCount", ctypes.byref(count))
        return Driver(
            f"{version.value // 1000}.{version.value % 1000 // 10}",
            [_gpu(cuda, i) for i in range(count.value)],
        )
    except (OSError, AttributeError) as error:  # AttributeError: the library lacks a function of the driver
        return f"the NVIDIA driver does not answer ({error})"


def _gpu(cuda: ctypes.CDLL, index: int) -> Gpu:
    device, name, memory = ctypes.c_int(), ctypes.create_string_buffer(NAME_BYTES), ctypes.c_size_t()
    major, minor = ctypes.c_int(), ctypes.c_int()
    _call(cuda, "cuDeviceGet", ctypes.byref(device), index)
    _call(cuda, "cuDeviceGetName", name, NAME_BYTES, device)
    _call(cuda, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    _call(cuda, "cuDeviceGetAttribute", ctypes.byref(major), MAJOR, device)
    _call(cuda, "cuDeviceGetAttribute", ctypes.byref(minor), MINOR, device)
    return Gpu(index, name.value.decode(errors="replace"), f"{major.value}.{minor.value}", memory.value)


def _call(cuda: ctypes.CDLL, function: str, *arguments: object) -> None:
    """Raise OSError with the driver's own name of the error unless it returns CUDA_SUCCESS."""
    status = getattr(cuda, function)(*arguments)
    if status:
        text = ctypes.c_char_p()
        named = getattr(cuda, "cuGetErrorName", None)
        known = named is not None and named(status, ctypes.byref(text)) == 0
        said = text.value.decode() if known and text.value is not None else f"error {status}"
        raise OSError(f"{function}: {said}")
