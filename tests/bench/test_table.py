"""The trade-off table: differences, speed-ups, the four renderings, the files."""

import csv
import io
import json
from dataclasses import replace

import pytest

from bench import __main__ as cli
from bench import report, table, tables
from bench.commands import table as command
from bench.table import Conditions, Row, Table
from runtime import ArtifactError, UsageError


def row(artifact="student int8", role="student", **changes) -> Row:
    return replace(
        Row(
            artifact=artifact,
            file=f"runs/{role}.onnx",
            role=role,
            precision="int8",
            model="convnext_tiny",
            top1_percent=80.0,
            delta_teacher_points=None,
            delta_control_points=None,
            parameters=28_589_128,
            macs=4_456_000_000,
            file_bytes=29_876_543,
            latency_p50_ms=10.0,
            latency_p99_ms=12.5,
            throughput_images_per_s=98.7,
            end_to_end_p50_ms=15.0,
            speedup=1.0,
            top5_percent=95.0,
            loss_nats=0.8,
            images=10_000,
            skipped=0,
            ran_on="onnxruntime 1.32.0, CPUExecutionProvider, device cpu, 4 threads",
        ),
        **changes,
    )


CONDITIONS = Conditions(
    **{
        "data": "photos/val",
        "split": "val",
        "seed": 0,
        "backend": "onnxruntime",
        "device": "cpu",
        "hint": None,
        "contexts": None,
        "cuda_graph": None,
        "boundary": "compute",
        "input": {},
        "images": 10_000,
        "skipped": 0,
        "batch": 1,
        "iterations": 200,
        "warmup": 20,
        "threads": 4,
        "engine": "onnxruntime 1.32.0",
        "provider": "CPUExecutionProvider",
        "warnings": [],
        "fingerprint": {
            "cpu": "A CPU",
            "cores": 4,
            "gpu": None,
            "python": "3.11",
            "system": "Linux",
            "packages": {"onnxruntime": "1.32.0"},
        },
    }
)


@pytest.fixture
def files(tiny, tmp_path, photos):
    """Teacher 100 %, control 66.67 %, students 100 % and 33.33 %."""
    wrong_red, all_blue = [[0, 0, 1], [0, 1, 0], [0, 1, 0]], [[1, 1, 1], [0, 0, 0], [0, 0, 0]]
    return {
        "data": str(photos),
        "teacher": tiny.write(
            tmp_path / "teacher.onnx", meta=tiny.metadata(role="teacher", parameters=30_000_000, macs=None)
        ),
        "control": tiny.write(tmp_path / "control.onnx", wrong_red, tiny.metadata(role="control")),
        "students": (
            tiny.write(tmp_path / "good.onnx", meta=tiny.metadata()),
            tiny.write(tmp_path / "bad.onnx", all_blue, tiny.metadata(precision="int8")),
        ),
    }


def quick(files, **changes) -> command.Options:
    return command.Options(**files | {"iterations": 5, "warmup": 0, "threads": 1} | changes)


def test_differences_and_speed_ups_by_hand():
    rows = table.with_differences(
        [
            row(role="teacher", top1_percent=90.0, latency_p50_ms=30.0),
            row(role="control", top1_percent=80.0, latency_p50_ms=10.0),
            row(top1_percent=85.5, latency_p50_ms=5.0),
        ]
    )
    assert [r.delta_teacher_points for r in rows] == [None, -10.0, -4.5]
    assert [r.delta_control_points for r in rows] == [None, None, 5.5]
    assert [r.speedup for r in rows] == [1.0, 3.0, 6.0]


def test_intervals_of_the_rows_are_those_of_the_accuracies_and_pairs(files):
    made = command.measure(quick(files))
    control = made.rows[1]  # right on 8 of 12, the teacher on 12
    assert (control.top1_low_percent, control.top1_high_percent) == pytest.approx((39.06, 86.19), abs=0.005)
    assert control.delta_teacher_low_points < -100 / 3 < control.delta_teacher_high_points < 0
    assert made.rows[0].delta_teacher_low_points is None and control.delta_control_low_points is None
    same = made.rows[2]  # right wherever the teacher is
    assert same.delta_teacher_low_points < 0 < same.delta_teacher_high_points
    said = tables.interval_lines(made)
    assert said[0] == "95 % interval, teacher.onnx: top-1 75.75 to 100.00 %"
    assert "Δ teacher -60.94 to" in said[1] and "which is clear" in said[1]
    assert "which cannot be told from none; Δ control" in said[2]


