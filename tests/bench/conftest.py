"""`tiny`: the module tests/helpers/tiny_onnx.py; artifacts made with it."""

import pytest
import tiny_onnx


@pytest.fixture(scope="session")
def tiny():
    return tiny_onnx


@pytest.fixture
def student(tiny, tmp_path):
    """An artifact with all metadata that names the three colors."""
    return tiny.write(tmp_path / "student.onnx", meta=tiny.metadata())


@pytest.fixture
def photos(tiny, tmp_path):
    """12 solid images in three class folders."""
    return tiny.write_images(tmp_path / "photos")
