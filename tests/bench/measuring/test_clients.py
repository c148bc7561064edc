"""Several clients at once, and new processes: figures that are known beforehand."""

import json
import threading

import numpy as np
import pytest

from bench import __main__ as cli
from bench.measuring import clients, cold
from bench.measuring.elsewhere import Memory
from runtime import UsageError


def test_figures_of_clients_by_hand():
    samples = np.array([4e6] * 98 + [6e6, 10e6])  # 100 calls of 4 clients in 0.1 s
    alone = np.array([1e6] * 98 + [5e6, 8e6])
    found = clients.summarize(samples, 4, 0.1e9, batch=2, alone=alone)
    assert (found.latency_p50_ms, found.latency_p99_ms) == (4, 6)
    assert (found.queueing_p50_ms, found.queueing_p99_ms) == (3, 1)
    assert found.throughput_images_per_s == pytest.approx(2000)
    assert "samples" not in found.to_dict() and "longer than alone by 3 and 1" in found.line


class Server:
    """Answers one call after the other, 2 ms each by its own clock, which nothing else moves."""

    def __init__(self):
        self.now, self.lock, self.answered = 0, threading.Lock(), threading.Event()
        self.thread = threading.current_thread()

    def __call__(self):
        with self.lock:
            self.now += 2_000_000
            self.answered.set()

    def clock(self):
        if threading.current_thread() is self.thread:  # wakes up later than the clients
            self.answered.wait(10)
        return self.now


def test_the_time_of_all_counts_from_the_first_client_that_calls():
    server = Server()
    found = clients.together(server, 4, 0.1, batch=3, alone=np.array([2e6]), clock=server.clock)
    assert found.throughput_images_per_s == pytest.approx(3 / 0.002)
    assert found.calls * 2e6 == server.now >= 0.1e9 and found.latency_p50_ms >= 2


def test_what_fails_in_a_client_is_raised():
    def call():
        raise ValueError("in a thread")

    with pytest.raises(ValueError, match="in a thread"):
        clients.together(call, 3, 0.1, batch=1, alone=np.ones(1))


def test_threads_that_cannot_be_started_leave_none_waiting(monkeypatch):
    start, started = threading.Thread.start, []

    def limited(thread):
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        thread.daemon = True  # so that a failure of this test does not hang
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(UsageError, match=r"3 clients at once: this system starts only 2 threads \(can't"):
        clients.together(lambda: None, 3, 0.0, batch=1, alone=np.ones(1))
    assert len(started) == 2 and not any(thread.is_alive() for thread in started)


def test_an_interrupt_stops_the_clients(monkeypatch):
    """As Ctrl-C, which the thread of the command gets while it waits for the clients."""
    interrupted, called, join = [], threading.Event(), threading.Thread.join

    def joined(thread, *_):
        called.wait(10)
        if not interrupted:
            interrupted.append(thread)
            raise KeyboardInterrupt
        join(thread, 10)

    monkeypatch.setattr(threading.Thread, "join", joined)
    with pytest.raises(KeyboardInterrupt):
        clients.together(called.set, 2, 3600.0, batch=1, alone=np.ones(1))
    assert not interrupted[0].is_alive()


def test_a_cold_start_is_summed_up_by_median_and_peak():
    memory = [Memory(10_000_000, 50_000_000, 60_000_000), Memory(10_000_000, 30_000_000, 40_000_000)]
    found = cold.ColdStart([100.0, 300.0, 200.0], [*memory, Memory(None, None, None)])
    assert (found.peak_bytes, found.growth_bytes) == (60_000_000, 30_000_000)
    assert found.to_dict()["first_answer_median_ms"] == 200
    assert "median 200 ms (100 to 300, n=3" in found.line and "60 MB at its peak" in found.line
    assert "resident memory" not in cold.ColdStart([1.0], [Memory(None, None, None)]).line


def test_the_command_measures_all_of_it(student, tmp_path, capsys):
    argv = ["latency", str(student), "--iterations", "20", "--threads", "1"]
    assert cli.main([*argv, "--cold-start", "1", "--concurrency", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["concurrent"]["clients"] == 2 and found["concurrent"]["calls"] >= 2
    assert found["cold_start"]["processes"] == 1 and found["cold_start"]["first_answer_median_ms"] > 20
    assert found["memory"]["resident_bytes"] > 1e7 and found["memory"]["peak_bytes"] > 1e7
    for boundary in ("compute", "end_to_end"):
        assert set(found["energy"][boundary]["joules_per_image"]) == {"cpu", "gpu", "board"}
    assert cli.main(argv) == 0
    said = capsys.readouterr().out
    assert "cold start" not in said and "clients at once" not in said
