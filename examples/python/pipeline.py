"""A bounded pipeline from arrivals to labels: decoding in several threads, the engine in one, nothing grows
without limit.

In:  an open `runtime.Predictor`; images handed in one by one with `arrivals.put`.
Out: calls of `on_labels(results)` from the engine's thread, `on_unreadable(name, reason)` from the decoders';
`Counts`.
Elsewhere: where images come from (sources), the command line and the printing (edge_app).

    source -> [arrivals] -> decoders -> [ready] -> engine -> on_labels

Both queues are bounded. A slow engine fills `ready`, then the decoders wait, then `arrivals` fills, and there
the policy decides: a camera drops its oldest frame (what is labeled stays fresh), a folder waits (nothing is
lost).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from runtime import DataError, Predictor, UsageError

T = TypeVar("T")

KEPT = 10_000
"""Latencies kept for the percentiles, the latest ones: an application that runs for months does not grow."""


class Closed(Exception):
    """Nothing will come any more."""


class BoundedQueue(Generic[T]):
    """First in, first out, at most `capacity` items; full, it drops its oldest item or makes `put` wait."""

    def __init__(self, capacity: int, drop_oldest: bool = False) -> None:
        self.capacity, self.drop_oldest, self.dropped = capacity, drop_oldest, 0
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: T) -> bool:
        """False when the queue is closed, also while waiting for room; the item is then not taken."""
        with self._changed:
            if not self.drop_oldest:
                self._changed.wait_for(lambda: self._closed or len(self._items) < self.capacity)
            if self._closed:
                return False
            if len(self._items) == self.capacity:
                self._items.popleft()
                self.dropped += 1
            self._items.append(item)
            self._changed.notify_all()
            return True

    def get(self, timeout: float | None = None) -> T | None:
        """The oldest item, or None after `timeout` seconds. Raises Closed when closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closed, timeout)
            if self._items:
                self._changed.notify_all()
                return self._items.popleft()
            if self._closed:
                raise Closed
            return None

    def close(self) -> None:
        """Take no more; what is inside can still be got."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Arrival(NamedTuple):
    """An image that came in: what `runtime.Preprocess` takes, its name, and when (time.monotonic seconds)."""

    name: str
    image: Any
    at: float


class Ready(NamedTuple):
    """A preprocessed image: (C, H, W) float32."""

    name: str
    pixels: np.ndarray
    at: float


class Result(NamedTuple):
    """The guesses for one image, best first, and the milliseconds from arrival to here."""

    name: str
    guesses: list
    latency_ms: float


@dataclass
class Counts:
    """What happened so far."""

    images: int = 0
    batches: int = 0
    unreadable: int = 0
    first_arrival: float | None = None
    last_label: float | None = None
    latencies_ms: deque = field(default_factory=lambda: deque(maxlen=KEPT))

    def summary(self, dropped: int) -> dict[str, Any]:
        """Plain values with units in the names; None where nothing was measured."""
        seconds = self.last_label - self.first_arrival if self.images else None
        p50, p95 = np.percentile(self.latencies_ms, [50, 95]) if self.images else (None, None)
        return {
            "images": self.images,
            "images_per_s": round(self.images / seconds, 2) if seconds else None,
            "latency_p50_ms": round(float(p50), 3) if self.images else None,
            "latency_p95_ms": round(float(p95), 3) if self.images else None,
            "latency_n": len(self.latencies_ms),
            "mean_batch": round(self.images / self.batches, 2) if self.batches else None,
            "dropped": dropped,
            "unreadable": self.unreadable,
        }


class Pipeline:
    """Start with `start()`, feed `arrivals`, end with `arrivals.close()` and `join()`: what was taken is
    still labeled.
    """

    def __init__(
        self,
        predictor: Predictor,
        on_labels: Callable[[list[Result]], None],
        on_unreadable: Callable[[str, str], None],
        *,
        capacity: int,
        drop_oldest: bool,
        batch: int,
        max_wait_ms: float,
        decoders: int,
        top: int,
    ) -> None:
        """batch: most images in one call. max_wait_ms: how long the first of a batch waits for others to join
        it.
        """
        self.arrivals: BoundedQueue[Arrival] = BoundedQueue(capacity, drop_oldest)
        self.counts = Counts()
        self.failure: BaseException | None = None
        self._predictor, self._on_labels, self._on_unreadable = predictor, on_labels, on_unreadable
        self._batch, self._max_wait, self._top = batch, max_wait_ms / 1e3, top
        most = predictor.fit(batch)
        if most < batch:
            raise UsageError(
                f"batch {batch}: {predictor.path} takes {most} at a time. Give --batch {most} or less"
            )
        self._ready: BoundedQueue[Ready] = BoundedQueue(max(capacity, batch))
        self._lock, self._decoding = threading.Lock(), decoders
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=work.__name__)
            for work in [self._decode] * decoders + [self._label]
        ]

    def start(self) -> None:
        """Run the engine once with the largest batch, which says now what would fail later, and start the
        threads.
        """
        height, width = self._predictor.preprocess.input_size[1:]
        self._logits([np.zeros((3, height, width), np.float32)] * self._batch)
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait until everything taken has been labeled; raises what stopped a thread."""
        for thread in self._threads:
            thread.join()
        if self.failure is not None:
            raise self.failure

    def _guarded(self, work: Callable[[], None]) -> None:
        """A thread that fails ends the others, so that nobody waits for it for ever."""
        try:
            work()
        except BaseException as error:
            self.failure = self.failure or error
            self.arrivals.close()
            self._ready.close()

    def _decode(self) -> None:
        preprocess = self._predictor.preprocess
        try:
            while True:
                arrival = self.arrivals.get()
                with self._lock:
                    first = self.counts.first_arrival
                    self.counts.first_arrival = arrival.at if first is None else min(first, arrival.at)
                try:
                    pixels = preprocess(arrival.image)
                except DataError as error:
                    with self._lock:
                        self.counts.unreadable += 1
                    self._on_unreadable(arrival.name, str(error))
                    continue
                if not self._ready.put(Ready(arrival.name, pixels, arrival.at)):
                    return
        except Closed:
            with self._lock:
                self._decoding -= 1
                last = self._decoding == 0
            if last:
                self._ready.close()

    def _label(self) -> None:
        try:
            while True:
                self._finish(self._gather(self._ready.get()))
        except Closed:
            return

    def _gather(self, first: Ready) -> list[Ready]:
        """The first image and those that come before the batch is full or its time is over."""
        items, deadline = [first], time.monotonic() + self._max_wait
        while len(items) < self._batch:
            try:
                item = self._ready.get(timeout=max(deadline - time.monotonic(), 0))
            except Closed:
                break
            if item is None:
                break
            items.append(item)
        return items

    def _finish(self, items: list[Ready]) -> None:
        guesses = self._predictor.predictions(self._logits([item.pixels for item in items]), self._top)
        now = time.monotonic()
        results = [
            Result(item.name, guess, 1e3 * (now - item.at))
            for item, guess in zip(items, guesses, strict=True)
        ]
        self.counts.images += len(items)
        self.counts.batches += 1
        self.counts.last_label = now
        self.counts.latencies_ms.extend(result.latency_ms for result in results)
        self._on_labels(results)

    def _logits(self, pixels: list[np.ndarray]) -> np.ndarray:
        """(N, K) of N images, in one call unless the artifact takes no batch of that size."""
        return self._predictor.logits_in_batches(np.stack(pixels), self._batch)
