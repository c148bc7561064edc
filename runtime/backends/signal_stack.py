"""A thread's stack for signal handlers, kept as it was while OpenVINO is loaded.

In:  the calling thread, on Linux.
Out: `kept()`, a context after which the thread's alternate signal stack (`man 2 sigaltstack`) is as before.
Elsewhere: what is loaded in the context (runtime.backends.openvino).

Where a CPU has AMX, every plugin that OpenVINO loads puts a stack of its own under the loading thread and
unmaps it when it goes, also where that stack is still in use: by another thread than the unloading one, or as
the stack that a second plugin found and puts back. The next signal that Python handles then ends the process
with a segmentation fault.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SS_DISABLE = 2


class _Stack(ctypes.Structure):
    """stack_t of Linux."""

    _fields_ = (("ss_sp", ctypes.c_void_p), ("ss_flags", ctypes.c_int), ("ss_size", ctypes.c_size_t))


@contextmanager
def kept() -> Iterator[None]:
    """The thread's alternate signal stack is afterwards what it was before; none, where what was before is
    now too small for the registers that a signal saves.
    """
    if sys.platform != "linux":
        yield
        return
    before = _Stack()
    change = ctypes.CDLL(None).sigaltstack
    change(None, ctypes.byref(before))
    try:
        yield
    finally:
        if change(ctypes.byref(before), None):
            change(ctypes.byref(_Stack(ss_flags=SS_DISABLE)), None)
