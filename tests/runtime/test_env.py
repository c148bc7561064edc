"""The machine's fingerprint: complete, JSON, and unknown where not known."""

import json
import os
import platform
import subprocess
from importlib import metadata

import numpy

from runtime import env


def test_the_fingerprint_is_json_with_every_condition():
    found = json.loads(json.dumps(env.fingerprint()))
    assert set(found) == {"cpu", "cores", "memory_gib", "system", "python", "gpu", "packages"}
    assert found["python"] == platform.python_version()
    assert found["packages"]["numpy"] == numpy.__version__
    assert 1 <= found["cores"] <= os.cpu_count()


def test_cores_are_those_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    assert env.usable_cores() == 3


def test_packages_that_are_not_installed_are_left_out():
    assert env.versions(("numpy", "no-such-package")) == {"numpy": metadata.version("numpy")}


def test_a_machine_without_nvidia_smi_has_no_gpu(monkeypatch):
    def missing(*args, **kwargs):
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", missing)
    assert env.fingerprint()["gpu"] is None


def test_a_driver_that_fails_or_hangs_is_no_gpu(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 9, "failed", ""))
    assert env.fingerprint()["gpu"] is None

    def hangs(*args, **kwargs):
        raise subprocess.TimeoutExpired("nvidia-smi", 10)

    monkeypatch.setattr(subprocess, "run", hangs)
    assert env.fingerprint()["gpu"] is None


def test_the_gpu_is_the_drivers_line(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, "NVIDIA X, 570.1\n", ""))
    assert env.fingerprint()["gpu"] == "NVIDIA X, 570.1"
