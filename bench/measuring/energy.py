"""Energy that calls take, where the machine counts it: RAPL of x86 processors, NVML, the rails of a Jetson.

In:  the counters of this machine; calls that happen between entering and leaving a `Meter`.
Out: `Energy`: joules by counter, for each image; None where there is no counter, or it cannot be read.
Elsewhere: the calls (bench.clock.latency), clocks and throttling (runtime.env.conditions).

A counter counts the whole processor, GPU or board, whatever else runs on it.
"""

from __future__ import annotations

import functools
import importlib
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ..clock import latency

SYS = Path("/sys")
MOST_SECONDS = 5.0
"""Longest time for which calls are repeated to count their energy."""
EVERY = 0.05
"""Seconds between two looks at a power, of which the energy is the integral, or at a counter that starts
again."""


@dataclass(frozen=True)
class Energy:
    """What was counted while calls ran."""

    joules: dict[str, float]
    """By counter: cpu (RAPL's packages), gpu (NVML), board (a Jetson's input rail)."""
    seconds: float
    images: int

    @property
    def joules_per_image(self) -> dict[str, float | None]:
        """By counter; None where this machine has none."""
        known = {name: joules / self.images for name, joules in self.joules.items() if self.images}
        return {name: known.get(name) for name in ("cpu", "gpu", "board")}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"joules_per_image": self.joules_per_image}

    @property
    def line(self) -> str:
        """For a person; empty where nothing was counted."""
        shown = [f"{name} {value:.3g}" for name, value in self.joules_per_image.items() if value is not None]
        return f"energy, joules per image, whole device: {', '.join(shown)}" if shown else ""


@dataclass
class Counter:
    """Joules counted until now, by differences of a counter or by integrating a power."""

    name: str
    read: Callable[[], float | None]
    """Joules, or watts where `is_power`; None where it cannot be read at the moment."""
    is_power: bool = False
    wraps_at: float = 0.0
    """Joules after which it starts again at 0; 0: never."""
    joules: float = 0.0
    last: float | None = None
    when: float = 0.0
    is_whole: bool = False
    """Was it read at the start and at the last look? Else its joules are not those of all calls."""

    def start(self, now: float) -> None:
        """Begin to count."""
        self.joules, self.last, self.when = 0.0, self.read(), now
        self.is_whole = self.last is not None

    def look(self, now: float) -> None:
        """Count what has passed since the last look that could read it."""
        value, last = self.read(), self.last
        self.is_whole = value is not None and last is not None
        if value is None or last is None:
            return
        if self.is_power:
            self.joules += (value + last) / 2 * (now - self.when)
        else:
            passed = value - last
            self.joules += passed + self.wraps_at if passed < 0 and self.wraps_at else max(passed, 0.0)
        self.last, self.when = value, now


class Meter:
    """Counts between entering and leaving; a thread looks again and again, sleeping in between."""

    def __init__(self, counters: Iterable[Counter], clock: Callable[[], float] = time.perf_counter) -> None:
        self.counters, self.clock = list(counters), clock
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.seconds = 0.0

    def __enter__(self) -> Meter:
        self.seconds = -self.clock()
        for counter in self.counters:
            counter.start(self.clock())
        if self.counters:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self.counters:
            self._thread.join()
        self._look()
        self.seconds += self.clock()

    def energy(self, images: int) -> Energy:
        """What was counted, for so many images; without a counter that failed, and those of the same name."""
        names = dict.fromkeys(counter.name for counter in self.counters)
        joules = {
            name: math.fsum(counter.joules for counter in self.counters if counter.name == name)
            for name in names
            if all(counter.is_whole for counter in self.counters if counter.name == name)
        }
        return Energy(joules, self.seconds, images)

    def _watch(self) -> None:
        while not self._ended.wait(EVERY):
            self._look()

    def _look(self) -> None:
        for counter in self.counters:
            counter.look(self.clock())


def measure(call: Callable[[], Any], known: list[Counter], batch: int, seconds: float) -> Energy:
    """Of calls on `batch` images each, for about so many seconds; without counters nothing is called."""
    if not known:
        return Energy({}, 0.0, 0)
    with Meter(known) as meter:
        made = len(latency.measure(call, warmup=0, duration=seconds))
    return meter.energy(batch * made)


