"""What only a CUDA GPU can show: mixed precision, GradScaler, compile, the CUDA provider, plans. Skipped
without one.

The CUDA layer itself: tests/runtime/test_cuda.py.
"""

import importlib.util
import json
import threading

import numpy as np
import onnxruntime
import pytest
import torch

import runtime
from distill import __main__ as cli
from runtime.backends.tensorrt import cuda
from runtime.errors import MissingError

pytestmark = pytest.mark.gpu
needs_torch = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")


@pytest.fixture(scope="module")
def striped(tmp_path_factory) -> str:
    """An npz: data set that any network learns: horizontal against vertical stripes."""
    folder = tmp_path_factory.mktemp("striped")
    generator = np.random.default_rng(0)
    for split, count in (("train", 256), ("val", 64)):
        y = np.arange(count) % 2
        stripes = (np.arange(32) // 4 % 2 * 150).astype(np.uint8)
        x = generator.integers(0, 60, (count, 32, 32, 3), dtype=np.uint8)
        x += np.where(y[:, None, None, None] == 0, stripes[None, :, None, None], stripes[None, None, :, None])
        np.savez(folder / f"{split}.npz", x=x, y=y, class_names=np.array(["rows", "columns"]))
    return f"npz:{folder}"


BF16, FP16, COMPILE = ["--amp", "--amp-dtype", "bf16"], ["--amp", "--amp-dtype", "fp16"], ["--compile"]
GRAPH = ["--teacher-graph", "--teacher-stream"]


@needs_torch
@pytest.mark.parametrize("flags", [BF16, FP16, COMPILE, GRAPH], ids=" ".join)
def test_teacher_and_student_train_on_the_gpu(striped, tmp_path, flags):
    common = [
        "--data",
        striped,
        "--student",
        "resnet20",
        "--epochs",
        "3",
        "--batch",
        "32",
        "--lr",
        "3e-3",
        "--device",
        "cuda",
    ]
    assert cli.main(["train", "--teacher", "none", *common, "--output", str(tmp_path / "t")]) == 0
    teacher = str(tmp_path / "t" / "best.pth")
    assert (
        cli.main(["train", "--teacher-ckpt", teacher, *common, *flags, "--output", str(tmp_path / "s")]) == 0
    )
    last = json.loads((tmp_path / "s" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["val_top1_percent"] > 90
    assert 0 < last["teacher_share_of_step"] < 1


@needs_torch
def test_the_cuda_provider_gives_the_same_logits_as_the_cpu(striped, tmp_path):
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA provider")
    assert (
        cli.main(
            [
                "train",
                "--teacher",
                "none",
                "--data",
                striped,
                "--student",
                "resnet20",
                "--epochs",
                "1",
                "--batch",
                "32",
                "--output",
                str(tmp_path / "t"),
            ]
        )
        == 0
    )
    assert (
        cli.main(["export", "onnx", str(tmp_path / "t" / "best.pth"), "--output", str(tmp_path / "t.onnx")])
        == 0
    )
    batch = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    with runtime.load(tmp_path / "t.onnx") as cpu, runtime.load(tmp_path / "t.onnx", device="cuda") as gpu:
        assert gpu.provider == "CUDAExecutionProvider"
        np.testing.assert_allclose(gpu.logits(batch), cpu.logits(batch), atol=5e-3)


PRECISIONS = {
    "fp32": [],
    "fp16": ["--fp16"],
    "int8": ["--int8", "--calib-size", "64"],
    "int8+fp16": ["--int8", "--fp16", "--calib-size", "64"],
}


@pytest.fixture(scope="module")
def student(striped, tmp_path_factory) -> str:
    if importlib.util.find_spec("tensorrt") is None:
        pytest.skip("TensorRT is not installed")
    try:
        cuda.open_device().close()
    except MissingError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("student")
    assert (
        cli.main(
            [
                "train",
                "--teacher",
                "none",
                "--data",
                striped,
                "--student",
                "resnet20",
                "--epochs",
                "3",
                "--batch",
                "32",
                "--lr",
                "3e-3",
                "--output",
                str(folder),
            ]
        )
        == 0
    )
    return str(folder / "best.pth")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_plan_decides_as_its_onnx_file(student, striped, tmp_path, capsys, precision):
    plan = tmp_path / "student.plan"
    capsys.readouterr()
    assert (
        cli.main(
            [
                "export",
                "trt",
                student,
                *PRECISIONS[precision],
                "--data",
                striped,
                "--dynamic",
                "1,8,64",
                "--output",
                str(plan),
                "--json",
            ]
        )
        == 0
    )
    said = json.loads(capsys.readouterr().out)
    assert said["state"] == "run" and said["agreement_percent"] > 95 and said["top1_percent"] > 90
    (source,) = tmp_path.glob("*.onnx")
    batch = np.random.default_rng(0).standard_normal((33, 3, 32, 32)).astype(np.float32)
    with runtime.load(source, device="cpu") as reference, runtime.load(plan) as engine:
        expected, found = reference.logits(batch), engine.logits(batch)
    close = 1e-2 if precision == "fp32" else 0.2  # of the largest logit; TF32 is on
    assert np.abs(found - expected).max() < close * np.abs(expected).max()


@pytest.mark.parametrize("graphs", [False, True], ids=["plain", "CUDA graphs"])
def test_plan_in_threads_ten_thousand_times_without_a_leak(student, striped, tmp_path, graphs):
    plan = tmp_path / "student.plan"
    assert (
        cli.main(
            [
                "export",
                "trt",
                student,
                "--data",
                striped,
                "--dynamic",
                "1,1,2",
                "4,8,64",
                "--output",
                str(plan),
            ]
        )
        == 0
    )
    try:
        device = cuda.open_device(0, "cuda-python" if graphs else None)
    except MissingError as error:
        pytest.skip(str(error))
    batches = [
        np.random.default_rng(seed).standard_normal((count, 3, 32, 32)).astype(np.float32)
        for seed, count in enumerate((1, 2, 8, 64))
    ]
    with runtime.load(plan, contexts=2, cuda_graph=graphs) as engine:
        wanted, failures = [engine.logits(batch) for batch in batches], []

        def work() -> None:
            for turn in range(1250):
                found = engine.logits(batches[turn % 4])
                if not np.array_equal(found, wanted[turn % 4]):
                    failures.append(turn)

        def in_threads() -> int:
            threads = [threading.Thread(target=work) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            with device.active():
                return device.free_memory()

        before = in_threads()
        assert in_threads() == before and not failures
    device.close()
