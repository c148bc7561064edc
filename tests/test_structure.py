"""Rules of the tree as a whole: which folder may import which, what the package ships, what no
file may say.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ARROWS = {"runtime": set(), "distill": {"runtime"}, "export": {"distill", "runtime"}, "bench": {"runtime"}}
HEAVY = {"torch", "timm", "torchvision", "onnx", "onnxscript", "onnxslim", "sklearn"}


def imports(file: Path) -> list[str]:
    """First parts of every absolute import in the file, at any depth."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [name.name.split(".")[0] for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("folder", ARROWS)
def test_imports_only_point_downwards(folder):
    wrong = [
        (str(file.relative_to(ROOT)), name)
        for file in sorted((ROOT / folder).rglob("*.py"))
        for name in imports(file)
        if name in ARROWS and name != folder and name not in ARROWS[folder]
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", ["runtime", "bench"])
def test_what_runs_on_the_edge_names_no_training_package(folder):
    allowed = {("runtime/images.py", "sklearn")}  # the demo's digits, imported when asked for
    wrong = {
        (str(file.relative_to(ROOT)), name)
        for file in (ROOT / folder).rglob("*.py")
        for name in imports(file)
        if name in HEAVY
    }
    assert wrong <= allowed


def test_every_module_says_what_goes_in_and_what_comes_out():
    silent = []
    for folder in ARROWS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            if not text or (file.name not in ("__init__.py", "__main__.py") and "In:" not in text):
                silent.append(str(file.relative_to(ROOT)))
    assert silent == []


def test_every_folder_with_code_is_a_package_that_is_shipped():
    from setuptools import find_packages

    shipped = set(find_packages(str(ROOT), include=[f"{folder}*" for folder in ARROWS]))
    present = {
        str(file.parent.relative_to(ROOT)).replace("/", ".")
        for folder in ARROWS
        for file in (ROOT / folder).rglob("*.py")
    }
    assert shipped == present
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(f'"{folder}*"' in text for folder in ARROWS)


def test_every_dependency_says_why_it_is_there():
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    needed = [
        line for line in lines if re.match(r'\s+"[a-z]', line) and (">=" in line or "large2small[" in line)
    ]
    unexplained = [line for line in needed if "#" not in line and "large2small[" not in line]
    assert needed and unexplained == []
