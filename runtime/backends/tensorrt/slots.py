"""So many calls at once on one engine: each borrows a slot with its own stream, buffers and execution
contexts.

In:  an open engine, a GPU, `Sizes` of the profile to use; batches on the host or on the GPU.
Out: logits where the caller wants them, complete when the call returns.
Elsewhere: opening and checking the engine, choosing the profile (runtime.backends.tensorrt.backend), CUDA
(runtime.backends.tensorrt.cuda).

A context stays on one profile, because switching waits for the device; a captured launch belongs to one state
of its context, so with graphs each batch size has a context of its own (NVIDIA's TensorRT documentation on
profiles, threads and CUDA graphs).
"""

from __future__ import annotations

import contextlib
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from ...errors import ArtifactError, UsageError
from . import messages
from .cuda import Device, DeviceArray, Graph

KEPT_GRAPHS = 4
"""Batch sizes whose captured launch a slot keeps; the one not used for longest goes first. Each holds a
context's memory."""


class Sizes(NamedTuple):
    """Batch sizes of an optimization profile, and its place in the plan."""

    profile: int
    min: int
    max: int


class LoadedEngine(NamedTuple):
    """A deserialized engine of one image input (N, C, H, W) and one output (N, K), and what it takes to run
    it.
    """

    path: Path
    trt: ModuleType
    engine: Any
    device: Device
    input_name: str
    output_name: str
    image: tuple[int, int, int]
    """(C, H, W)."""
    classes: int
    making: threading.Lock
    """Held while a context is made: an engine makes them one at a time."""


def forget_variables(error: BaseException | None) -> None:
    """Free what an error's frames still refer to, such as an engine, now, with the device active; callers may
    keep the error.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


class Pool:
    """Slots, lent to one call each; further calls wait."""

    def __init__(self, path: Path, slots: list[Slot]) -> None:
        self._path, self._slots, self._free = path, slots, list(slots)
        self._closed, self._changed = False, threading.Condition()

    @contextlib.contextmanager
    def lend(self) -> Iterator[Slot]:
        """Raises UsageError when the pool is closed, also for calls that were waiting then."""
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._closed)
            if self._closed:
                raise UsageError(f"{self._path}: closed. Call runtime.load again")
            slot = self._free.pop()  # the last one back, whose memory is warm
        try:
            yield slot
        finally:
            with self._changed:
                self._free.append(slot)
                self._changed.notify()

    def close(self) -> list[Slot]:
        """No more calls; waits for the running ones. Returns the slots, to be closed."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(self._free) == len(self._slots))
            self._free, slots, self._slots = [], self._slots, []
            return slots


class Slot:
    """A stream, and for each profile its buffers and contexts. One call at a time, with the device active."""

    def __init__(self, engine: LoadedEngine, cuda_graph: bool) -> None:
        self._engine, self._cuda_graph = engine, cuda_graph
        self._stream = engine.device.stream()
        self._buffers: dict[int, _Buffers] = {}
        self._contexts: OrderedDict[tuple[int, int | None], _Context] = OrderedDict()

    def prepare(self, sizes: Sizes) -> None:
        """Make the buffers and a context now. Raises as `run` does."""
        self._context(sizes, sizes.max)

    def run(self, sizes: Sizes, source: np.ndarray | DeviceArray, target: np.ndarray | DeviceArray) -> None:
        """(n, C, H, W) float32 -> (n, K) float32, done when it returns; sizes.min <= n <= sizes.max.

        Raises MissingError when memory does not suffice, ArtifactError when TensorRT or CUDA fails.
        """
        try:
            self._run(sizes, source, target)
        except (
            BaseException
        ) as error:  # Ctrl-C too: nothing of the caller's may be in use when it hears of it
            with contextlib.suppress(Exception):  # the first error is the one to tell
                self._stream.synchronize()
            forget_variables(error)
            raise

    def _run(self, sizes: Sizes, source: np.ndarray | DeviceArray, target: np.ndarray | DeviceArray) -> None:
        count, stream, device = source.shape[0], self._stream, self._engine.device
        context, buffers = self._context(sizes, count), self._buffers[sizes.profile]
        nbytes_in, nbytes_out = (
            4 * count * values for values in (buffers.image_values, self._engine.classes)
        )
        if isinstance(source, DeviceArray):
            self._after(source)
            device.on_device(buffers.input.address, source.address, nbytes_in, stream)
        else:
            host = buffers.host_input.array[:count]
            np.copyto(host, source)
            device.to_device(buffers.input.address, host, stream)
        context.launch(count)
        if isinstance(target, DeviceArray):
            self._after(target)
            device.on_device(target.address, buffers.output.address, nbytes_out, stream)
            stream.synchronize()
        else:
            host = buffers.host_output.array[:count]
            device.to_host(host, buffers.output.address, stream)
            stream.synchronize()
            np.copyto(target, host)

    def close(self) -> None:
        """Free contexts, then what they point to, then the stream."""
        with contextlib.ExitStack() as last_first:
            last_first.callback(self._stream.close)
            for buffers in self._buffers.values():
                last_first.callback(buffers.close)
            while self._contexts:
                last_first.callback(self._contexts.popitem()[1].close)
            self._buffers = {}
            del self._engine  # a call that is just leaving may still hold this slot

    def _after(self, array: DeviceArray) -> None:
        """Order our stream behind the one that still works on the array."""
        if array.stream is not None:
            self._engine.device.wait_for(self._stream, array.stream)

    def _context(self, sizes: Sizes, count: int) -> _Context:
        if sizes.profile not in self._buffers:
            self._buffers[sizes.profile] = _Buffers(self._engine, sizes.max)
        key = (sizes.profile, count if self._cuda_graph else None)
        if key not in self._contexts:
            if self._cuda_graph and len(self._contexts) >= KEPT_GRAPHS:
                self._contexts.popitem(last=False)[1].close()
            self._contexts[key] = _Context(
                self._engine, sizes, self._stream, self._buffers[sizes.profile], self._cuda_graph
            )
        self._contexts.move_to_end(key)
        return self._contexts[key]


