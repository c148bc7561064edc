"""docs/python.md and the notebook: every line of code in them runs, in order, on the digits."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE, NOTEBOOK = ROOT / "docs" / "python.md", ROOT / "examples" / "first_hour.ipynb"


def blocks() -> list[str]:
    """The page's code, which trains for half as long."""
    found = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert "epochs=4)" in found[0]
    return [found[0].replace("epochs=4)", "epochs=2)"), *found[1:]]


def cells() -> list[str]:
    """The notebook's code, which trains for half as long; a cell that ends with an expression shows its
    value, as a notebook does.
    """
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    first, *others = [shown("".join(cell["source"])) for cell in found if cell["cell_type"] == "code"]
    assert '"epochs": 4}' in first
    return [first.replace('"epochs": 4}', '"epochs": 2}'), *others]


def shown(code: str) -> str:
    tree = ast.parse(code)
    *before, last = tree.body
    if not isinstance(last, ast.Expr) or isinstance(last.value, ast.Call):
        return code
    return ast.unparse(ast.Module(before, [])) + f"\nprint(repr({ast.unparse(last.value)}))"


def run(parts: list[str], folder: Path) -> str:
    """What the parts print, one after the other in one process."""
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(parts)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_code_of_the_page_runs_as_printed_and_prints_what_it_says(tmp_path):
    printed = run(blocks(), tmp_path).splitlines()
    measured = r"(, (top1|teacher_top1|control_top1)=\d+\.\d\d){3}\)"
    assert re.match(r"RunResult\(path='runs/student', student='resnet20'" + measured, printed[0])
    lines = [line for block in blocks() for line in block.splitlines()]
    said = [line.split("  # ")[1] for line in lines if line.strip().startswith("print(") and "error" in line]
    assert len(said) == 2 and set(said) <= set(printed)
    assert (tmp_path / "runs" / "student" / "best.int8.onnx").is_file()


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    printed = run(cells(), tmp_path)
    assert "RunResult(path='runs/teacher'" in printed and "<Predictor runs/student/best.int8.onnx" in printed
    assert re.findall(r"^(fp32|int8): top-1 \d+\.\d\d % \(n=445\)", printed, re.MULTILINE) == ["fp32", "int8"]


def test_the_notebook_is_small_and_holds_no_output():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], len({cell["id"] for cell in notebook["cells"]})) == (
        4,
        len(notebook["cells"]),
    )
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(code) >= 5 and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert NOTEBOOK.stat().st_size < 20_000


def test_the_page_names_every_function_and_every_error():
    import large2small

    text = PAGE.read_text(encoding="utf-8")
    data = {"Metadata", "Prediction", "Predictor", "Preprocess"}
    assert {name for name in large2small.__all__ if f"`{name}" not in text} - data == set()
