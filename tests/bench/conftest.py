"""`tiny`: the module tests/runtime/tiny_onnx.py, loaded by path because test folders are no packages; artifacts made with it."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny():
    path = Path(__file__).parents[1] / "runtime" / "tiny_onnx.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def student(tiny, tmp_path):
    """An artifact with all metadata that names the three colours."""
    return tiny.write(tmp_path / "student.onnx", meta=tiny.metadata())


@pytest.fixture
def photos(tiny, tmp_path):
    """12 solid images in three class folders."""
    return tiny.write_images(tmp_path / "photos")