class _Buffers:
    """Memory for a profile's largest batch, on the GPU and page-locked on the host, allocated once."""

    def __init__(self, engine: LoadedEngine, most: int) -> None:
        device, self.image_values = engine.device, int(np.prod(engine.image))
        with contextlib.ExitStack() as undo:

            def kept(held: Any) -> Any:
                undo.callback(held.close)
                return held

            self.input = kept(device.alloc(4 * most * self.image_values))
            self.output = kept(device.alloc(4 * most * engine.classes))
            self.host_input = kept(device.pinned((most, *engine.image), np.float32))
            self.host_output = kept(device.pinned((most, engine.classes), np.float32))
            self._held = undo.pop_all()

    def close(self) -> None:
        self._held.close()


class _Context:
    """An execution context on one profile, its addresses set; with graphs, its captured launch for one batch
    size.
    """

    def __init__(
        self, engine: LoadedEngine, sizes: Sizes, stream: Any, buffers: _Buffers, cuda_graph: bool
    ) -> None:
        self._engine, self._stream, self._cuda_graph = engine, stream, cuda_graph
        self._graph: Graph | None = None
        self._count: int | None = None
        with engine.making:
            self._context = self._said("make an execution context", engine.engine.create_execution_context)
        if sizes.profile != 0:  # a new one is on profile 0
            self._said(
                "choose a profile", self._context.set_optimization_profile_async, sizes.profile, stream.handle
            )
            stream.synchronize()
        for name, memory in ((engine.input_name, buffers.input), (engine.output_name, buffers.output)):
            self._said(f"set the address of {name}", self._context.set_tensor_address, name, memory.address)
        self._set_count(sizes.max)
        found = tuple(self._context.get_tensor_shape(engine.output_name))
        if found != (sizes.max, engine.classes):
            raise ArtifactError(
                f"{engine.path}: gives {found} for {sizes.max} images; expected ({sizes.max},"
                f" {engine.classes}), known before it runs. Export the network with one output (N, classes)"
            )

    def launch(self, count: int) -> None:
        """Put the network on `count` images of the input buffer into the stream."""
        if self._graph is not None and count == self._count:
            self._graph.launch(self._stream)
            return
        self._set_count(count)
        self._enqueue()
        if self._cuda_graph:  # only the launch after an ordinary one of the same shape can be captured
            self._stream.synchronize()
            try:
                self._graph = self._engine.device.capture(self._stream, self._enqueue)
            except ArtifactError as error:
                raise ArtifactError(
                    f"{error}. This was while a CUDA graph was captured; open it without cuda_graph"
                ) from error

    def close(self) -> None:
        graph, self._graph, self._context = self._graph, None, None
        if graph is not None:
            graph.close()

    def _enqueue(self) -> None:
        self._said("run it", self._context.execute_async_v3, self._stream.handle)

    def _set_count(self, count: int) -> None:
        if count == self._count:
            return
        name, shape = self._engine.input_name, (count, *self._engine.image)
        self._said(f"take {shape}", self._context.set_input_shape, name, shape)
        missing = self._said("work out its shapes", self._context.infer_shapes)
        if missing:
            raise self._failure("work out its shapes", f"{', '.join(missing)} not known")
        self._count = count

    def _said(self, what: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """The call's result; TensorRT says None, False or a RuntimeError when it fails, and why only to its
        logger.
        """
        before = messages.RECENT.count
        try:
            result = call(*arguments)
        except RuntimeError as error:
            raise self._failure(what, " ".join(str(error).split())) from error
        if result is None or result is False:
            raise self._failure(what, messages.RECENT.reason(before))
        return result

    def _failure(self, what: str, reason: str) -> ArtifactError:
        version = self._engine.trt.__version__
        return ArtifactError(
            f"{self._engine.path}: TensorRT {version} cannot {what}: {messages.explain(reason)}"
        )
