"""`tiny`: tests/runtime/tiny_onnx.py, loaded by path because test folders are no packages."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny():
    path = Path(__file__).parents[1] / "runtime" / "tiny_onnx.py"
    spec = importlib.util.spec_from_file_location("tiny_onnx_of_examples", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
