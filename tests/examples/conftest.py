"""`tiny`: the module tests/helpers/tiny_onnx.py."""

import pytest
import tiny_onnx


@pytest.fixture(scope="session")
def tiny():
    return tiny_onnx
