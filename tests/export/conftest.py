"""A small trained student and real images (scikit-learn's digits) for the tests of `export`.

The student is a ResNet-20 that is right on 99 % of the validation digits; student/train.py made its weights.
"""

from __future__ import annotations

from pathlib import Path

import families
import numpy as np
import pytest
import torch
from exports_once import to_onnx
from stirring import stirred

from distill import checkpoint, models
from export.graph import from_torch
from runtime.images import open_images
from runtime.preprocess import Preprocess

SIZE = (3, 32, 32)


@pytest.fixture(scope="session")
def preprocess() -> Preprocess:
    return Preprocess(
        input_size=SIZE, crop_pct=1.0, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )


@pytest.fixture(scope="session")
def student() -> torch.nn.Module:
    network = models.build("resnet20", 10)
    with np.load(Path(__file__).parent / "student" / "weights.npz") as file:
        network.load_state_dict({name: torch.from_numpy(file[name]) for name in file.files})
    return network.eval()


@pytest.fixture(scope="session")
def student_file(
    student: torch.nn.Module, preprocess: Preprocess, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("student") / "best.pth"
    checkpoint.save(
        checkpoint.Checkpoint(
            model="resnet20",
            model_args={},
            state_dict=student.state_dict(),
            preprocess=preprocess,
            class_names=[str(i) for i in range(10)],
            role="student",
            metrics={"top1": 90.0, "epoch": 3},
            lineage={
                "data": {"train_spec": "digits", "val_spec": "digits"},
                "recipe": {"kd_loss": "nkd"},
                "teacher": {"model": "resnet56", "file": "teacher.pth", "sha256": "ab" * 32},
            },
        ),
        path,
    )
    return path


@pytest.fixture(scope="session")
def student_onnx(student: torch.nn.Module):
    return to_onnx(from_torch.merge(student), SIZE)


@pytest.fixture(scope="session")
def digits_batch(preprocess: Preprocess) -> np.ndarray:
    digits = open_images("digits", "val")
    return preprocess.batch(digits.image(i) for i in range(64))


@pytest.fixture(scope="session")
def repvgg() -> torch.nn.Module:
    """RepVGG with batch norm statistics that are not the defaults, so that a wrong merge shows."""
    return families.network("repvgg")


@pytest.fixture(scope="session")
def convnext_onnx():
    torch.manual_seed(0)
    return to_onnx(from_torch.merge(stirred(models.build("convnext_atto", 7))), (3, 64, 64))
