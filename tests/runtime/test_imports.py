"""The arrows between the folders, and what `import runtime` pulls in."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {"runtime", "distill", "export", "bench", "large2small"}
ALLOWED = {"runtime": {"runtime"}, "bench": {"bench", "runtime"}}
HEAVY = ("torch", "timm", "onnx", "torchvision")

BLOCK = "import sys\nfor name in ('torch', 'timm', 'onnx'): sys.modules[name] = None\n"


def imported(path: Path) -> set[str]:
    """First words of every absolute import of a file, also those inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def python(code: str, *args: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_runtime_predicts_with_torch_timm_and_onnx_blocked(student):
    code = (
        BLOCK + "import runtime, runtime.backends.ort, runtime.cli.flags, runtime.env, runtime.files,"
        " runtime.images, numpy\nprint(runtime.load(sys.argv[1]).classify(numpy.full((8, 8, 3), (255, 0,"
        " 0), numpy.uint8))[0][0].label)"
    )
    assert python(code, str(student)) == "red"


def loaded_by(statement: str) -> set[str]:
    """The modules that a statement imports where numpy and dataclasses are there already."""
    before = "import numpy, dataclasses, sys; before = set(sys.modules)"
    return set(python(f"{before}; {statement}; print(*set(sys.modules) - before)").split())


@pytest.mark.parametrize("package", ["runtime", "large2small"])
def test_an_import_loads_little_more_than_numpy(package):
    """No image library, no engine, none of the standard library's slow modules: these come when needed."""
    loaded = loaded_by(f"import {package}")
    outside = {name.split(".")[0] for name in loaded} - {"runtime", "large2small"}
    assert outside - set(sys.stdlib_module_names) == set()
    slow = {"hashlib", "inspect", "subprocess", "importlib.metadata", "asyncio", "email", "http", "zipfile"}
    assert slow & loaded == set()
    ours = {name for name in loaded if name.split(".")[0] in FOLDERS}
    modules = {"artifact", "errors", "files", "predictor", "preprocess"}
    modules |= {"backends", "backends.asked", "backends.registry"}
    more = {"large2small", *(f"large2small.{name}" for name in ("calls", "functions"))}
    assert ours == {"runtime", *(f"runtime.{name}" for name in modules)} | (
        more if package == "large2small" else set()
    )


@pytest.mark.parametrize("folder", ALLOWED)
def test_a_folder_imports_only_the_folders_below_it(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        assert imported(path) & FOLDERS <= ALLOWED[folder], path
        assert not imported(path) & set(HEAVY), path


@pytest.mark.parametrize("folder", sorted(FOLDERS))
def test_nobody_but_the_front_door_imports_bench(folder):
    for path in (ROOT / folder).rglob("*.py"):
        if folder not in ("bench", "large2small"):
            assert "bench" not in imported(path), path


def test_the_walk_sees_imports_inside_functions(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(
        "def f():\n    import torch.nn as nn\n    from export.graph.from_torch import x\n"
        "    from . import distill\n"
    )
    assert imported(path) == {"torch", "export"}
