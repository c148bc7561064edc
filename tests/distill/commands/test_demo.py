"""`distill demo`: the commands it types, the folder it may replace, and one short run of all of it."""

import csv
import json
import re
import sys
from pathlib import Path

import pytest

from distill import __main__ as cli
from distill.commands import demo
from distill.commands.train import parse
from runtime.errors import UsageError


def test_every_command_of_the_demo_parses_and_trains_with_a_large_kernel_teacher():
    lines = demo.commands_of(demo.Options())
    teacher, student = parse(lines[0][1:]), parse(lines[1][1:])
    assert "kernel_sizes=13" in teacher.student_args and teacher.teacher == "none"
    assert student.control and student.teacher_ckpt.endswith("best.pth") and student.seed == teacher.seed
    assert [line[:2] for line in lines[2:]] == [["export", "onnx"]] * 4 + [["bench", "table"]]


def test_it_replaces_only_a_folder_of_its_own(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="not made by the demo"):
        demo._prepare(mine, overwrite=True)
    assert (mine / "thesis.tex").exists()
    own = tmp_path / "own"
    demo._prepare(own, overwrite=False)
    with pytest.raises(UsageError, match="--overwrite"):
        demo._prepare(own, overwrite=False)
    demo._prepare(own, overwrite=True)
    assert own.is_dir()


def test_a_failing_step_ends_the_demo_with_that_exit_code(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "commands_of", lambda options: [["eval", str(tmp_path / "missing.pth")]])
    assert cli.main(["demo", "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "the demo stopped at: distill eval" in said and said.count("error: ") == 1


@pytest.mark.parametrize(
    ("missing", "extras"),
    [
        (["sklearn"], "demo"),
        (["torch", "timm", "onnx", "onnxruntime", "sklearn"], "export,cpu,demo"),
        (["timm", "onnxruntime"], "train,cpu"),
    ],
)
def test_all_that_is_missing_is_said_in_one_line_before_anything_is_written(
    missing, extras, tmp_path, monkeypatch, capsys
):
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)  # what python does not import and does not find
    assert cli.main(["demo", "--output", str(tmp_path / "out")]) == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f'pip install "large2small[{extras}]"' in said
    assert all(name in said for name in missing) and not (tmp_path / "out").exists()


def test_the_extras_it_names_bring_what_it_needs():
    """pyproject.toml says so; the distribution's name is not always the module's."""
    other = {"yaml": "pyyaml", "sklearn": "scikit-learn"}
    tree = pytest.importorskip("tomllib").loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    brought = tree["project"]["optional-dependencies"]
    for extra, names in demo.NEEDED.items():
        listed = {re.split(r"[<>=\[; ]", each)[0] for each in brought[extra]}
        assert {other.get(name, name) for name in names} <= listed, extra
    assert "large2small[train]" in brought["export"]


@pytest.mark.slow
@pytest.mark.usefixtures("exports_once")
def test_the_pipeline_ends_in_a_table_with_teacher_control_student_and_int8(tmp_path, capsys):
    out = tmp_path / "demo"
    assert (
        cli.main(
            ["demo", "--output", str(out), "--teacher-epochs", "1", "--epochs", "3", "--iterations", "20"]
        )
        == 0
    )
    rows = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    assert len(rows) == 4
    table = json.loads((out / "table.json").read_text())
    text = json.dumps(table)
    for role in ("teacher", "control", "student"):
        assert role in text
    printed = capsys.readouterr().out
    assert "int8" in printed
    result = json.loads((out / "student" / "result.json").read_text())
    trained = json.loads((out / "student" / "metrics.jsonl").read_text().splitlines()[-1])
    assert result["best"]["top1_percent"] >= trained["val_top1_percent"] > 20  # ten classes: chance is 10 %