def test_without_a_control_its_difference_is_null():
    rows = table.with_differences([row(role="teacher"), row(top1_percent=70.0)])
    assert [r.delta_control_points for r in rows] == [None, None]


def test_build_measures_teacher_control_and_students_in_this_order(files):
    made = command.measure(quick(files))
    assert [r.artifact for r in made.rows] == ["teacher fp32", "control fp32", "student fp32", "student int8"]
    assert [r.top1_percent for r in made.rows] == pytest.approx([100, 200 / 3, 100, 100 / 3])
    assert [r.balanced_percent for r in made.rows] == pytest.approx([100, 200 / 3, 100, 100 / 3])
    assert [r.delta_teacher_points for r in made.rows][1:] == pytest.approx([-100 / 3, 0, -200 / 3])
    assert [r.delta_control_points for r in made.rows][2:] == pytest.approx([100 / 3, -100 / 3])
    assert (made.rows[0].parameters, made.rows[0].macs) == (30_000_000, None)
    assert made.rows[0].file_bytes == files["teacher"].stat().st_size
    for r in made.rows:
        assert 0 < r.latency_p50_ms <= r.latency_p99_ms
        assert r.end_to_end_p50_ms > r.latency_p50_ms
        assert r.speedup == pytest.approx(made.rows[0].latency_p50_ms / r.latency_p50_ms)
    assert (made.conditions.iterations, made.conditions.images) == (5, 12)


def test_every_artifact_is_fed_its_own_preprocessing(tiny, files, tmp_path):
    # a student for 4 x 4 pixels and another mean, beside a teacher for 8 x 8
    spec = replace(tiny.PLAIN, input_size=(3, 4, 4), mean=(0.5, 0.5, 0.5))
    small = tiny.write(tmp_path / "small.onnx", meta=tiny.metadata(preprocess=spec), size=(4, 4))
    assert command.measure(quick(files, students=(small,))).rows[-1].top1_percent == 100.0


def test_csv_columns_are_the_json_keys_and_null_is_empty():
    made = Table([row(macs=None)], CONDITIONS)
    lines = list(csv.DictReader(io.StringIO(tables.to_csv(made))))
    values = json.loads(tables.to_json(made))["rows"]
    assert list(lines[0]) == list(values[0])
    assert lines[0]["macs"] == ""
    assert values[0]["macs"] is None
    assert float(lines[0]["latency_p50_ms"]) == values[0]["latency_p50_ms"] == 10.0


def test_markdown_is_a_table_with_the_conditions_below():
    text = tables.to_markdown(
        Table(table.with_differences([row("teacher fp32", "teacher"), row(top1_percent=78.5)]), CONDITIONS)
    )
    lines = text.splitlines()
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert lines[3].split(" | ")[:4] == ["| student int8 (`student.onnx`)", "78.50", "-1.50", "–"]
    for words in ("28.6M", "4.5G", "29.9 MB", "1.00x"):
        assert words in lines[3]
    for words in (
        "n=10000 images of photos/val",
        "batch 1, n=200, warm-up 20, onnxruntime 1.32.0",
        "4 threads",
        "boundary compute",
        "A CPU, 4 cores",
    ):
        assert words in text


def test_files_of_one_name_are_told_apart_by_as_many_folders_as_it_takes():
    rows = [
        replace(row("teacher fp32", "teacher"), file="t/best.onnx"),
        replace(row(), file="runs/a/out/best.int8.onnx"),
        replace(row(), file="runs/b/out/best.int8.onnx"),
        replace(row(), file="/elsewhere/best.onnx"),
    ]
    made = Table(table.with_differences(rows), CONDITIONS)
    assert tables.names(made) == [
        "t/best.onnx",
        "a/out/best.int8.onnx",
        "b/out/best.int8.onnx",
        "elsewhere/best.onnx",
    ]
    markdown = tables.to_markdown(made)
    assert "(`a/out/best.int8.onnx`)" in markdown and "(`b/out/best.int8.onnx`)" in markdown
    console = report.console()
    with console.capture() as shown:
        console.print(tables.trade_off(made))
    assert "a/out" in shown.get() and "b/out" in shown.get()


