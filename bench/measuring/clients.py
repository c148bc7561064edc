"""Several clients at once, each of which calls again as soon as it has its answer: a closed loop.

In:  a call that many threads may do; how many clients, for how long.
Out: `Concurrent`: how long a call then takes, how much longer than alone, images per second of all.
Elsewhere: one client alone (bench.clock.latency), percentiles (bench.stats).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from runtime import UsageError

from .. import stats
from ..clock.latency import collector_off


@dataclass(frozen=True, eq=False)
class Concurrent:
    """What clients saw. The names are keys of the JSON result."""

    clients: int
    calls: int
    latency_p50_ms: float
    latency_p99_ms: float
    queueing_p50_ms: float
    """How much longer the median is than that of one client alone: the wait for the others, and what sharing
    the processor costs."""
    queueing_p99_ms: float
    """The same of the 99th percentiles."""
    throughput_images_per_s: float
    """Of all clients together."""
    samples: np.ndarray = field(repr=False)
    """(calls,) int64 ns, client after client."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the durations."""
        return {name: value for name, value in vars(self).items() if name != "samples"}

    @property
    def line(self) -> str:
        """For a person."""
        return (
            f"{self.clients} clients at once: p50 {self.latency_p50_ms:.3g}, p99 {self.latency_p99_ms:.3g}"
            f" ms, longer than alone by {self.queueing_p50_ms:.3g} and {self.queueing_p99_ms:.3g};"
            f" {self.throughput_images_per_s:.4g} images/s together (n={self.calls})"
        )


def together(
    call: Callable[[], Any],
    clients: int,
    seconds: float,
    batch: int,
    alone: np.ndarray,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Concurrent:
    """`clients` threads that call until `seconds` have passed, at least once each. alone: durations (n,) ns
    of one client.

    Raises what a call raises, UsageError where the system does not start so many threads. No thread is left
    when it returns or raises.
    """
    made = [_Client(call, round(seconds * stats.NS_PER_S), clock) for _ in range(clients)]
    start, stop = threading.Barrier(clients), threading.Event()
    threads = [threading.Thread(target=client.run, args=(start, stop)) for client in made]
    with collector_off():
        try:
            _start(threads)
            for thread in threads:
                thread.join()
        finally:
            stop.set()
            start.abort()
            for thread in threads:
                if thread.is_alive():
                    thread.join()
    for client in made:
        if client.failed:
            raise client.failed
    passed = max(client.ended for client in made) - min(client.began for client in made)
    samples = np.array([each for client in made for each in client.samples])
    return summarize(samples, clients, passed, batch, alone)


@dataclass
class _Client:
    """What one thread does, and what it saw."""

    call: Callable[[], Any]
    duration_ns: int
    clock: Callable[[], int]
    samples: list[int] = field(default_factory=list)
    began: int = 0
    ended: int = 0
    failed: BaseException | None = None

    def run(self, start: threading.Barrier, stop: threading.Event) -> None:
        """Wait for the others, then call until the time is up or one of them has failed."""
        try:
            start.wait()
            self.began = self.clock()
            while not stop.is_set() and (not self.samples or self.clock() < self.began + self.duration_ns):
                began = self.clock()
                self.call()
                self.samples.append(self.clock() - began)
            self.ended = self.clock()
        except threading.BrokenBarrierError:  # not all were started
            return
        except BaseException as error:
            self.failed = error
            stop.set()


def _start(threads: list[threading.Thread]) -> None:
    for number, thread in enumerate(threads):
        try:
            thread.start()
        except RuntimeError as error:
            raise UsageError(
                f"{len(threads)} clients at once: this system starts only {number} threads ({error}). Give a"
                " smaller --concurrency, or raise the limit of processes (ulimit -u)"
            ) from None


def summarize(
    samples: np.ndarray, clients: int, passed_ns: float, batch: int, alone: np.ndarray
) -> Concurrent:
    """samples (calls,) ns of all clients; passed_ns: the wall-clock time of all; alone (n,) ns of one."""
    p50, p99 = (stats.percentile(samples, percent) / stats.NS_PER_MS for percent in (50, 99))
    alone50, alone99 = (stats.percentile(alone, percent) / stats.NS_PER_MS for percent in (50, 99))
    return Concurrent(
        clients,
        len(samples),
        p50,
        p99,
        max(p50 - alone50, 0.0),
        max(p99 - alone99, 0.0),
        stats.throughput(batch * len(samples), passed_ns),
        samples,
    )
