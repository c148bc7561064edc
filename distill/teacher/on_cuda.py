"""What a teacher can do on CUDA alone: have its forward pass replayed from a graph, and compute on a stream
of its own, while the student computes on another.

In:  a function of images; tensors.
Out: what the function gives; streams that wait for each other. Without CUDA, or where it does not work, the
     same without graph and stream.
Elsewhere: what is computed (the teacher), when (distill.training.trainer), matrices that a graph reads
(distill.models.depthwise.forms).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from runtime.cli.terminal import say

from ..losses.base import Outputs
from ..models.depthwise import forms

WARM_UPS = 3
"""Calls before a recording, in which libraries choose their algorithms and kernels are compiled."""


class Recorded:
    """`recorded(compute, images)` -> what compute(images) gives; replayed from a CUDA graph from the second
    batch of a shape on. A replay writes to the same outputs as the one before.

    One shape is recorded. Others are computed as ever, and so is everything where recording fails; one line
    says so. The weights that compute reads must not change.
    """

    def __init__(self) -> None:
        self.say: Callable[[str], None] = say
        self._graph: torch.cuda.CUDAGraph | None = None
        self._last: tuple[object, ...] | None = None
        """Shape, strides and type of the last images, until they are recorded; then of those."""
        self._is_over = False
        self._said_shape = False

    def __call__(self, compute: Callable[[Tensor], Outputs], images: Tensor) -> Outputs:
        if self._is_over:
            return compute(images)
        kind = (images.shape, images.stride(), images.dtype)
        if self._graph is None:
            if kind != self._last:
                self._last = kind
                return compute(images)
            self._record(compute, images)
        if self._graph is None:
            return compute(images)
        if kind != self._last:
            self._say_shape(images)
            return compute(images)
        self._images.copy_(images)
        self._graph.replay()
        return self._outputs

    def _record(self, compute: Callable[[Tensor], Outputs], images: Tensor) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            self._images = images.clone()
            self._warm_up(compute, images.device)
            with (
                forms.held() as self._forms,
                torch.cuda.device(images.device),
                torch.cuda.graph(graph, capture_error_mode="thread_local"),  # other threads pin memory
            ):
                self._outputs = compute(self._images)
        except RuntimeError as error:
            self._is_over = True
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            self.say(f"teacher: computed without a CUDA graph, because recording one failed ({reason})")
            return
        self._graph = graph

    def _warm_up(self, compute: Callable[[Tensor], Outputs], device: torch.device) -> None:
        """On another stream than the default one, as a graph is recorded."""
        side = SideStream(device, True)
        with side.beside(self._images):
            for _ in range(WARM_UPS):
                compute(self._images)
        side.join()

    def _say_shape(self, images: Tensor) -> None:
        if not self._said_shape:
            shapes = (" x ".join(map(str, each.shape)) for each in (images, self._images))
            self.say(
                "teacher: images of {} are computed without the CUDA graph, which is of {}".format(*shapes)
            )
        self._said_shape = True


class SideStream:
    """A stream of its own beside the current one; without CUDA, or where it is not wanted, nothing.

    with side.beside(images):   # after all that was begun before
        out = network(images)
    ...                         # meanwhile, on the current stream
    side.join(out)              # from here on out can be used
    """

    def __init__(self, device: torch.device, is_wanted: bool) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if is_wanted and device.type == "cuda" else None

    @contextlib.contextmanager
    def beside(self, *read: Tensor) -> Iterator[None]:
        """Within it CUDA computes on the side, after what was begun on the current stream. read: the tensors
        of the current stream that it reads, whose memory is not used for others before.
        """
        if self.stream is None:
            yield
            return
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        for each in read:
            each.record_stream(self.stream)
        with torch.cuda.stream(self.stream):
            yield

    def join(self, *made: Tensor) -> None:
        """The current stream waits for all that was begun on the side. made: tensors of it that are used from
        here on.
        """
        if self.stream is None:
            return
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)
        for each in made:
            each.record_stream(current)
