"""Files of the version before schema 2 (tests/data/before_12/artifacts.zip): they load, and say what they
said.

The archive was written by commit 89cb9d4: a tiny ConvNet trained on the digits, its checkpoint, its ONNX
files in fp32, int8, fp16 and int8+fp16, and what was beside a plan of TensorRT for RTX. Expected values are
read from the files' own JSON, under the names that version used.
"""

import json
import zipfile
from importlib.util import find_spec
from pathlib import Path

import onnx
import pytest

import runtime
from distill import __main__ as cli
from runtime.artifact import read_sidecar
from runtime.images import open_images

ARCHIVE = Path(__file__).parent / "data" / "before_12" / "artifacts.zip"
FILES = ("student.onnx", "student.int8.onnx", "student.fp16.onnx", "student.int8.fp16.onnx")


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(folder)
    return folder


def stored(path: Path) -> dict:
    """The metadata as the file holds it, read without our reader."""
    entries = {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}
    return json.loads(entries["large2small"])


@pytest.mark.parametrize("name", FILES)
def test_an_old_file_loads_and_its_records_have_todays_names(old, name):
    then = stored(old / name)
    assert then["schema"] == 1
    with runtime.load(old / name) as student:
        now = student.metadata
        assert len(student.classify(images())) == 4
    assert now.schema == 2 and now.precision == then["precision"]
    assert now.verification.parity.max_abs == then["verification"]["parity"]["max_abs"]
    assert now.lineage["data"]["evaluation"] == then["lineage"]["data"]["held_out"]
    checks = then["verification"].get(then["precision"].partition("+")[0])
    if then["precision"] == "fp32":
        assert now.verification.lowered is None and now.quantization is None
        return
    found = now.verification.lowered
    assert (found.reference_top1, found.candidate_top1) == (checks["fp32_top1"], checks["int8_top1"])
    assert found.worst_class.class_name == checks["worst_class"]["class"]
    assert found.worst_class.candidate_top1 == checks["worst_class"]["int8_top1"]
    assert now.quantization.selection == then["quantization"].get("held_back")


def images():
    digits = open_images("digits", "val")
    return [digits.image(index) for index in range(4)]


@pytest.mark.parametrize("name", FILES)
def test_an_old_file_is_inspected_and_measured(old, name, capsys):
    assert cli.main(["inspect", str(old / name), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["seal"] == "intact" and said["metadata"]["model"] == "convnext_atto"
    flags = ["--iterations", "2", "--warmup", "0", "--threads", "1", "--json"]
    assert cli.main(["bench", "latency", "--engine", str(old / name), *flags]) == 0
    assert json.loads(capsys.readouterr().out)["compute"]["n"] == 2


def test_an_old_file_becomes_a_model_of_triton(old, tmp_path, capsys):
    assert cli.main(["export", "triton", str(old / "student.onnx"), "--repository", str(tmp_path)]) == 0
    assert (tmp_path / "student" / "config.pbtxt").is_file()


@pytest.mark.skipif(find_spec("tensorrt_rtx_bindings") is None, reason="TensorRT for RTX is not installed")
def test_an_old_plan_is_rebuilt_with_the_settings_beside_it(old, capsys):
    then = json.loads((old / "student.plan.json").read_text())["large2small"]
    (old / "student.plan").write_bytes(b"of another version")
    assert read_sidecar(old / "student.plan").engine.flags.opt_level == then["engine"]["flags"]["opt_level"]
    assert cli.main(["export", "trt", "--rebuild", str(old / "student.plan"), "--timing-cache", "none"]) == 0
    now = read_sidecar(old / "student.plan")
    assert now.schema == 2 and now.engine.flavor == then["engine"]["flavor"]
    assert (
        now.engine.profiles == then["engine"]["profiles"]
        and now.engine.onnx.sha256 == then["engine"]["onnx"]["sha256"]
    )


@pytest.mark.slow
def test_an_old_checkpoint_is_evaluated_and_exported(old, capsys):
    assert cli.main(["eval", str(old / "run" / "best.pth"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1_percent"] == pytest.approx(65.17, abs=0.5)  # its own log
    words = ["export", "onnx", str(old / "run" / "best.pth"), "--output", str(old / "again.onnx")]
    assert cli.main(words) == 0
