"""The page of results: every figure is that of the files, and nothing on it leads out of it."""

import json
import re
from dataclasses import replace
from html import unescape

import pytest

from bench import __main__ as cli
from bench.results import figures, page, saved
from bench.table import Row
from runtime import ArtifactError

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

ROW = Row(artifact="student fp32", file="a.onnx", role="student", precision="fp32", ran_on="an engine")
FINGERPRINT = {"cpu": "A CPU", "cores": 4, "system": "Linux", "gpu": None, "packages": {}}


def placed(file, top1, p50, **changes):
    values = {"file": file, "top1_percent": top1, "latency_p50_ms": p50, "sha256": file}
    return replace(ROW, **values | changes)


ROWS = [
    placed("teacher.onnx", 90.0, 30.0, role="teacher", artifact="teacher fp32"),
    placed("control.onnx", 80.0, 10.0, role="control", artifact="control fp32"),
    placed("student.onnx", 85.5, 10.0, latency_low_ms=9.5, latency_high_ms=10.5),
    placed("int8.onnx", 85.0, 4.0, precision="int8", top1_low_percent=83.1, top1_high_percent=86.7),
    placed("slow.onnx", 84.0, 12.0),
]


@pytest.fixture
def kept(tmp_path):
    """kept(name, kind, **values): the path of a saved result."""

    def write(name, kind, /, **values):
        path = tmp_path / name
        about = {"fingerprint": FINGERPRINT, "warnings": [], "engine": "onnxruntime 1"}
        saved.write(path, kind, f"distill bench {kind} <b>", about | values)
        return path

    return write


@pytest.fixture
def table(kept):
    return kept(
        "table.json",
        "table",
        rows=[vars(row) for row in ROWS],
        conditions={
            "fingerprint": FINGERPRINT,
            "data": "photos",
            "split": "val",
            "images": 100,
            "warnings": [{"kind": "load", "text": "other processes used 1.5 of 2 cores"}],
        },
    )


def test_the_front_is_what_no_other_beats():
    names = {row.file: figures.beaten_by(row, ROWS) for row in ROWS}
    assert [file for file, better in names.items() if better is None] == [
        "teacher.onnx",
        "student.onnx",
        "int8.onnx",
    ]
    assert names["control.onnx"].file == "student.onnx" and names["slow.onnx"].file in (
        "student.onnx",
        "int8.onnx",
    )
    alike = [placed("a", 1.0, 1.0), placed("b", 1.0, 1.0)]
    assert [figures.beaten_by(row, alike) for row in alike] == [None, None]


def test_the_page_holds_every_figure_and_asks_nobody(table, kept, tmp_path, capsys):
    ratio = {"value": 0.5, "low": 0.4567, "high": 0.6}
    against = {"median_ratio": ratio, "p99_ratio": None, "verdict": "faster"}
    judged = {
        "difference_points": -1.5,
        "difference_low_points": -2.25,
        "difference_high_points": -0.75,
        "agreement_percent": 97.25,
    }
    compare = kept(
        "compare.json",
        "compare",
        artifacts=[
            {"name": "old.onnx", "against_reference": None},
            {"name": "new<&>.onnx", "against_reference": against, "accuracy_against_reference": judged},
        ],
    )
    check = {"name": "drop", "passed": False, "text": "top-1 drop 33.33 points"}
    gate = kept("gate.json", "gate", file="new.onnx", checks=[check])
    argv = ["report", *map(str, (table, compare, gate)), "--output", str(tmp_path / "r.html")]
    assert cli.main(argv) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / f"r.{kind}") for kind in ("html", "md", "png")]
    html, markdown = ((tmp_path / f"r.{kind}").read_text() for kind in ("html", "md"))
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    shown = unescape(re.sub(r"<[^>]+>", "|", html))
    for figure in (
        *("90.00", "80.00", "85.50", "83.10 to 86.70", "3.00x", "-5.00", "+5.00"),
        *("0.500 (0.457 to 0.600)", "-1.50 points (-2.25 to -0.75), agreement 97.25 %", "new<&>.onnx"),
        *("top-1 drop 33.33 points", "other processes used 1.5 of 2 cores", "cpu A CPU, cores 4"),
        "distill bench compare <b>",
    ):
        assert figure in shown and figure in markdown, figure
    assert not re.search(r"https?://|<script|<link|src=\"(?!data:)", html)
    assert "default-src 'none'" in html and 'role="img"' in html and html.count("<h1>") == 1
    assert re.findall(r'<tr class="pale"><th scope="row">(.*?)</th>', html) == [
        "control fp32 (control.onnx)",
        "student fp32 (slow.onnx)",
    ]
    # the control is as fast as the student: pale, though not worse in both
    assert "pale: another is at least as accurate and as fast, and better in one of the two" in html
    assert "square: a precision other than fp32, or an unknown one" in html
    assert cli.main(argv) == 2 and "--overwrite" in capsys.readouterr().err


