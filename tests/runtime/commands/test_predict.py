"""`distill predict`: the answers of `classify` in every form, unreadable images, what is not exported."""

import csv
import io
import json
import math
import subprocess
import sys

import pytest
import tiny_onnx
from PIL import Image

from runtime.cli import front_door
from runtime.commands import predict

E = math.e  # logits of a pure color are 0, 0, 1
BEST, OTHER = E / (E + 2), 1 / (E + 2)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, color in tiny_onnx.COLORS.items():
        Image.new("RGB", (10, 8), color).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def run(student, capsys):
    def start(*words, file=student):
        code = front_door.main(["predict", str(file), *map(str, words)])
        return code, *capsys.readouterr()

    return start


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_lines_have_the_image_then_label_and_probability_of_each_class(run, photos, batch):
    code, out, err = run(photos, "--top", 2, "--batch", batch)
    assert (code, err) == (0, "")
    rows = [line.split("\t") for line in out.splitlines()]
    assert [row[0] for row in rows] == [str(photos / f"{name}.png") for name in ("blue", "green", "red")]
    assert [row[1::2] for row in rows] == [["blue", "green"], ["green", "blue"], ["red", "blue"]]
    assert all(row[2::2] == [f"{BEST:.4f}", f"{OTHER:.4f}"] for row in rows)


def test_json_is_one_object_a_line(run, photos):
    code, out, _ = run(photos / "red.png", photos / "blue.png", "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [each["image"] for each in found] == [
        str(photos / "red.png"),
        str(photos / "blue.png"),
    ]
    assert [guess["label"] for guess in found[0]["classes"]] == ["red", "blue", "green"]
    assert found[0]["classes"][0] == {"label": "red", "index": 2, "probability": pytest.approx(BEST)}


def test_csv_has_a_line_for_each_image_and_class(run, photos):
    rows = list(csv.DictReader(io.StringIO(run(photos, "--csv", "--top", 3)[1])))
    assert len(rows) == 9
    assert rows[8] == {
        "image": str(photos / "red.png"),
        "rank": "3",
        "label": "green",
        "index": "1",
        "probability": f"{OTHER:.6f}",
    }


@pytest.mark.parametrize("form", [(), ("--json",), ("--csv",)])
def test_an_unreadable_image_is_named_and_the_others_are_done(run, photos, form):
    (photos / "broken.png").write_bytes(b"\x89PNG broken")
    code, out, err = run(photos, *form, "--batch", 2)
    assert code == 1 and out.count("red.png") >= 1 and out.count("blue.png") >= 1
    lines = err.splitlines()
    assert len(lines) == 2 and "broken.png: not a readable image" in lines[0]
    assert lines[1] == "error: 1 of 4 images could not be read"
    if form == ("--json",):
        broken = [each for each in map(json.loads, out.splitlines()) if "error" in each]
        assert [each["image"] for each in broken] == [str(photos / "broken.png")]


def test_names_that_would_break_a_line_or_start_a_formula_are_written_as_text(tmp_path, run, photos):
    strange = tiny_onnx.write(
        tmp_path / "s.onnx", meta=tiny_onnx.metadata(class_names=["=1+1", "a\tb\x1b[31m", "red\nline"])
    )
    code, out, _ = run(photos / "red.png", file=strange)
    assert code == 0 and out.count("\n") == 1 and "\x1b" not in out
    assert out.split("\t")[1:6:2] == ["red\\nline", "=1+1", "a\\tb\\x1b[31m"]
    _, out, _ = run(photos / "red.png", "--csv", file=strange)
    assert [row[2] for row in csv.reader(io.StringIO(out))][2] == "'=1+1"


def test_a_checkpoint_or_a_run_folder_is_answered_with_the_command_that_exports_it(tmp_path, run, photos):
    (tmp_path / "run").mkdir()
    checkpoint = tmp_path / "run" / "best.pth"
    checkpoint.write_bytes(b"weights")
    for given in (checkpoint, checkpoint.parent):
        code, out, err = run(photos, file=given)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert (
            f"distill export onnx {checkpoint}; then: distill predict {checkpoint.with_suffix('.onnx')}"
            in err
        )


def test_other_bad_input_is_one_line(tmp_path, run, photos):
    foreign = tiny_onnx.write(tmp_path / "foreign.onnx")
    for words, file, said in (
        ((photos,), tmp_path / "none.onnx", "no such file"),
        ((photos,), tmp_path, "a folder. Expected an exported file"),
        ((), None, "no images given"),
        (("http://example.org/cat.jpg",), None, "not from a URL"),
        ((photos, "--top", "0"), None, "expected 1 or more"),
    ):
        code, out, err = run(*words, **({"file": file} if file else {}))
        assert (code, out, err.count("\n")) == (2, "", 1) and said in err
    assert run(photos, "--json", "--csv")[0] == 2  # and its error is an object, as --json asks for
    code, _, err = run(photos, file=foreign)
    assert code == 4 and "does not say how images are preprocessed" in err


def test_a_table_fits_the_terminal_and_goes_on_from_batch_to_batch(monkeypatch, capsys, photos):
    monkeypatch.setenv("COLUMNS", "60")
    guesses = [predict.Prediction("a class with quite a long name " * 3, 0, 0.5)]
    show = predict._table_printer(["x" * 90])
    for _ in range(2):
        show([predict.Found("x" * 90, guesses), predict.Found("broken.png", (), "why")])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 60 and out.count("probability") == 1
    assert out.replace("\n", "").replace(" ", "").count("50.0%") == 2 and "broken" not in out


def test_it_runs_where_neither_torch_nor_onnx_is(student, photos):
    code = "import sys; sys.modules.update(dict.fromkeys(('torch', 'timm', 'onnx', 'torchvision', 'yaml')))\n"
    code += "from runtime.cli import front_door; sys.exit(front_door.main(sys.argv[1:]))"
    words = [sys.executable, "-c", code, "predict", str(student), str(photos), "--top", "1"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.count("\t") == 6
