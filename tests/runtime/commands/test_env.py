"""`distill env`: never a failure, JSON and table, and what is missing with the command that brings it."""

import importlib.util
import io
import json
import subprocess
import sys

import pytest
from rich.console import Console

from distill import __main__ as cli
from runtime.backends.tensorrt import driver
from runtime.cli import front_door
from runtime.commands import env
from runtime.commands.env import CAPABILITIES, FIXES, capability

ALL = {need for needs in CAPABILITIES.values() for each in needs for need in each.split(" or ")}


BARE = """
import importlib.metadata, importlib.util, sys
known = ("numpy", "PIL", "rich", "large2small")
find, version = importlib.util.find_spec, importlib.metadata.version
def absent(name):
    raise importlib.metadata.PackageNotFoundError(name)
importlib.util.find_spec = lambda name, package=None: find(name, package) if name in known else None
importlib.metadata.version = lambda name: version(name) if name in known else absent(name)
from distill.__main__ import main
sys.exit(main(["env", "--json"]))
"""
"""The command, as if no engine and no training package were installed."""


def test_json_is_one_object_with_every_part(capsys):
    assert cli.main(["env", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert set(values) == {"system", "gpu", "tensorrt", "onnxruntime", "openvino", "packages", "capabilities"}
    assert "CPUExecutionProvider" in values["onnxruntime"]["details"]
    assert [each["name"] for each in values["capabilities"]] == list(CAPABILITIES)
    by_name = {each["name"]: each for each in values["capabilities"]}
    assert by_name["run .onnx"]["available"] and by_name["run .onnx"]["install"] == []
    assert by_name["run .plan"]["available"] == (by_name["run .plan"]["missing"] == [])


def test_the_table_is_shown_and_help_has_examples(capsys):
    assert cli.main(["env"]) == 0
    out = capsys.readouterr().out
    assert "this machine" in out and "what can be done here" in out and "ONNX Runtime" in out
    assert "  env " in front_door.overview()


def test_an_unknown_flag_suggests_the_nearest(capsys):
    assert cli.main(["env", "--jsn"]) == 2
    assert "did you mean --json?" in capsys.readouterr().err


def test_it_runs_where_nothing_is_installed():
    """As on a board with only numpy, pillow and rich."""
    done = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert values["onnxruntime"]["error"] == "not installed"
    assert {each["available"] for each in values["capabilities"]} == {False}
    train = values["capabilities"][0]
    assert train["missing"] == ["torch", "timm", "yaml"] and train["install"] == [
        'pip install "large2small[train]"'
    ]


def test_a_library_that_fails_on_import_is_a_reason_and_not_a_failure(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("raise RuntimeError('libnvinfer.so.10:\\n cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    assert env._ask("half_installed") == (None, "RuntimeError: libnvinfer.so.10: cannot open", [])


@pytest.mark.parametrize("name", CAPABILITIES)
def test_every_need_has_a_fix_and_nothing_else_is_needed(name):
    here = dict.fromkeys(ALL, False)
    found = capability(name, CAPABILITIES[name], here)
    assert not found.available and found.missing == list(CAPABILITIES[name])
    assert len(found.install) == len(set(found.install)) and all(
        fix in FIXES.values() for fix in found.install
    )
    assert capability(name, CAPABILITIES[name], dict.fromkeys(ALL, True)) == (name, True, [], [])


def test_either_of_two_is_enough():
    needs = CAPABILITIES["run .plan"]
    here = dict.fromkeys(ALL, False) | {"a GPU": True, "tensorrt_rtx": True, "cuda-python": True}
    assert capability("run .plan", needs, here).available
    assert capability("run .plan", needs, here | {"cuda-python": False}).missing == ["pycuda or cuda-python"]


def test_on_a_jetson_tensorrt_comes_with_the_board():
    here = dict.fromkeys(ALL, True) | {"tensorrt": False}
    assert capability("export trt", CAPABILITIES["export trt CKPT"], here, on_jetson=True).install == [
        env.JETPACK
    ]
    assert capability("export trt", CAPABILITIES["export trt CKPT"], here).install == [
        'pip install "large2small[tensorrt]"'
    ]


GPUS = driver.Driver("13.0", [driver.Gpu(0, "NVIDIA H200", "9.0", 141 * 2**30)])


def test_gpus_are_shown_and_checked_against_nvidia_smi(monkeypatch):
    monkeypatch.setattr(driver, "find", lambda: GPUS)
    monkeypatch.setattr(env.env, "gpu", lambda: "NVIDIA H200, 580.65\nNVIDIA H200, 580.65")
    monkeypatch.setattr(env.env, "gpu_states", lambda: None)
    values = env.collect()
    assert values["gpu"]["note"] == "nvidia-smi lists 2 GPUs, CUDA 1"
    assert {each["name"]: each["missing"] for each in values["capabilities"]}["train on a GPU"] in (
        [],
        ["torch with CUDA"],
    )
    text = rendered(values, 100)
    assert (
        "NVIDIA H200, compute capability 9.0, 141.0 GiB" in text and "nvidia-smi lists 2 GPUs, CUDA 1" in text
    )
    monkeypatch.setattr(env.env, "gpu", lambda: "NVIDIA H200, 580.65")
    assert env.collect()["gpu"]["note"] is None


@pytest.mark.parametrize(
    ("capability", "available"), [("9.0", True), ("8.0", True), ("12.0", True), ("7.5", False)]
)
def test_large_kernels_by_triton_need_a_gpu_that_is_new_enough(monkeypatch, capability, available):
    gpus = driver.Driver("13.0", [driver.Gpu(0, "some GPU", capability, 2**34)])
    monkeypatch.setattr(driver, "find", lambda: gpus)
    monkeypatch.setattr(env, "_torch_cuda", lambda: "13.0")
    find = importlib.util.find_spec
    has_triton = lambda name, *more: find("json" if name == "triton" else name)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", has_triton)
    by_name = {each["name"]: each for each in env.collect()["capabilities"]}
    found = by_name["large kernels by Triton"]
    assert found["available"] == available
    assert found["missing"] == ([] if available else ["a GPU of compute capability 8.0"])


def rendered(values, width):
    screen = Console(width=width, file=io.StringIO(), highlight=False)
    screen.print(env.to_rich(values))
    return screen.file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_and_no_command_is_broken_into_lines(width):
    values = env.collect()
    nothing = dict.fromkeys(ALL, False)
    values["capabilities"] = [
        capability(name, needs, nothing)._asdict() for name, needs in CAPABILITIES.items()
    ]
    lines = rendered(values, width).splitlines()
    assert max(map(len, lines)) <= width
    for fix in set(FIXES.values()):
        if any(fix in each["install"] for each in values["capabilities"]):
            assert any(line.rstrip().endswith(fix) for line in lines), fix
