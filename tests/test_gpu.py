"""What only a CUDA GPU can show: mixed precision, GradScaler, events, compile, the CUDA provider. Skipped without one."""

import json

import numpy as np
import onnxruntime
import pytest
import torch

from distill import cli

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")]


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


@pytest.mark.parametrize("flags", [BF16, FP16, COMPILE], ids=" ".join)
def test_teacher_and_student_train_on_the_gpu(striped, tmp_path, flags):
    common = ["--data", striped, "--student", "resnet20", "--epochs", "3", "--batch", "32", "--lr", "3e-3", "--device", "cuda"]
    assert cli.main(["train", "--teacher", "none", *common, "--output", str(tmp_path / "t")]) == 0
    teacher = str(tmp_path / "t" / "best.pth")
    assert cli.main(["train", "--teacher-ckpt", teacher, *common, *flags, "--output", str(tmp_path / "s")]) == 0
    last = json.loads((tmp_path / "s" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["val_top1_percent"] > 90
    assert 0 < last["teacher_share_of_step"] < 1


def test_the_cuda_provider_gives_the_same_logits_as_the_cpu(striped, tmp_path):
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA provider")
    import runtime

    assert cli.main(["train", "--teacher", "none", "--data", striped, "--student", "resnet20", "--epochs", "1", "--batch", "32",
                     "--output", str(tmp_path / "t")]) == 0
    assert cli.main(["export", "onnx", str(tmp_path / "t" / "best.pth"), "--output", str(tmp_path / "t.onnx")]) == 0
    batch = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    with runtime.load(tmp_path / "t.onnx") as cpu, runtime.load(tmp_path / "t.onnx", device="cuda") as gpu:
        assert gpu.provider == "CUDAExecutionProvider"
        np.testing.assert_allclose(gpu.logits(batch), cpu.logits(batch), atol=5e-3)
