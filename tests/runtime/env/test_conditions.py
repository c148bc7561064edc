"""Warnings: from durations made to order, from a machine that is a folder of files, and from a busy one."""

import multiprocessing
import shlex
import subprocess
import sys
import time

import numpy as np
import pytest

from runtime import env
from runtime.env import conditions
from runtime.env.conditions import Moment


def kinds(found):
    return {each.kind for each in found}


def stat(user, idle, stolen=0):
    return f"cpu  {user} 0 0 {idle} 0 0 0 {stolen} 0 0\ncpu0 0 0 0 0\n"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Folders in place of /proc and /sys/devices/system/cpu, of two idle cores."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "stat").write_text(stat(0, 0))
    monkeypatch.setattr(conditions, "PROC", tmp_path / "proc")
    monkeypatch.setattr(conditions, "CPUS", tmp_path / "cpus")
    monkeypatch.setattr(conditions, "_own_seconds", lambda: 0.0)
    monkeypatch.setattr(conditions, "_ticks", lambda: 100)
    monkeypatch.setattr(conditions.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(env, "jetson", lambda: None)
    for core in (0, 1):
        for name, value in (
            ("thermal_throttle/core_throttle_count", 3),
            ("cpufreq/scaling_cur_freq", 3_000_000),
            ("cpufreq/cpuinfo_max_freq", 3_200_000),
        ):
            file = tmp_path / "cpus" / f"cpu{core}" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{value}\n")
    return tmp_path


def test_a_quiet_machine_has_no_warnings(machine):
    before = conditions.now()
    (machine / "proc" / "stat").write_text(stat(10, 1990))
    assert conditions.warnings(before, [np.full(100, 5.0)]) == []


def test_others_are_counted_without_this_process(machine, monkeypatch):
    before = conditions.now()
    (machine / "proc" / "stat").write_text(stat(1500, 500))  # 15 of 20 seconds of two cores: 1.5 cores
    assert kinds(conditions.warnings(before, [])) == {"load"}
    assert "1.5 of 2 cores" in conditions.warnings(before, [])[0].text
    monkeypatch.setattr(conditions, "_own_seconds", lambda: 14.0)
    assert conditions.warnings(before, []) == []


def test_what_the_host_takes_is_named(machine):
    before = conditions.now()
    (machine / "proc" / "stat").write_text(stat(0, 1800, stolen=200))
    (found,) = conditions.warnings(before, [])
    assert found.kind == "stolen" and "10 %" in found.text


def test_heat_and_a_low_clock_are_named(machine):
    before = conditions.now()
    (machine / "cpus" / "cpu1" / "thermal_throttle" / "core_throttle_count").write_text("5")
    for core in (0, 1):
        (machine / "cpus" / f"cpu{core}" / "cpufreq" / "scaling_cur_freq").write_text("1600000")
    found = conditions.warnings(before, [])
    assert kinds(found) == {"throttled", "clock"}
    (machine / "cpus" / "cpu0" / "cpufreq" / "scaling_cur_freq").write_text("3200000")  # the other is idle
    assert kinds(conditions.warnings(before, [])) == {"throttled"}
    assert "2 times" in found[0].text and "50 %" in found[1].text


def test_a_machine_that_says_nothing_has_no_warnings(monkeypatch, tmp_path):
    monkeypatch.setattr(conditions, "PROC", tmp_path)
    monkeypatch.setattr(conditions, "CPUS", tmp_path)
    monkeypatch.setattr(conditions.os, "getloadavg", lambda: (0.1, 0.1, 0.1))
    assert conditions.warnings(Moment(None, None, None, 0.0, None), []) == []
    monkeypatch.setattr(conditions.os, "getloadavg", lambda: (99.0, 0.1, 0.1))
    assert kinds(conditions.warnings(Moment(None, None, None, 0.0, None), [])) == {"load"}


def test_spread_and_drift_are_seen_in_the_samples(machine):
    before = conditions.now()
    even = np.full(100, 10.0)
    spread = np.where(np.arange(100) % 5 == 0, 40.0, 10.0)  # a fifth of the calls take four times as long
    drift = np.linspace(10, 13, 100)  # quarters of medians 10.4 and 12.6
    assert kinds(conditions.warnings(before, [even, spread])) == {"spread"}
    (found,) = conditions.warnings(before, [even, drift])
    assert found.kind == "drift" and "+22 %" in found.text


def test_gpus_are_asked_only_when_they_were_used(machine, monkeypatch):
    state = {"sm_clock_mhz": 900.0, "sm_clock_max_mhz": 1980.0, "throttle_reasons": "0x0000000000000004"}
    monkeypatch.setattr(env, "gpu_states", lambda: [state, state])
    monkeypatch.setattr(env, "gpu_processes", lambda: [1, 2, conditions.os.getpid()])
    assert conditions.warnings(conditions.now(), []) == []
    found = conditions.warnings(conditions.now(), [], ["cpu", "cuda:0"])
    assert kinds(found) == {"gpu_clock", "gpu_throttled", "gpu_shared"}
    assert "900 of 1980 MHz" in found[0].text and "2 other processes" in found[2].text


@pytest.mark.parametrize(
    "state",
    [
        {"sm_clock_mhz": 1980.0, "sm_clock_max_mhz": 1980.0, "throttle_reasons": "0x0000000000000001"},
        {"sm_clock_mhz": 345.0, "sm_clock_max_mhz": 1980.0, "throttle_reasons": "0x0000000000000001"},  # idle
        {"sm_clock_mhz": None, "sm_clock_max_mhz": None, "throttle_reasons": "[N/A]"},
        {"sm_clock_mhz": 1900.0, "sm_clock_max_mhz": 1980.0, "throttle_reasons": None},
    ],
)
def test_a_gpu_without_a_fault_is_not_warned_of(machine, monkeypatch, state):
    slow = {"sm_clock_mhz": 345.0, "sm_clock_max_mhz": 1980.0, "throttle_reasons": "0x4"}
    monkeypatch.setattr(env, "gpu_states", lambda: [slow, state])
    monkeypatch.setattr(env, "gpu_processes", list)
    assert conditions.warnings(conditions.now(), [], ["cuda:1"]) == []
    assert kinds(conditions.warnings(conditions.now(), [], ["cuda"])) == {"gpu_clock", "gpu_throttled"}


def test_a_board_in_a_slower_power_mode_is_named(machine, monkeypatch):
    monkeypatch.setattr(env, "jetson", lambda: {"model": "Orin", "l4t": "36.4", "power_mode": "15W"})
    (found,) = conditions.warnings(conditions.now(), [])
    assert found.kind == "power_mode" and "15W" in found.text
    monkeypatch.setattr(env, "jetson", lambda: {"model": "Orin", "l4t": "36.4", "power_mode": "MAXN_SUPER"})
    assert conditions.warnings(conditions.now(), []) == []


BURN = "import sys, time; end = time.monotonic() + 2\nwhile time.monotonic() < end: pass"


@pytest.mark.skipif(not conditions.PROC.exists(), reason="counts processor time from /proc")
def test_busy_neighbors_on_this_machine_are_seen():
    """As many busy processes as there are cores, which are not this one's: a shell's."""
    line = " & ".join([shlex.join([sys.executable, "-c", BURN])] * (conditions.os.cpu_count() or 1))
    shell = subprocess.Popen(["sh", "-c", f"{line} & wait"])
    try:
        time.sleep(0.3)
        before = conditions.now()
        time.sleep(1)
        assert "load" in kinds(conditions.warnings(before, []))
    finally:
        shell.wait()


def burn(seconds):
    while time.process_time() < seconds:  # of the child, which starts at 0
        pass


@pytest.mark.skipif(not conditions.PROC.exists(), reason="counts processor time from /proc")
def test_own_children_are_not_neighbors():
    """Their processor time is this process's, while they run and afterwards."""
    context = multiprocessing.get_context("fork")
    before = conditions.now().own_seconds
    workers = [context.Process(target=burn, args=(0.5,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers) and conditions.now().own_seconds - before < 0.3:
        time.sleep(0.01)
    assert conditions.now().own_seconds - before >= 0.3
    for worker in workers:
        worker.join()
    assert conditions.now().own_seconds - before >= 0.9