def counters(gpus: Iterable[int] = ()) -> list[Counter]:
    """Those of this machine that can be read. gpus: indices of the GPUs that the artifact runs on."""
    return [*_rapl(), *_rails(), *_nvml(gpus)]


def _rapl() -> list[Counter]:
    """Packages of x86 processors; the files are readable by root alone on most systems."""
    found = []
    for folder in sorted((SYS / "class" / "powercap").glob("intel-rapl:*")):
        name, energy = _text(folder / "name"), folder / "energy_uj"
        if name and name.startswith("package") and _number(energy) is not None:
            most = _joules(folder / "max_energy_range_uj") or 0.0
            found.append(Counter("cpu", functools.partial(_joules, energy), wraps_at=most))
    return found


def _rails() -> list[Counter]:
    """The input rail of a Jetson: VDD_IN, or on some boards another whose name says so."""
    for folder in sorted((SYS / "class" / "hwmon").glob("hwmon*")):
        for label in sorted(folder.glob("in*_label")):
            number = re.sub(r"\D", "", label.name)
            volts, amperes = folder / f"in{number}_input", folder / f"curr{number}_input"
            is_input = re.fullmatch(r"VDD_IN|POM_5V_IN|SYS_VIN\w*", _text(label) or "")
            if is_input and _number(volts) is not None and _number(amperes) is not None:
                return [Counter("board", functools.partial(_watts, volts, amperes), is_power=True)]
    return []


def _nvml(gpus: Iterable[int]) -> list[Counter]:
    """Through the package nvidia-ml-py where it is installed; GPUs from Volta on count their energy. gpus: as
    CUDA numbers them.
    """
    if not (wanted := sorted(gpus)):
        return []
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # not installed, or no driver: nothing that counts
        return []
    found = []
    for index in wanted:
        try:
            handle = _handle(nvml, index)
            if handle is None:
                continue
            nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except nvml.NVMLError:
            continue
        found.append(Counter("gpu", functools.partial(_joules_of, nvml, handle)))
    return found


def _handle(nvml: Any, index: int) -> Any:
    """Of the GPU that CUDA numbers so: NVML knows nothing of CUDA_VISIBLE_DEVICES. None where it is not told
    which one that is. Raises NVMLError.
    """
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is None:
        chosen = str(index)
    else:
        named = [word.strip() for word in visible.split(",")]
        chosen = named[index] if index < len(named) else ""
    if chosen.isdecimal():
        is_ordered = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or nvml.nvmlDeviceGetCount() == 1
        return nvml.nvmlDeviceGetHandleByIndex(int(chosen)) if is_ordered or _are_alike(nvml) else None
    return nvml.nvmlDeviceGetHandleByUUID(chosen) if chosen.startswith("GPU-") else None


def _are_alike(nvml: Any) -> bool:
    """Are all GPUs of one model? CUDA puts the fastest first, and else goes by the bus as NVML does."""
    handles = [nvml.nvmlDeviceGetHandleByIndex(each) for each in range(nvml.nvmlDeviceGetCount())]
    return len({nvml.nvmlDeviceGetName(handle) for handle in handles}) == 1


def _joules_of(nvml: Any, handle: Any) -> float | None:
    """NVML counts millijoules."""
    try:
        return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
    except nvml.NVMLError:  # such as a GPU that was lost
        return None


def _watts(volts: Path, amperes: Path) -> float | None:
    """Of files in millivolts and milliamperes."""
    volt, ampere = _number(volts), _number(amperes)
    return None if volt is None or ampere is None else volt * ampere / 1e6


def _joules(file: Path) -> float | None:
    """Of a file in microjoules."""
    number = _number(file)
    return None if number is None else number / 1e6


def _number(file: Path) -> float | None:
    try:
        return float(_text(file) or "")
    except ValueError:
        return None


def _text(file: Path) -> str | None:
    try:
        return file.read_text().strip()
    except OSError:
        return None
