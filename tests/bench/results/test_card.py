"""The model card: every number is one of the artifact or of a result about it; what is missing is said."""

import json
from dataclasses import replace

import pytest

from bench import __main__ as cli
from bench.results import saved
from runtime import artifact, files
from runtime.records import Budget, Judged, Quantization, Speed, Verification, WorstClass

MACHINE = {"cpu": "A CPU", "cores": 4, "system": "Linux", "gpu": None, "packages": {}}
RAN = {"engine": "onnxruntime 1.32.0", "provider": "CPUExecutionProvider", "device": "cpu", "threads": 4}


@pytest.fixture
def card(tmp_path, capsys):
    """card(artifact, *results): (exit code, the card's text or the error)."""

    def make(artifact, *results, words=()):
        path = tmp_path / "CARD.md"
        code = cli.main(["card", str(artifact), *map(str, results), "--output", str(path), *words])
        out, err = capsys.readouterr()
        if code:
            return code, err
        assert out == f"{path}\n"
        return code, path.read_text()

    return make


@pytest.fixture
def kept(tmp_path, student):
    """kept(kind, **values): the path of a saved result about the student."""

    def write(kind, /, **values):
        path = tmp_path / f"{kind}.json"
        about = {"fingerprint": MACHINE, "warnings": [], "name": "student", "file": str(student)} | RAN
        saved.write(path, kind, f"distill bench {kind} x", about | {"sha256": files.sha256(student)} | values)
        return path

    return write


def latency(**changes):
    compute = {"latency_p50_ms": 5.25, "latency_p99_ms": 9.5, "throughput_images_per_s": 190.0}
    return {"batch": 1, "compute": compute, "end_to_end": {"latency_p50_ms": 7.75}} | changes


ACCURACY = {"data": "photos", "split": "val", "n": 400, "skipped": 0, "top1_percent": 81.25}
ACCURACY |= {"top1_low_percent": 77.1, "top1_high_percent": 84.8, "top5_percent": 97.5}


def test_figures_are_those_of_the_results(card, kept, student):
    code, text = card(student, kept("accuracy", **ACCURACY), kept("latency", **latency()))
    assert code == 0
    assert "| 81.25 | 77.10 to 84.80 | 97.50 |" in text and "| 400 |" in text
    assert "| 5.25 |" in text and "| 9.50 |" in text and "| 7.75 |" in text and "| 190 |" in text
    assert "A CPU" in text and "distill bench latency x" in text and files.sha256(student) in text
    assert "accuracy --engine" not in text and "latency --engine" not in text
    assert "- robustness: `distill bench robustness student.onnx --data DIR" in text


def test_without_results_it_says_what_was_not_measured(card, student):
    code, text = card(student)
    assert code == 0 and "| seal | intact |" in text
    for command in ("accuracy --engine student.onnx", "latency --engine student.onnx", "robustness student"):
        assert f"`distill bench {command}" in text


def test_what_the_export_measured_is_told_with_its_interval(card, tiny, tmp_path):
    judged = Judged(
        images=200, candidate_top1=80.5, reference_top1=81.0, drop_points=0.5, drop_low_points=-1.25,
        drop_high_points=2.25, agreement=97.0,
        worst_class=WorstClass(class_name="a|b<i>`", drop_points=4.0, images=50),
        speed=Speed(ratio=0.4, low=0.38, high=0.42, threads=2, batch=1, engine="onnxruntime"),
    )  # fmt: skip
    made = Quantization(
        method="mse", placement="cpu", images=[["a.jpg", "0"]] * 27, int8_layers=21,
        float_layers={"/head/Gemm": "--last-layer fp32"}, budget=Budget(int8_macs_percent=98.5),
    )  # fmt: skip
    meta = replace(
        tiny.metadata(), precision="int8", quantization=made, verification=Verification(lowered=judged)
    )
    code, text = card(tiny.write(tmp_path / "int8.onnx", meta=meta))
    assert code == 0
    assert "top-1 80.50 %, the fp32 student 81.00 %; a drop of 0.50 points" in text
    assert "-1.25 to 2.25" in text and "97.00 %" in text
    assert "a\\|b&lt;i>'" in text and "<i>" not in text
    assert "0.400 (0.380 to 0.420) of fp32's time" in text
    assert "21 layers in int8, placement cpu; ranges by mse from 27 training images." in text
    assert "98.5 % of the multiply-accumulates" in text and "- /head/Gemm: --last-layer fp32" in text


def test_a_ratio_that_should_not_be_quoted_is_left_out(card, tiny, tmp_path):
    speeds = [Speed(ratio=0.4, threads=2), Speed(ratio=0.4, low=0.3, high=0.5, warnings=["busy"])]
    for number, speed in enumerate(speeds):
        meta = replace(tiny.metadata(), verification=Verification(lowered=Judged(images=9, speed=speed)))
        code, text = card(tiny.write(tmp_path / f"{number}.onnx", meta=meta), words=["--overwrite"])
        assert code == 0 and "0.4" not in text


def test_warnings_come_along_with_the_times(card, kept, student):
    busy = [{"kind": "load", "text": "other processes used 1.5 of 2 cores"}]
    code, text = card(student, kept("latency", **latency(warnings=busy)))
    assert code == 0 and "- warning: other processes used 1.5 of 2 cores" in text


def test_a_result_of_another_file_is_refused(card, kept, student):
    path = kept("latency", **latency(sha256="0" * 64))
    code, said = card(student, path)
    assert code == 2 and "latency.json: has nothing about" in said


def test_other_files_damaged_ones_and_old_cards_are_left_alone(card, student, tmp_path):
    assert card(tmp_path / "best.pth")[0] == 2
    assert card(tmp_path / "none.onnx")[0] in (2, 4)
    content = bytearray(artifact.seal(student.read_bytes()))
    content[len(content) // 2] ^= 1
    (tmp_path / "damaged.onnx").write_bytes(content)
    assert card(tmp_path / "damaged.onnx")[0] == 4
    assert not (tmp_path / "CARD.md").exists()
    assert card(student)[0] == 0
    code, said = card(student)
    assert code == 2 and "--overwrite" in said


def test_a_robustness_row_of_the_file_is_shown(card, kept, student):
    figure = {"percent": 31.5, "low_percent": 30.0, "high_percent": 33.0}
    artifacts = [{"file": str(student), "clean_error": figure}, {"file": "other.onnx", "clean_error": None}]
    path = kept("robustness", n=400, data="photos", split="val", relative_to="control", artifacts=artifacts)
    code, text = card(student, path)
    assert code == 0 and "31.50 (30.00 to 33.00)" in text and "n=400 of photos" in text
    assert "other" not in text and json.loads(path.read_text())["n"] == 400
