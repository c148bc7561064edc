"""The published CIFAR-10 ResNet-20 through the whole export, on real images; skipped where the data
outside the repository is not there.
"""

import json
from pathlib import Path

import numpy as np
import outside
import pytest
import torch

import runtime
from distill import checkpoint, models
from export import __main__ as cli
from runtime.images import open_images

SHARED = outside.path("data")
WEIGHTS = SHARED / "weights" / "resnet20-12fca82f.th"

pytestmark = [
    pytest.mark.usefixtures("exports_once"),
    pytest.mark.slow,
    outside.needs("data", "weights", WEIGHTS.name),
    outside.needs("data", "cifar10"),
]


def tiles(sheet: Path, count: int) -> np.ndarray:
    """The first `count` of the 32 x 32 tiles of a lossless sheet, 100 in a row: uint8 (N, 32, 32, 3)."""
    from PIL import Image

    with Image.open(sheet) as opened:
        rows = np.asarray(opened.convert("RGB").crop((0, 0, 3200, 32 * -(-count // 100))))
    return rows.reshape(-1, 32, 100, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)[:count]


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cifar")
    labels = np.load(SHARED / "cifar10" / "labels.npz")
    for split, sheet, y in (("train", "train_0", labels["y_train"]), ("val", "test", labels["y_test"])):
        np.savez(
            folder / f"{split}.npz",
            x=tiles(SHARED / "cifar10" / f"{sheet}.webp", 2000),
            y=y[:2000],
            class_names=labels["class_names"].astype(str),
        )
    return f"npz:{folder}"


def test_fp32_equals_torch_and_int8_stays_within_half_a_point(cifar, tmp_path, capsys):
    fp32, int8 = tmp_path / "resnet20.onnx", tmp_path / "resnet20.int8.onnx"
    common = ["onnx", str(WEIGHTS), "--model", "resnet20", "--data", cifar, "--json"]
    assert cli.main([*common, "--output", str(fp32), "--verify-size", "64"]) == 0
    assert cli.main([*common, "--output", str(int8), "--int8", "--calib", cifar, "--max-drop", "0.5"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["images"] == 2000 and result["drop_points"] <= 0.5

    network = models.build("resnet20", 10)
    checkpoint.load_weights(network, checkpoint.load_any(WEIGHTS, "resnet20"))
    images = open_images(cifar, "val")
    with runtime.load(fp32) as predictor:
        batch = predictor.preprocess.batch(images.image(i) for i in range(500))
        found = predictor.logits(batch)
    with torch.inference_mode():
        expected = network.eval()(torch.from_numpy(batch)).numpy()
    assert np.abs(found - expected).max() < 1e-4
    assert (found.argmax(1) == expected.argmax(1)).all()
    assert (found.argmax(1) == images.labels[:500]).mean() > 0.89  # published: 91.7 % of all test images
