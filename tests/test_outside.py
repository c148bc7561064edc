"""Data outside the repository is read through one variable, and a test that misses it says so."""

import os
import re
import subprocess
import sys
from pathlib import Path

import outside

TESTS = Path(__file__).parent


def asked(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess:
    """pytest on one test that needs `weights/a.pth`, in a process of its own."""
    (tmp_path / "test_it.py").write_text(
        "import outside\n\n"
        "def test_it():\n"
        "    assert outside.needed('weights', 'a.pth').read_text() == 'here'\n"
    )
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "test_it.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(TESTS / "helpers")} | environment,
        capture_output=True,
        text=True,
    )


def test_the_folder_that_the_variable_names_is_read(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "a.pth").write_text("here")
    assert "1 passed" in asked(tmp_path, L2S_TEST_DATA=str(tmp_path)).stdout


def test_a_skip_names_the_variable_and_what_is_missing(tmp_path):
    found = asked(tmp_path, L2S_TEST_DATA=str(tmp_path)).stdout
    assert "1 skipped" in found
    assert re.search(r"SKIPPED.*weights/a\.pth.*L2S_TEST_DATA", found)


def test_a_variable_that_names_no_folder_is_an_error_and_no_skip(tmp_path):
    found = asked(tmp_path, L2S_TEST_DATA=str(tmp_path / "nowhere"))
    assert found.returncode not in (0, 5) and "nowhere: no such folder" in found.stdout + found.stderr


def test_without_the_variable_it_is_the_folder_beside_the_checkout(monkeypatch):
    monkeypatch.delenv(outside.VARIABLE, raising=False)
    assert outside.folder() == TESTS.resolve().parents[1] / "shared"


def test_no_other_test_looks_beside_the_checkout():
    beside = re.compile(r"""(parents\[\d\]|ROOT)\.parent\b|parents\[\d\] / ["']shared["']""")
    assert beside.search('Path(__file__).parents[2].parent / "data"') and beside.search("ROOT.parent")
    read = {file: file.read_text(encoding="utf-8") for file in TESTS.rglob("*.py")}
    wrong = {file.name for file, text in read.items() if beside.search(text)}
    assert wrong == {"outside.py", Path(__file__).name}
