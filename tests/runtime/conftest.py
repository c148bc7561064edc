"""`tiny`: the module tiny_onnx, loaded by path because test folders are no packages."""

import importlib.util
from pathlib import Path

import pytest


def _load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny():
    return _load(Path(__file__).parent / "tiny_onnx.py")


@pytest.fixture
def student(tiny, tmp_path):
    """An artifact with all metadata that names the three colours."""
    return tiny.write(tmp_path / "student.onnx", meta=tiny.metadata())
