"""`distill export trt` as on a machine with a GPU: on TEST DOUBLES of TensorRT and of the CUDA driver
(tests/doubles).

The double parses with ONNX, refuses what the strongly typed parser refuses, and computes with ONNX Runtime,
so a plan must decide as its ONNX file does.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import doubles
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.graph import from_torch
from export.int8 import quantize
from export.int8.calibrate import calibrate
from runtime.artifact import Metadata, read_sidecar, seal, sidecar_of
from runtime.images import open_images
from runtime.records import Quantization


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """run(words, version=..., **environment) -> the finished process."""
    folder = tmp_path_factory.mktemp("driver")

    def start(*words, version="10.3", driver=True, **settings):
        environment = doubles.environment(folder, version=version, driver=driver, **settings)
        command = [sys.executable, "-m", *map(str, words)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    start.folder = folder
    return start


@pytest.fixture(scope="module")
def int8_bytes(student_onnx, digits_batch, preprocess):
    plan = quantize.lay_out(student_onnx, "tensorrt")
    made = quantize.quantize(
        student_onnx, plan, calibrate(student_onnx, plan.tensors, [digits_batch], "minmax")
    )
    return from_torch.write_metadata(
        made,
        Metadata(
            precision="int8",
            model="resnet20",
            preprocess=preprocess,
            class_names=list("0123456789"),
            quantization=Quantization(placement="tensorrt"),
        ),
    )


@pytest.fixture
def source(int8_bytes, tmp_path):
    path = tmp_path / "student.int8.onnx"
    path.write_bytes(int8_bytes)
    return path


@pytest.fixture(scope="module")
def some_digits(tmp_path_factory):
    digits = open_images("digits", "val")
    path = tmp_path_factory.mktemp("data") / "val.npz"
    np.savez(path, x=digits.x[:60], y=digits.labels[:60], class_names=np.array(list("0123456789")))
    return f"npz:{path}"


def without_metadata(model):
    """The model without its seal, which would not hold after an edit."""
    del model.metadata_props[:]
    return model


def export(run, *words, **settings):
    return run("export", "trt", *words, "--json", **settings)


@pytest.mark.parametrize("version", ["10.3", "11.4"])
def test_plan_is_run_on_labeled_images_before_it_is_written(run, source, some_digits, version):
    done = export(
        run, source, "--data", some_digits, "--dynamic", "1,2,8", "--timing-cache", "none", version=version
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["state"] == "run" and said["gpu"] == "Test Double GPU" and said["version"].startswith(version)
    assert said["agreement_percent"] == 100 and said["drop_points"] == 0
    assert said["top1_percent"] == said["onnx_top1_percent"] > 50
    assert said["layers"]["source"] == "engine inspector" and said["layers"]["convolutions"]["int8"] == 19
    plan = source.with_suffix(".plan")
    checks = read_sidecar(plan).verification.engine
    assert checks.images == 60
    assert checks.consistency["batch_sizes"] == [1, 8] and checks.consistency["batch_spread"] < 1e-3
    latency = run(
        "bench", "latency", "--engine", plan, "--iterations", 3, "--warmup", 1, "--json", version=version
    )
    assert latency.returncode == 0, latency.stderr
    accuracy = run(
        "bench", "accuracy", "--engine", plan, "--data", some_digits, "--batch", 8, "--json", version=version
    )
    assert accuracy.returncode == 0, accuracy.stderr
    assert json.loads(accuracy.stdout)["top1_percent"] == said["top1_percent"]


def test_without_labeled_images_noise_is_compared_and_that_is_said(run, source):
    said = json.loads(export(run, source, "--timing-cache", "none").stdout)
    assert said["state"] == "run" and said["top1_percent"] is None
    assert said["warnings"][-1] == "accuracy was not measured: no labeled images (--data DIR)"
    assert read_sidecar(source.with_suffix(".plan")).verification.engine.noise


def test_plan_that_is_less_accurate_than_allowed_is_not_written(run, source, some_digits):
    model = onnx.load(source)  # the same network, whose file says that its budget is spent
    entry = next(entry for entry in model.metadata_props if entry.key == "large2small")
    spent = json.loads(entry.value) | {"verification": {"lowered": {"drop": 1.5}}}
    without_metadata(model)
    model.metadata_props.add(key="large2small", value=json.dumps(spent))
    source.write_bytes(seal(model.SerializeToString()))
    done = export(run, source, "--data", some_digits, "--timing-cache", "none")
    assert (
        done.returncode == 1
        and "1.50 below the fp32 student" in done.stderr
        and f"{source} stays" in done.stderr
    )
    assert os.listdir(source.parent) == [source.name]
    assert (
        export(run, source, "--data", some_digits, "--timing-cache", "none", "--max-drop", "2").returncode
        == 0
    )


def test_timing_cache_is_kept_used_and_may_be_damaged(run, source, tmp_path):
    folder = tmp_path / "timing"
    words = (source, "--timing-cache", folder, "--overwrite")
    first = json.loads(export(run, *words).stdout)["timing_cache"]
    (cache,) = folder.iterdir()
    assert (
        first == {"file": cache.name, "accepted": None}
        and "sm9.0" in cache.name
        and "Test_Double_GPU" in cache.name
    )
    assert json.loads(export(run, *words).stdout)["timing_cache"]["accepted"] is True
    cache.write_bytes(b"garbage")
    assert export(run, *words).returncode == 0  # TensorRT makes an empty one of garbage
    assert cache.read_bytes() != b"garbage"


def test_without_a_driver_nothing_of_tensorrt_is_touched(run, source):
    done = export(run, source, driver=False)
    assert (
        done.returncode == 3
        and "TensorRT builds on an NVIDIA GPU only" in done.stderr
        and "--flavor rtx" in done.stderr
    )
    assert os.listdir(source.parent) == [source.name]


def test_opset_that_jetpack_6_does_not_read(run, source):
    model = onnx.load(source)
    model.opset_import[0].version = 21
    onnx.save(without_metadata(model), source)
    done = export(run, source)
    assert done.returncode == 4 and "opset 21; TensorRT 10.3.0 reads up to 20. Give --opset 19" in done.stderr


def test_zero_scale_is_refused_with_the_parsers_words(run, source):
    model = onnx.load(source)
    scale = next(node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear")
    tensor = next(each for each in model.graph.initializer if each.name == scale)
    tensor.CopyFrom(numpy_helper.from_array(np.float32(0), scale))
    onnx.save(without_metadata(model), source)
    done = export(run, source)
    assert done.returncode == 4 and "cannot parse it" in done.stderr and "positive" in done.stderr
    assert os.listdir(source.parent) == [source.name]


def test_plan_of_another_gpu_says_how_to_build_again_and_rebuild_does(run, source):
    plan = source.with_suffix(".plan")
    assert export(run, source, "--timing-cache", "none", "--dynamic", "1,2,4").returncode == 0
    refused = run("bench", "latency", "--engine", plan, LIBCUDA_DOUBLE_CAPABILITY=87)
    assert refused.returncode == 4 and f"distill export trt --rebuild {plan}" in refused.stderr
    again = run(
        "distill", "export", "trt", "--rebuild", plan, "--timing-cache", "none", LIBCUDA_DOUBLE_CAPABILITY=87
    )
    assert again.returncode == 0, again.stderr
    built = read_sidecar(plan).engine
    assert built.compute_capability == "8.7" and built.profiles == [{"min": 1, "opt": 2, "max": 4}]
    opened = run(
        "bench", "latency", "--engine", plan, "--iterations", 2, "--warmup", 1, LIBCUDA_DOUBLE_CAPABILITY=87
    )
    assert opened.returncode == 0, opened.stderr


def test_stripped_plan_runs_with_the_weights_of_its_onnx_file(run, source, some_digits):
    done = export(run, source, "--strip-weights", "--data", some_digits, "--timing-cache", "none")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["state"] == "run" and said["agreement_percent"] == 100
    assert any("weights can be refitted" in line for line in said["warnings"])
    source.unlink()
    refused = run("bench", "latency", "--engine", source.with_suffix(".plan"))
    assert refused.returncode == 4 and source.name in refused.stderr
    assert sidecar_of(source.with_suffix(".plan")).exists()


def without(folder, monkeypatch, *modules):
    """Child processes cannot import these."""
    for name in modules:
        (folder / f"{name}.py").write_text(
            f"raise ModuleNotFoundError(\"No module named '{name}'\", name='{name}')"
        )
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_board_without_torch_builds_and_checks(run, source, some_digits, tmp_path_factory, monkeypatch):
    without(
        tmp_path_factory.mktemp("absent"),
        monkeypatch,
        "torch",
        "timm",
        "yaml",
        "onnxslim",
        "onnxscript",
        "sklearn",
    )
    done = export(run, source, "--data", some_digits, "--timing-cache", "none")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["top1_percent"] > 50
    checkpoint = source.with_suffix(".pth")
    checkpoint.write_bytes(b"a checkpoint would come first")
    refused = export(run, checkpoint, "--data", some_digits, "--overwrite")
    assert refused.returncode == 3 and 'Install it: pip install "large2small[export]"' in refused.stderr


def test_ctrl_c_asks_the_builder_to_stop(run, source, tmp_path):
    environment = doubles.environment(run.folder, TENSORRT_DOUBLE_STEP_SECONDS=1)
    command = [
        sys.executable,
        "-m",
        "distill",
        "export",
        "trt",
        str(source),
        "--timing-cache",
        str(tmp_path / "timing"),
    ]
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # and not deaf to Ctrl-C, as children of a background job are
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    worker = building(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    printed, said = process.communicate(timeout=60)
    assert (
        process.returncode == 130 and printed == "" and said.strip().splitlines()[-1] == "error: interrupted"
    )
    assert os.listdir(source.parent) == [source.name], (
        "no plan, no sidecar, no timing cache, nothing temporary"
    )
    assert not os.path.exists(f"/proc/{worker}")


def building(pid):
    """The id of the builder's process, once the driver is loaded in it and a few steps of the build have
    passed.
    """
    end = time.monotonic() + 60
    while time.monotonic() < end:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if children and "libcuda.so.1" in Path(f"/proc/{children[0]}/maps").read_text():
            time.sleep(2)
            return int(children[0])
        time.sleep(0.05)
    raise AssertionError("no builder was started")
