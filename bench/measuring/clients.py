"""Several clients at once, each of which calls again as soon as it has its answer: a closed loop.

In:  a call that many threads may do; how many clients, for how long.
Out: `Concurrent`: how long a call then takes, how much of that is waiting, images per second of all.
Elsewhere: one client alone (bench.latency), percentiles (bench.stats).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import stats
from ..latency import collector_off


@dataclass(frozen=True, eq=False)
class Concurrent:
    """What clients saw. The names are keys of the JSON result."""

    clients: int
    calls: int
    latency_p50_ms: float
    latency_p99_ms: float
    queueing_p50_ms: float
    """How much longer the median is than that of one client alone: the wait for the others."""
    queueing_p99_ms: float
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
            f" ms, of which waiting for others {self.queueing_p50_ms:.3g} and {self.queueing_p99_ms:.3g};"
            f" {self.throughput_images_per_s:.4g} images/s together (n={self.calls})"
        )


def together(
    call: Callable[[], Any],
    clients: int,
    seconds: float,
    batch: int,
    alone_ns: float,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Concurrent:
    """`clients` threads that call until `seconds` have passed, at least once each. alone_ns: the median of
    one client. Raises what a call raises.
    """
    taken: list[list[int]] = [[] for _ in range(clients)]
    failed: list[BaseException] = []
    start = threading.Barrier(clients + 1)

    def client(samples: list[int]) -> None:
        start.wait()
        end = clock() + round(seconds * stats.NS_PER_S)
        try:
            while not failed and (not samples or clock() < end):
                began = clock()
                call()
                samples.append(clock() - began)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=client, args=(samples,)) for samples in taken]
    with collector_off():
        for thread in threads:
            thread.start()
        start.wait()
        began = clock()
        for thread in threads:
            thread.join()
        passed = clock() - began
    if failed:
        raise failed[0]
    return summarize(
        np.array([each for samples in taken for each in samples]), clients, passed, batch, alone_ns
    )


def summarize(samples: np.ndarray, clients: int, passed_ns: float, batch: int, alone_ns: float) -> Concurrent:
    """samples (calls,) ns of all clients; passed_ns: the wall-clock time of all."""
    p50, p99 = (stats.percentile(samples, percent) / stats.NS_PER_MS for percent in (50, 99))
    alone = alone_ns / stats.NS_PER_MS
    return Concurrent(
        clients,
        len(samples),
        p50,
        p99,
        max(p50 - alone, 0.0),
        max(p99 - alone, 0.0),
        stats.throughput(batch * len(samples), passed_ns),
        samples,
    )
