"""Energy on a machine made of files, and on doubles of a GPU's library."""

import sys
import types

import pytest

from bench.measuring import energy
from bench.measuring.energy import Counter, Meter


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """machine(path, text): a file of a /sys in which nothing else is."""
    monkeypatch.setattr(energy, "SYS", tmp_path)

    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(f"{text}\n")

    return write


def clock_of(*times):
    """A clock that reads these times, and the last one from then on."""
    left = list(times)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


def test_without_counters_nothing_is_invented(machine):
    assert energy.counters({0}) == []
    with Meter([]) as meter:
        pass
    found = meter.energy(10)
    assert found.joules_per_image == {"cpu": None, "gpu": None, "board": None} and found.line == ""


def test_packages_of_a_processor_are_added_and_start_again_at_their_end(machine):
    for number in (0, 1):
        machine(f"class/powercap/intel-rapl:{number}/name", f"package-{number}")
        machine(f"class/powercap/intel-rapl:{number}/energy_uj", 900_000_000)
        machine(f"class/powercap/intel-rapl:{number}/max_energy_range_uj", 1_000_000_000)
    machine("class/powercap/intel-rapl:0:0/name", "core")
    machine("class/powercap/intel-rapl:0:0/energy_uj", 5)
    counters = energy.counters()
    assert [each.name for each in counters] == ["cpu", "cpu"]
    with Meter(counters) as meter:
        machine("class/powercap/intel-rapl:0/energy_uj", 960_000_000)  # 60 J more
        machine("class/powercap/intel-rapl:1/energy_uj", 40_000_000)  # 100 J to its end, then 40
    found = meter.energy(100)
    assert found.joules["cpu"] == pytest.approx(200) and found.joules_per_image["cpu"] == pytest.approx(2)
    assert found.line == "energy, joules per image, whole device: cpu 2"


def test_a_counter_that_may_not_be_read_is_none(machine):
    machine("class/powercap/intel-rapl:0/name", "package-0")
    (energy.SYS / "class/powercap/intel-rapl:0/energy_uj").mkdir()
    assert energy.counters() == []


def test_a_power_is_integrated_over_time():
    watts = iter([10.0, 20.0, 20.0, 0.0])
    counter = Counter("board", lambda: next(watts), is_power=True)
    counter.start(1.0)
    for now in (2.0, 4.0, 5.0):  # 15 J, 40 J, 10 J
        counter.look(now)
    assert counter.joules == pytest.approx(65)


def test_the_input_rail_of_a_jetson_is_volts_times_amperes(machine):
    for number, label, volts, amperes in ((1, "VDD_CPU_GPU_CV", 5000, 999), (2, "VDD_IN", 5000, 2000)):
        machine(f"class/hwmon/hwmon3/in{number}_label", label)
        machine(f"class/hwmon/hwmon3/in{number}_input", volts)
        machine(f"class/hwmon/hwmon3/curr{number}_input", amperes)
    (counter,) = energy.counters()
    assert (counter.name, counter.is_power, counter.read()) == ("board", True, 10.0)


def test_a_gpu_counts_by_its_library(machine, monkeypatch):
    class NVMLError(Exception):
        pass

    consumed = iter([0.0, 5_000.0, 12_000.0, 12_000.0])

    def total(handle):
        if handle != "handle 1":
            raise NVMLError("not supported")
        return next(consumed)

    double = types.SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: f"handle {index}",
        nvmlDeviceGetTotalEnergyConsumption=total,
    )
    monkeypatch.setitem(sys.modules, "pynvml", double)
    (counter,) = energy.counters({0, 1})  # the first does not count
    counter.start(0.0)
    counter.look(1.0)
    assert (counter.name, counter.joules) == ("gpu", pytest.approx(7.0))
    assert energy.counters() == []


def test_a_meter_looks_while_calls_run():
    watts = {"now": 5.0}
    meter = Meter([Counter("board", lambda: watts["now"], is_power=True)], clock_of(0.0, 0.0, 10.0))
    with meter:
        pass
    assert meter.energy(5).joules_per_image["board"] == pytest.approx(10) and meter.seconds == 10