ROBUST = {
    "file": "a.onnx",
    "clean_error": {"percent": 12.5, "low_percent": 11.25, "high_percent": 14.75},
    "mean_error": None,
    "mean_error_difference": {"percent": 1.5, "low_percent": -0.25, "high_percent": 3.0},
    "mce": {"percent": 105.0, "low_percent": 99.5, "high_percent": 111.0},
    "relative_mce_percent": 98.25,
    "occlusion": {"area": {"percent": 40.5, "low_percent": 38.0, "high_percent": 43.0}},
    "shifts": {"mean_consistency_percent": 96.75},
}


def test_robustness_is_on_the_page_with_the_intervals_of_the_file(kept, tmp_path):
    about = {"n": 200, "data": "photos", "split": "val", "relative_to": "teacher.onnx"}
    path = kept("r.json", "robustness", artifacts=[ROBUST, ROBUST | {"file": "b.onnx"}], **about)
    assert cli.main(["report", str(path), "--output", str(tmp_path / "r.htm")]) == 0
    assert sorted(each.name for each in tmp_path.iterdir()) == ["r.htm", "r.json", "r.md"]
    shown = unescape(re.sub(r"<[^>]+>", "|", (tmp_path / "r.htm").read_text()))
    row = "|".join(
        [
            *("a.onnx", "12.50 (11.25 to 14.75)", "–", "+1.50 (-0.25 to +3.00)", "105.00 (99.50 to 111.00)"),
            *("98.25", "40.50 (38.00 to 43.00)", "–", "96.75", "–"),
        ]
    )
    assert row in shown.replace("||", "|")
    markdown = (tmp_path / "r.md").read_text()
    assert (
        row.replace("|", " | ") in markdown and "n=200 of photos, val; relative to teacher.onnx" in markdown
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"artifacts": 3},
        {"artifacts": [3]},
        {"artifacts": [ROBUST | {"file": None}]},
        {"artifacts": [ROBUST | {"mce": 105.0}]},
        {"artifacts": [ROBUST | {"mce": {"percent": 105.0}}]},
        {"artifacts": [ROBUST | {"shifts": {"mean_consistency_percent": "all"}}]},
        {"artifacts": [ROBUST], "n": "many"},
    ],
)
def test_a_damaged_robustness_is_refused(kept, changes):
    about = {"n": 2, "data": "photos", "split": "val", "relative_to": "teacher.onnx"}
    path = kept("r.json", "robustness", **about | changes)
    with pytest.raises(ArtifactError, match="Measure again with --save"):
        page.page_of([saved.read(path)], mixed=False)


def test_without_accuracy_there_is_a_table_and_no_drawing(kept, tmp_path):
    compute = {"latency_p50_ms": 5.0, "latency_p99_ms": 6.0, "throughput_images_per_s": 200.0}
    path = kept("l.json", "latency", name="student", file="a.onnx", batch=1, compute=compute)
    written = page.write([saved.read(path)], tmp_path / "r.html", mixed=False)
    assert [each.suffix for each in written] == [".html", ".md"]
    assert "<svg" not in written[0].read_text() and "5.00" in written[1].read_text()


@pytest.mark.parametrize(
    "artifacts",
    [
        3,
        [{"against_reference": None}],
        [{"name": "a", "against_reference": {"verdict": 3}}],
        [{"name": "a", "against_reference": {"verdict": "faster", "median_ratio": "half"}}],
        [{"name": "a", "against_reference": {"verdict": "faster", "median_ratio": {"value": "half"}}}],
    ],
)
def test_a_damaged_comparison_is_refused(kept, artifacts):
    path = kept("c.json", "compare", artifacts=artifacts)
    with pytest.raises(ArtifactError, match="Measure again with --save"):
        page.page_of([saved.read(path)], mixed=False)


def test_a_table_of_the_command_becomes_a_page(tiny, student, photos, tmp_path):
    teacher = tiny.write(tmp_path / "teacher.onnx", meta=tiny.metadata(role="teacher"))
    kept = tmp_path / "kept.json"
    argv = ["table", str(student), "--data", str(photos), "--teacher", str(teacher), "--iterations", "12"]
    assert cli.main([*argv, "--warmup", "0", "--threads", "1", "--save", str(kept)]) == 0
    assert cli.main(["report", str(kept), "--output", str(tmp_path / "r.html")]) == 0
    first = json.loads(kept.read_text())["rows"][0]
    assert first["latency_low_ms"] <= first["latency_p50_ms"] <= first["latency_high_ms"]
    assert f"{first['latency_p50_ms']:.3f}" in (tmp_path / "r.md").read_text()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "no result given"),
        (["a.json", "--output", "a.txt"], 2, "ends in .html"),
        (["nowhere.json"], 4, "nowhere.json: no such file"),
    ],
)
def test_what_cannot_be_is_one_line(words, code, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", *words]) == code
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) == 1 and not list(tmp_path.iterdir())
