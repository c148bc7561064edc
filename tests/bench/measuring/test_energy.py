"""Energy on a machine made of files, and on doubles of a GPU's library."""

import json
import sys

import pytest

from bench import __main__ as cli
from bench.commands import latency
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


class NVMLError(Exception):
    pass


class Library:
    """A double of pynvml on a machine with four GPUs, the first of which does not count."""

    NVMLError = NVMLError

    def __init__(self):
        self.millijoules, self.names = [0.0] * 4, ["A", "A", "A", "A"]

    def nvmlInit(self):  # its names
        pass

    def nvmlDeviceGetCount(self):
        return 4

    def nvmlDeviceGetName(self, handle):
        return self.names[handle]

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if uuid != "GPU-2":
            raise NVMLError("not found")
        return 2

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        if not handle or self.millijoules[handle] is None:
            raise NVMLError("not supported")
        return self.millijoules[handle]


@pytest.fixture
def library(machine, monkeypatch):
    double = Library()
    monkeypatch.setitem(sys.modules, "pynvml", double)
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
    return double


def test_a_gpu_counts_by_its_library(library):
    (counter,) = energy.counters({0, 1})  # the first does not count
    counter.start(0.0)
    for at in (1.0, 2.0):
        library.millijoules[1] += 3500
        counter.look(at)
    assert (counter.name, counter.joules) == ("gpu", pytest.approx(7.0))
    assert energy.counters() == []


@pytest.mark.parametrize(
    ("visible", "index", "order", "names", "counts"),
    [
        ("3", 0, None, "AAAA", 3),
        ("2,3", 1, None, "AAAA", 3),
        (" GPU-2 ,1", 0, None, "AABB", 2),
        ("GPU-other", 0, None, "AAAA", None),
        ("3", 1, None, "AAAA", None),
        ("", 0, None, "AAAA", None),
        ("MIG-1", 0, None, "AAAA", None),
        (None, 2, None, "AAAA", 2),
        (None, 2, None, "AABB", None),  # CUDA puts the fastest first, and NVML does not know which that is
        ("2", 0, "PCI_BUS_ID", "AABB", 2),
    ],
)
def test_the_gpu_that_counts_is_that_which_cuda_means(
    library, monkeypatch, visible, index, order, names, counts
):
    for name, value in (("CUDA_VISIBLE_DEVICES", visible), ("CUDA_DEVICE_ORDER", order)):
        if value is not None:
            monkeypatch.setenv(name, value)
    library.names = list(names)
    found = energy.counters({index})
    with Meter(found) as meter:
        library.millijoules = [1e3, 2e3, 4e3, 8e3]
    assert meter.energy(1).joules == ({"gpu": library.millijoules[counts] / 1e3} if counts else {})


def test_a_gpu_that_is_lost_meanwhile_has_no_energy_and_ends_nothing(library):
    with Meter(energy.counters({1})) as meter:
        library.millijoules[1] = None
    assert meter.energy(10).joules_per_image["gpu"] is None and meter.energy(10).line == ""


def test_a_look_that_fails_is_left_out_and_does_not_start_again():
    read = iter([900.0, None, 910.0, 950.0, None])
    counter = Counter("cpu", lambda: next(read), wraps_at=1000.0)
    counter.start(0.0)
    for now in (1.0, 2.0, 3.0):
        counter.look(now)
    assert counter.joules == pytest.approx(50) and counter.is_whole
    counter.look(4.0)
    assert not counter.is_whole  # what came after the last look is not known


def test_energy_is_that_of_each_boundary_in_calls_that_are_not_timed(student, monkeypatch, capsys):
    happened = []

    def counters(_):
        happened.append("energy")
        total = [0.0] + [100.0 * len(happened)] * 10_000  # 200 J of the first boundary, 300 J of the second
        return [Counter("cpu", lambda: total.pop(0) if len(total) > 1 else total[0])]

    taken = latency._samples
    monkeypatch.setattr(latency, "_samples", lambda *given: happened.append("timed") or taken(*given))
    monkeypatch.setattr(energy, "counters", counters)
    argv = ["latency", str(student), "--threads", "1", "--iterations", "2", "--warmup", "0"]
    assert cli.main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["energy"]
    assert happened == ["timed", "energy", "energy"]
    assert found["compute"]["joules"] == {"cpu": 200} and found["end_to_end"]["joules"] == {"cpu": 300}
    assert found["compute"]["joules_per_image"]["cpu"] == 200 / found["compute"]["images"]
    assert cli.main([*argv, "--boundary", "compute"]) == 0
    assert "compute: energy, joules per image" in " ".join(capsys.readouterr().out.split())


def test_a_meter_looks_while_calls_run():
    watts = {"now": 5.0}
    meter = Meter([Counter("board", lambda: watts["now"], is_power=True)], clock_of(0.0, 0.0, 10.0))
    with meter:
        pass
    assert meter.energy(5).joules_per_image["board"] == pytest.approx(10) and meter.seconds == 10
