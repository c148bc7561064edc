"""Several clients at once, and new processes: figures that are known beforehand."""

import json
import threading
import time

import numpy as np
import pytest

from bench import __main__ as cli
from bench.measuring import clients, cold
from bench.measuring.elsewhere import Memory


def test_figures_of_clients_by_hand():
    samples = np.array([4e6] * 98 + [6e6, 10e6])  # 100 calls of 4 clients in 0.1 s
    found = clients.summarize(samples, 4, 0.1e9, batch=2, alone_ns=1e6)
    assert (found.latency_p50_ms, found.latency_p99_ms) == (4, 6)
    assert (found.queueing_p50_ms, found.queueing_p99_ms) == (3, 5)
    assert found.throughput_images_per_s == pytest.approx(2000)
    assert "samples" not in found.to_dict() and "waiting for others 3 and 5" in found.line


def test_clients_wait_for_one_that_serves_one_at_a_time():
    lock = threading.Lock()

    def call():
        with lock:
            time.sleep(0.002)

    found = clients.together(call, 4, 0.1, batch=1, alone_ns=2e6)
    assert found.latency_p50_ms > 5 and found.queueing_p50_ms > 3  # three others are served first
    assert found.throughput_images_per_s < 500 and found.calls >= 8


def test_what_fails_in_a_client_is_raised():
    def call():
        raise ValueError("in a thread")

    with pytest.raises(ValueError, match="in a thread"):
        clients.together(call, 3, 0.1, batch=1, alone_ns=1.0)


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
    assert set(found["energy"]["joules_per_image"]) == {"cpu", "gpu", "board"}
    assert cli.main(argv) == 0
    said = capsys.readouterr().out
    assert "cold start" not in said and "clients at once" not in said
