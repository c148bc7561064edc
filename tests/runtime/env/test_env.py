"""The machine's fingerprint: complete, JSON, and unknown where not known."""

import json
import os
import platform
import subprocess
from importlib import metadata

import numpy
import pytest

from runtime import env

XEON = (
    "processor\t: 0\nmodel\t\t: 207\nmodel name\t: A Xeon\nflags\t\t: fpu sse avx2 avx512f avx512_vnni"
    " amx_tile amx_int8\n"
)
ORIN = "processor\t: 0\nFeatures\t: fp asimd aes crc32 asimddp\nCPU implementer\t: 0x41\n"
MAC = (
    "hw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_I8MM: 0\nhw.optional.AdvSIMD:"
    " 1\nhw.optional.arm.FEAT_BF16: 1\n"
)


@pytest.fixture
def answers(monkeypatch):
    """A dict from the start of a command line to what it prints; other commands are not there."""
    given = {}

    def run(words, **kwargs):
        line = " ".join(words)
        for start, text in given.items():
            if line.startswith(start):
                return subprocess.CompletedProcess(words, 0 if text is not None else 9, text or "", "")
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", run)
    return given


def test_the_fingerprint_is_json_with_every_condition():
    found = json.loads(json.dumps(env.fingerprint()))
    assert set(found) == {
        "cpu",
        "cpu_features",
        "cores",
        "memory_gib",
        "system",
        "python",
        "gpu",
        "gpu_state",
        "jetson",
        "packages",
    }
    assert found["python"] == platform.python_version()
    assert found["packages"]["numpy"] == numpy.__version__
    assert 1 <= found["cores"] <= os.cpu_count()


def test_cores_are_those_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    assert env.usable_cores() == 3


def test_packages_that_are_not_installed_are_left_out():
    assert env.versions(("numpy", "no-such-package")) == {"numpy": metadata.version("numpy")}


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (XEON, ["avx2", "avx512f", "avx512_vnni", "amx_int8"]),
        (ORIN, ["asimd", "asimddp"]),
        ("flags : fpu\n", []),
        ("", None),
    ],
    ids=["x86", "arm", "an old one", "not said"],
)
def test_the_features_that_matter_are_read_from_cpuinfo(tmp_path, monkeypatch, cpuinfo, expected):
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(env, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(env, "_is_mac", lambda: False)
    assert env.cpu_features() == expected


def test_a_feature_is_a_whole_word(tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text("flags : avx2x xavx_vnni\n")
    monkeypatch.setattr(env, "CPUINFO", tmp_path / "cpuinfo")
    assert env.cpu_features() == []


def test_the_model_is_the_name_and_not_the_number(tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(XEON)
    monkeypatch.setattr(env, "CPUINFO", tmp_path / "cpuinfo")
    assert env.cpu_model() == "A Xeon"


def test_a_mac_is_asked_in_its_own_way(tmp_path, monkeypatch, answers):
    monkeypatch.setattr(env, "CPUINFO", tmp_path / "none")
    monkeypatch.setattr(env, "_is_mac", lambda: True)
    answers |= {"sysctl hw.optional": MAC, "sysctl -n machdep.cpu.brand_string": "Apple M9\n"}
    assert env.cpu_features() == ["asimd", "asimddp", "bf16"]
    assert env.cpu_model() == "Apple M9"


def test_a_machine_without_nvidia_smi_has_no_gpu(answers):
    found = env.fingerprint()
    assert found["gpu"] is None and found["gpu_state"] is None


def test_a_driver_that_fails_or_hangs_counts_as_no_gpu(monkeypatch, answers):
    answers["nvidia-smi"] = None
    assert env.fingerprint()["gpu"] is None

    def hangs(*args, **kwargs):
        raise subprocess.TimeoutExpired("nvidia-smi", 10)

    monkeypatch.setattr(subprocess, "run", hangs)
    assert env.fingerprint()["gpu"] is None


def test_the_gpu_is_the_drivers_line(answers):
    answers["nvidia-smi --query-gpu=name,driver_version"] = "NVIDIA X, 570.1\n"
    assert env.fingerprint()["gpu"] == "NVIDIA X, 570.1"


def test_clocks_and_power_of_every_gpu_are_numbers_or_unknown(answers):
    answers |= {
        "nvidia-smi --query-gpu=clocks.sm": "1980, 1980, 700.00, 31\n345, 2100, [N/A], [Not Supported]\n",
        "nvidia-smi --query-gpu=clocks_event_reasons": None,  # an older driver
        "nvidia-smi --query-gpu=clocks_throttle_reasons": "0x0000000000000000\n0x0000000000000004\n",
    }
    assert env.gpu_states() == [
        {
            "sm_clock_mhz": 1980,
            "sm_clock_max_mhz": 1980,
            "power_limit_w": 700,
            "temperature_c": 31,
            "throttle_reasons": "0x0000000000000000",
        },
        {
            "sm_clock_mhz": 345,
            "sm_clock_max_mhz": 2100,
            "power_limit_w": None,
            "temperature_c": None,
            "throttle_reasons": "0x0000000000000004",
        },
    ]


def test_a_driver_that_knows_no_throttle_reasons_still_tells_the_clocks(answers):
    answers["nvidia-smi --query-gpu=clocks.sm"] = "1980, 1980, 700.00, 31\n"
    assert env.gpu_states()[0] == {
        "sm_clock_mhz": 1980,
        "sm_clock_max_mhz": 1980,
        "power_limit_w": 700,
        "temperature_c": 31,
        "throttle_reasons": None,
    }


def test_a_jetson_says_its_board_release_and_power_mode(tmp_path, monkeypatch, answers):
    (tmp_path / "release").write_text(
        "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n"
    )
    (tmp_path / "model").write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\0")
    monkeypatch.setattr(env, "RELEASE", tmp_path / "release")
    monkeypatch.setattr(env, "MODEL", tmp_path / "model")
    assert env.jetson() == {
        "model": "NVIDIA Jetson AGX Orin Developer Kit",
        "l4t": "36.4.3",
        "power_mode": None,
    }
    answers["nvpmodel -q"] = "NV Power Mode: MODE_30W\n2\n"
    assert env.jetson()["power_mode"] == "MODE_30W"


def test_another_machine_is_not_a_jetson(tmp_path, monkeypatch):
    monkeypatch.setattr(env, "RELEASE", tmp_path / "none")
    assert env.jetson() is None


def test_gpu_memory_is_added_up_by_process(monkeypatch):
    said = "12, 300\n7, 100\n12, 24\n9, [N/A]"
    monkeypatch.setattr(env, "_output", lambda *words: said if "used_memory" in words[1] else None)
    assert env.gpu_memory() == {12: 324 * 2**20, 7: 100 * 2**20}
    monkeypatch.setattr(env, "_output", lambda *_: None)
    assert env.gpu_memory() == {}