def test_a_folder_that_looks_like_markup_is_shown_as_it_is():
    rows = [replace(row(), file="[red]a/best.onnx"), replace(row(), file="\x1b[31mb/best.onnx")]
    console = report.console()
    with console.capture() as shown:
        console.print(tables.trade_off(Table(table.with_differences(rows), CONDITIONS)))
    assert "[red]a/" in shown.get() and "\\x1b[31mb/" in shown.get() and "\x1b" not in shown.get()


def test_a_file_of_another_name_is_its_name_alone():
    assert report.short_names(["runs/a/best.onnx", "runs/a/best.int8.onnx"]) == [
        "best.onnx",
        "best.int8.onnx",
    ]
    assert report.short_names(["x/y/best.onnx"]) == ["best.onnx"]
    assert report.short_names(["best.onnx", "./best.onnx"]) == ["best.onnx"] * 2  # one file
    assert report.short_names(["/best.onnx", "/a/best.onnx"]) == ["/best.onnx", "a/best.onnx"]


@pytest.mark.parametrize("width", [100, 80, 64])
def test_no_figure_is_cut_whatever_the_width(width):
    from rich.console import Console

    typical = [
        row(
            "teacher fp32",
            "teacher",
            file="runs/slak_tiny/best.onnx",
            latency_p50_ms=1234.5,
            latency_p99_ms=2345.6,
        ),
        row("control fp32", "control"),
        row(file="runs/convnext_tiny.int8.onnx", throughput_images_per_s=12_345.0),
    ]
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(tables.trade_off(Table(table.with_differences(typical), CONDITIONS), width))
    out = console.file.getvalue()
    assert max(map(len, out.splitlines())) <= width
    assert out.count("teacher fp32") == (1 if width == 100 else 2)
    assert "…" not in out  # nothing was cut to make it fit
    for words in ("teacher fp32", "123.45x", "1234", "12.3k", "28.6M", "control.onnx", "-up"):
        assert words in out


def test_the_command_writes_three_files_and_does_not_overwrite(files, tmp_path, capsys):
    students = [str(path) for path in files["students"]]
    argv = [
        "table",
        *students,
        "--data",
        files["data"],
        "--teacher",
        str(files["teacher"]),
        "--iterations",
        "2",
        "--warmup",
        "0",
        "--threads",
        "1",
        "--output",
        str(tmp_path / "out" / "v1.2"),
    ]
    assert cli.main(argv) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["v1.2.csv", "v1.2.json", "v1.2.md"]
    written = json.loads((tmp_path / "out" / "v1.2.json").read_text())
    assert written["conditions"]["fingerprint"]["python"]
    capsys.readouterr()
    assert cli.main(argv) == 2
    assert "v1.2.md exists already. Add --overwrite" in capsys.readouterr().err
    assert cli.main([*argv, "--overwrite"]) == 0


def test_students_may_stand_after_the_flags_and_json_is_one_object(files, capsys):
    argv = [
        "table",
        "--json",
        "--data",
        files["data"],
        "--iterations",
        "2",
        "--warmup",
        "0",
        "--threads",
        "1",
        "--teacher",
        str(files["teacher"]),
        "--control",
        str(files["control"]),
        *map(str, files["students"]),
    ]
    assert cli.main(argv) == 0
    assert [r["role"] for r in json.loads(capsys.readouterr().out)["rows"]] == [
        "teacher",
        "control",
        "student",
        "student",
    ]


def test_a_result_does_not_replace_the_table_of_the_same_name(files, tmp_path):
    with pytest.raises(UsageError, match="--output writes that file, too"):
        quick(files, output=tmp_path / "a", save=tmp_path / "b" / ".." / "a.json")
    assert quick(files, output=tmp_path / "a", save=tmp_path / "b.json").save


def test_no_student_or_the_same_file_twice_is_refused(files):
    with pytest.raises(UsageError, match="no student given"):
        quick(files, students=())
    with pytest.raises(UsageError, match="given twice"):
        quick(files, students=(files["teacher"],))


def test_an_artifact_with_other_classes_is_refused(tiny, files, tmp_path):
    other = tiny.write(tmp_path / "other.onnx", meta=tiny.metadata(class_names=["a", "b", "c"]))
    with pytest.raises(ArtifactError, match=r"a, b, c only in .*other\.onnx"):
        command.measure(quick(files, students=(other,)))


def test_an_artifact_without_preprocessing_is_refused_by_name(tiny, files, tmp_path):
    with pytest.raises(ArtifactError, match=r"foreign\.onnx"):
        command.measure(quick(files, students=(tiny.write(tmp_path / "foreign.onnx"),)))
