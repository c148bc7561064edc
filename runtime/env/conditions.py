"""When a time should not be quoted: what else the machine did while it was taken, and what the samples show.

In:  the moment before and after a measurement; its durations.
Out: `Warned`, one for each reason, with the figure and the threshold that it crossed.
Elsewhere: what the machine is (runtime.env), the measurements (bench.clock.latency, bench.comparing.race,
export.checks.speed).

Nothing is left out of a result because of a warning; whoever reads it is told.
"""

from __future__ import annotations

import multiprocessing
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from .. import env

MOST_SPREAD = 1.5
"""Ratio of the 90th percentile to the median: about 1.1 on a quiet machine."""
MOST_DRIFT = 0.10
"""Change of the median from the first to the last quarter of the samples, as a share."""
MOST_OTHERS = 0.10
"""Share of the cores that other processes may use."""
MOST_STOLEN = 0.02
"""Share of the time that a virtual machine may be kept waiting for its host."""
LEAST_CLOCK = 0.8
"""Share of its highest clock that a processor should run at."""
QUARTERS_FROM = 40
"""Samples from which a drift is looked for."""

PROC, CPUS = Path("/proc"), Path("/sys/devices/system/cpu")
IDLE = 0x1
HARMLESS_REASONS = IDLE | 0x2
"""NVML's reasons for a clock below the maximum that are not throttling: an idle GPU, clocks set by hand."""


@dataclass(frozen=True)
class Warned:
    """One reason to doubt a time."""

    kind: str
    """spread, drift, load, stolen, throttled, clock, gpu_clock, gpu_throttled, gpu_shared or power_mode."""
    text: str
    """One sentence with the figure."""

    def to_dict(self) -> dict[str, str]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Moment:
    """What the machine has counted until now; None where it does not say."""

    busy_seconds: float | None
    """Of all cores and all processes."""
    stolen_seconds: float | None
    total_seconds: float | None
    """Of all cores, idle time included."""
    own_seconds: float
    """Of this process and its children."""
    throttled: int | None
    """Times that a core was slowed down by its temperature."""


def now() -> Moment:
    """The counts of this moment; taken before a measurement, and handed to `warnings` after it."""
    busy, stolen, total = _cpu_seconds()
    return Moment(busy, stolen, total, _own_seconds(), _throttle_count())


def warnings(before: Moment, samples: Iterable[np.ndarray], devices: Iterable[str] = ()) -> list[Warned]:
    """Reasons to doubt durations taken since `before`.

    samples: for each artifact (n,) in the order they were taken. devices: what they ran on, as engines name
    it; the GPUs among them are looked at, too.
    """
    found = [*_of_samples(list(samples)), *_of_cpu(before, now())]
    if used := gpus_of(devices):
        states = env.gpu_states() or []
        found += _of_gpus([state for i, state in enumerate(states) if i in used], _gpu_neighbors())
    board = env.jetson()
    if board and board["power_mode"] and not board["power_mode"].startswith("MAXN"):
        found.append(
            Warned(
                "power_mode", f"the board is in power mode {board['power_mode']}, not in its fastest, MAXN"
            )
        )
    return found


def _of_samples(samples: Sequence[np.ndarray]) -> list[Warned]:
    found = []
    spread = max((float(np.percentile(s, 90) / np.median(s)) for s in samples if len(s) > 1), default=1.0)
    if spread > MOST_SPREAD:
        found.append(
            Warned(
                "spread",
                f"the 90th percentile is {spread:.1f} times the median; something disturbed the calls",
            )
        )
    drift = max((_drift(s) for s in samples if len(s) >= QUARTERS_FROM), key=abs, default=0.0)
    if abs(drift) > MOST_DRIFT:
        found.append(
            Warned("drift", f"the median changed by {100 * drift:+.0f} % from the first to the last quarter")
        )
    return found


def _drift(samples: np.ndarray) -> float:
    quarter = len(samples) // 4
    return float(np.median(samples[-quarter:]) / np.median(samples[:quarter])) - 1


