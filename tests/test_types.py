"""Checked types: which modules are checked how, and what a type checker of a user gets with the wheel."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("runtime", "distill", "export", "bench", "large2small")


def settings() -> dict:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]


def unchecked() -> list[str]:
    return [
        name
        for override in settings()["overrides"]
        if override.get("ignore_errors")
        for name in override["module"]
    ]


def test_runtime_and_bench_are_checked_strictly():
    loosened = [name for override in settings()["overrides"] for name in override["module"]]
    assert settings()["strict"] is True and set(settings()["packages"]) == set(PACKAGES)
    assert [name for name in loosened if name.split(".")[0] in ("bench", "large2small", "*")] == []


def test_every_module_is_checked():
    assert unchecked() == []


def test_every_finding_that_is_ignored_has_its_code_and_a_reason():
    bare = [
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for folder in ("runtime", "bench", "large2small")
        for file in sorted((ROOT / folder).rglob("*.py"))
        for line in file.read_text(encoding="utf-8").splitlines()
        if "type: ignore" in line and not re.search(r"# type: ignore\[[a-z-]+(, [a-z-]+)*\]  # \w", line)
    ]
    assert bare == []


USE = """
from pathlib import Path
import large2small
run = large2small.train(data="digits", student_args={"width": 0.5}, lr=None, output=Path("a"), control=True)
same: large2small.RunResult = run
points: float | None = run.control_top1
file = large2small.export_onnx(run.checkpoint, int8=True, output="a.onnx")
with large2small.load(file) as predictor:
    label: str = predictor.classify("cat.jpg")[0][0].label
p50: float = large2small.bench_latency(file, hint="latency").timings["compute"].summary.percentiles_ms[50]
large2small.train(epoch=3)
large2small.train(epochs="3")
large2small.bench_latency(file, hint="speed")
large2small.export_onnx()
"""


@pytest.mark.slow
def test_a_type_checker_knows_the_keywords_and_results_of_large2small(tmp_path):
    (tmp_path / "use.py").write_text(USE)
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\n[mypy-torch.*,timm.*,torchvision.*,onnx.*,rich.*,PIL.*]\nfollow_imports = skip\n"
    )  # no type of theirs is in an answer, and reading them takes longer than all the rest
    checker = [sys.executable, "-m", "mypy", "--strict", "--config-file=mypy.ini", "--ignore-missing-imports"]
    done = subprocess.run(
        [*checker, "--follow-imports=silent", "use.py"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    found = re.findall(r"^use\.py:(\d+): error: (.*)", done.stdout, flags=re.MULTILINE)
    assert [int(line) for line, _ in found] == [11, 12, 13, 14], done.stdout + done.stderr
    assert 'did you mean "epochs"?' in found[0][1] and "Literal['latency', 'throughput']" in found[2][1]


def test_the_wheel_has_types_and_recipes(tmp_path):
    # the build backend; not imported here, where another package may have imported distutils before
    if int(metadata.version("setuptools").split(".")[0]) < 77:
        pytest.skip("the build backend needs setuptools 77 or newer")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    made = subprocess.run(
        [sys.executable, "-c", build, "wheel"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    names = zipfile.ZipFile(tmp_path / "wheel" / made.stdout.split()[-1]).namelist()
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    beside = [file for kind in ("*.yaml", "*.j2") for file in (ROOT / "distill").rglob(kind)]
    present = {str(file.relative_to(ROOT)) for file in beside}
    assert len(present) >= 5 and present <= set(names)