def _of_cpu(before: Moment, after: Moment) -> list[Warned]:
    found = []
    cores = env.usable_cores()
    passed = _since(before.total_seconds, after.total_seconds)
    busy = _since(before.busy_seconds, after.busy_seconds)
    if passed and busy is not None:
        all_cores = os.cpu_count() or cores
        seconds = passed / all_cores
        others = max(busy - (after.own_seconds - before.own_seconds), 0) / seconds
        if others > MOST_OTHERS * all_cores:
            found.append(Warned("load", f"other processes used {others:.1f} of {all_cores} cores meanwhile"))
        stolen = (_since(before.stolen_seconds, after.stolen_seconds) or 0) / passed
        if stolen > MOST_STOLEN:
            found.append(
                Warned(
                    "stolen", f"the host kept this virtual machine waiting {100 * stolen:.0f} % of the time"
                )
            )
    elif passed is None and _load_average() > cores * (1 + MOST_OTHERS):
        found.append(Warned("load", f"load average {_load_average():.1f} on {cores} cores"))
    slowed = _since(before.throttled, after.throttled)
    if slowed:
        found.append(
            Warned("throttled", f"the processor was slowed down by its temperature {slowed:.0f} times")
        )
    clock = _clock_share()
    if clock is not None and clock < LEAST_CLOCK:
        found.append(Warned("clock", f"the processor runs at {100 * clock:.0f} % of its highest clock"))
    return found


def gpus_of(devices: Iterable[str]) -> set[int]:
    """Indices of the GPUs among devices such as cpu, cuda and cuda:1."""
    found = (re.fullmatch(r"cuda(?::(\d+))?", device) for device in devices)
    return {int(each[1] or 0) for each in found if each}


def _of_gpus(states: Sequence[dict[str, float | str | None]], neighbors: int) -> list[Warned]:
    found = []
    for state in states:
        clock, highest = state.get("sm_clock_mhz"), state.get("sm_clock_max_mhz")
        said = str(state.get("throttle_reasons"))
        reasons = int(said, 16) if re.fullmatch(r"0x[0-9a-fA-F]+", said) else 0  # not every GPU says
        slow = isinstance(clock, float) and isinstance(highest, float) and clock < LEAST_CLOCK * highest
        if slow and not reasons & IDLE:
            found.append(Warned("gpu_clock", f"the GPU's clock is {clock:.0f} of {highest:.0f} MHz"))
        if reasons & ~HARMLESS_REASONS:
            found.append(Warned("gpu_throttled", f"the GPU holds its clocks back (reasons {said})"))
    if neighbors:
        found.append(Warned("gpu_shared", f"{neighbors} other processes use a GPU of this machine"))
    return found


def _gpu_neighbors() -> int:
    own = {os.getpid(), *(child.pid for child in multiprocessing.active_children())}
    return sum(pid not in own for pid in env.gpu_processes())


def _since(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def _cpu_seconds() -> tuple[float | None, float | None, float | None]:
    """(busy, stolen, total) seconds of all cores since the machine started; None outside Linux."""
    try:
        fields = (PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return None, None, None
    user, nice, system, idle, waiting, irq, soft_irq, stolen = (int(field) / _ticks() for field in fields)
    busy = user + nice + system + irq + soft_irq
    return busy, stolen, busy + idle + waiting + stolen


def _own_seconds() -> float:
    """Processor time of this process, of its ended children, and of those that multiprocessing runs."""
    times = os.times()
    running = sum(_seconds_of(child.pid) for child in multiprocessing.active_children())
    return times.user + times.system + times.children_user + times.children_system + running


def _seconds_of(pid: int | None) -> float:
    try:
        fields = (PROC / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
    except OSError:  # it has ended
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _ticks()


def _ticks() -> int:
    return os.sysconf("SC_CLK_TCK")


def _throttle_count() -> int | None:
    counts = [_number(path) for path in CPUS.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _clock_share() -> float | None:
    """Clock of the fastest core over its highest, where the system says: idle cores are slow by right."""
    shares = []
    for folder in CPUS.glob("cpu[0-9]*/cpufreq"):
        clock, highest = _number(folder / "scaling_cur_freq"), _number(folder / "cpuinfo_max_freq")
        if clock and highest:
            shares.append(clock / highest)
    return max(shares, default=None)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _load_average() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
