"""`distill inspect`: what it says of artifacts, foreign files and checkpoints; every changed byte; every kind
of bad input.
"""

import dataclasses
import hashlib
import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from distill import __main__ as cli
from distill import checkpoint
from export.commands import inspect
from export.graph import from_torch
from export.inspection import report
from runtime import env
from runtime.artifact import KEY, Metadata, read_sidecar, sidecar_bytes, sidecar_of
from runtime.errors import ArtifactError
from runtime.images import open_images
from runtime.preprocess import Preprocess
from runtime.records import EngineRecord, Judged, Quantization, Speed, Verification


def network(int8=True, opset=19):
    """One convolution, 3 to 2 channels, 1 x 1, over 4 x 4; with Q/DQ on both sides or without."""
    constants = {
        "w": np.ones((2, 3, 1, 1), np.int8 if int8 else np.float32),
        "scale": np.float32(0.1),
        "zero": np.int8(0),
    }
    nodes = (
        [
            helper.make_node("QuantizeLinear", ["images", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x"]),
            helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["f"]),
        ]
        if int8
        else []
    )
    nodes += [
        helper.make_node("Conv", ["x", "f"] if int8 else ["images", "w"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["logits"]),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


META = Metadata(
    model="tiny",
    role="student",
    preprocess=Preprocess((3, 4, 4)),
    class_names=["cat", "dog"],
    precision="int8",
    parameters=6,
    macs=96,
    quantization=Quantization(
        method="percentile",
        placement="tensorrt",
        float_layers={"fc": "makes the logits"},
        images=[["train/cat/1.png", "ab" * 32]] * 30,
        scales=4,
        more={"invented_later": {"deep": [1, 2.5]}},
    ),
    verification=Verification(
        lowered=Judged(
            images=700, drop=0.25, candidate_top1=91.5, speed=Speed(ratio=0.5, engine="onnxruntime")
        )
    ),
    versions={"onnx": onnx.__version__},
)


@pytest.fixture
def write(tmp_path):
    def make(model=None, name="best.int8.onnx", **changes):
        path = tmp_path / name
        path.write_bytes(from_torch.write_metadata(model or network(), Metadata(**{**vars(META), **changes})))
        return path

    return make


@pytest.fixture
def run(capsys):
    """Exit code, output, error line."""

    def start(*words):
        code = cli.main(["inspect", *map(str, words)])
        return code, *capsys.readouterr()

    return start


@pytest.fixture
def values(run):
    """The object that --json prints."""
    return lambda *words: json.loads(run(*words, "--json")[1])


def test_an_artifact_says_what_it_is(write, values):
    path = write()
    found = values(path)
    assert (found["kind"], found["seal"], found["warnings"]) == ("artifact", "intact", [])
    assert [(a["what"], a["status"]) for a in found["lineage"]] == [("30 calibration images", "not at hand")]
    assert (
        found["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        and found["size_bytes"] == path.stat().st_size
    )
    about = found["metadata"]
    assert (about["model"], about["precision"], about["class_names"], about["macs"]) == (
        "tiny",
        "int8",
        ["cat", "dog"],
        96,
    )
    assert (
        about["preprocess"] == META.preprocess.to_dict()
        and about["quantization"] == META.quantization.to_dict()
    )
    assert found["graph"]["opset"] == {"ai.onnx": 19} and found["graph"]["macs_percent"]["int8"] == 100
    assert found["graph"]["inputs"] == [{"name": "images", "type": "float", "shape": ["batch", 3, 4, 4]}]
    assert {"operator": "Conv", "count": {"int8": 1}, "macs": {"int8": 96}} in found["graph"]["operators"]


def test_a_person_reads_the_same(write, run):
    code, out, err = run(write(), "--all")
    assert (code, err) == (0, "")
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines() if len(line.split()) > 1}
    assert lines["method"] == ["percentile"] and lines["images"] == ["30"]
    assert " ".join(lines["float_layers"]) == "fc: makes the logits"
    assert lines["invented_later.deep"] == ["1,", "2.5"] and lines["lowered.candidate_top1"] == [
        "91.5"
    ]  # what a later version adds
    assert (
        lines["seal"] == ["intact"]
        and lines["classes"] == ["2:", "cat,", "dog"]
        and lines["Conv"] == ["1", "100.0", "%"]
    )
    assert "warning" not in out and max(map(len, out.splitlines())) <= report.PIPE_WIDTH


def test_every_changed_byte_ends_with_exit_4_and_never_with_a_crash(write, run):
    path = write()
    whole = path.read_bytes()
    for place in range(0, len(whole), 29):
        content = bytearray(whole)
        content[place] ^= 0xFF
        path.write_bytes(content)
        code, _, err = run(path)
        assert code == 4 and err.count("\n") == 1, (place, err)


def test_a_broken_seal_is_reported_with_what_the_file_still_says(write, run):
    path = write()
    path.write_bytes(path.read_bytes().replace(b'"drop": 0.25', b'"drop": 0.05'))
    code, out, err = run(path)
    assert code == 4 and "broken: changed since it was written" in out and "tiny" in out
    assert err.startswith(f"error: {path}: changed since it was written")
    code, out, err = run(path, "--json")
    assert code == 4 and json.loads(out)["exit_code"] == 4 and json.loads(out)["metadata"]["model"] == "tiny"
    assert json.loads(out)["error"] in err


def test_an_ancestor_that_is_another_one_ends_with_exit_4_after_the_report(write, run, tmp_path):
    (tmp_path / "best.pth").write_bytes(b"weights")
    recorded = {"checkpoint": {"file": "best.pth", "sha256": hashlib.sha256(b"weights").hexdigest()}}
    path = write(lineage=recorded)
    code, out, _ = run(path)
    assert code == 0 and "matches" in out
    (tmp_path / "best.pth").write_bytes(b"Weights")
    code, out, err = run(path)
    assert (
        code == 4
        and "DIFFERS" in out
        and f"{tmp_path / 'best.pth'} is not the checkpoint it was made from" in err
    )
    (tmp_path / "old.pth").write_bytes(b"weights")
    assert run(path, "--checkpoint", tmp_path / "old.pth")[0] == 0
    code, _, err = run(path, "--checkpoint", tmp_path / "gone.pth")
    assert code == 2 and "no such file" in err


@pytest.mark.parametrize(
    ("changes", "model", "said"),
    [
        ({"quantization": Quantization(not_for_accuracy=True)}, {}, "not for accuracy"),
        ({"quantization": Quantization(placement="cpu")}, {}, "TensorRT refuses"),
        (
            {"verification": Verification(lowered=Judged(drop=1.4, images=700))},
            {},
            "lost 1.40 points of top-1 against the fp32 student (n=700)",
        ),
        (
            {"verification": Verification(lowered=Judged(speed=Speed(ratio=1.3, engine="onnxruntime")))},
            {},
            "does not pay",
        ),
        ({"class_names": None}, {}, "carries no class_names"),
        (
            {"versions": {"onnx": "0.1", "made_up_package": "9"}},
            {},
            f"made with onnx 0.1 (here {onnx.__version__})",
        ),
        ({}, {"opset": 20}, "JetPack 6"),
        ({}, {"int8": False}, "metadata says int8, the graph has 0 int8 operators"),
        ({"precision": "fp32"}, {}, "metadata says fp32, the graph has 1 int8 operators"),
    ],
)
def test_each_thing_to_mind_is_one_sentence(write, values, changes, model, said):
    (found,) = values(write(network(**model), **changes))["warnings"]
    assert said in found


def test_an_older_file_without_a_seal_is_read_and_said_to_be_one(tmp_path, values):
    model = network()
    helper.set_model_props(model, {KEY: json.dumps(json.loads(META.to_map()[KEY]) | {"schema": 1})})
    onnx.save(model, str(tmp_path / "old.onnx"))
    found = values(tmp_path / "old.onnx")
    assert (
        found["seal"] == "none"
        and "carries no seal" in found["warnings"][0]
        and found["metadata"]["model"] == "tiny"
    )


def test_a_foreign_file_is_described_by_its_graph(tmp_path, run, values):
    onnx.save(network(int8=False), str(tmp_path / "foreign.onnx"))
    found = values(tmp_path / "foreign.onnx")
    assert found["kind"] == "foreign ONNX" and found["graph"]["macs_percent"]["fp32"] == 100
    assert (
        "not made by large2small" in found["warnings"][0]
        and "no preprocess and no class_names" in found["warnings"][1]
    )
    code, out, _ = run(tmp_path / "foreign.onnx")
    assert code == 0 and "foreign ONNX" in out


def test_without_all_about_twelve_lines_say_the_main_things(write, run):
    path = write(
        lineage={"data": {"train_spec": "photos", "train_images": 40, "val_sha256": "ab" * 32}},
        training={"metrics": {"top1": 92.0}},
    )
    code, out, err = run(path)
    lines = {line[:11].strip(): line[11:] for line in out.splitlines()}
    assert (code, err) == (0, "") and 10 <= len(lines) <= 14
    assert lines["kind"] == "artifact, student, tiny, int8"
    assert lines["size"] == f"{path.stat().st_size:,} bytes, 6 parameters, 96 MACs"
    assert lines["input"].startswith("3 x 4 x 4; crop_pct 0.875; crop_mode center; interpolation bicubic")
    assert lines["classes"] == "2: cat, dog" and lines["seal"] == "intact"
    assert lines["accuracy"] == "top-1 91.50 %, 0.25 points below fp32 (n=700); in training top-1 92.00 %"
    assert lines["int8"] == "100.0 % of the MACs, method percentile, placement tensorrt, 1 layers in float"
    assert lines["trained on"] == "photos (40 images)"
    assert lines["made from"] == "not at hand: validation images, 30 calibration images"
    assert lines["made with"] == f"onnx {onnx.__version__}"
    assert out.splitlines()[-1] == f"everything it says: distill inspect {path} --all"


def test_a_line_cannot_be_forged_by_what_a_file_says(write, run):
    out = run(write(role="x\nseal       intact\x1b[2J", class_names=["a\rb", "c"]))[1]
    assert "\x1b" not in out and "\r" not in out
    assert [line for line in out.splitlines() if line.startswith("seal")] == ["seal       intact"]


def test_a_teacher_of_the_same_name_is_not_looked_for_where_the_student_is(write, run, tmp_path):
    """Both are called best.pth, each in the folder of its own run."""
    (tmp_path / "best.pth").write_bytes(b"student")
    names = {"checkpoint": b"student", "teacher": b"teacher"}
    recorded = {
        what: {"file": "best.pth", "sha256": hashlib.sha256(content).hexdigest()}
        for what, content in names.items()
    }
    code, out, _ = run(write(lineage=recorded))
    assert code == 0 and "matches: checkpoint best.pth; not at hand: teacher best.pth" in out
    (tmp_path / "best.pth").write_bytes(b"neither")
    code, _, err = run(write(lineage=recorded))
    assert code == 4 and "is not the checkpoint it was made from" in err
    (tmp_path / "best.pth").write_bytes(b"student")
    assert run(write(lineage=recorded), "--teacher", tmp_path / "best.pth")[0] == 4


LIGHT = """
import sys
sys.modules.update(dict.fromkeys(("torch", "timm", "onnx", "torchvision", "sklearn", "yaml")))
from runtime.cli import front_door
sys.exit(front_door.main(sys.argv[1:]))
"""


def without_torch_and_onnx(*words):
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, "inspect", *map(str, words)], capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


def test_metadata_lineage_and_seal_need_neither_torch_nor_onnx(write, values, tmp_path):
    (tmp_path / "best.pth").write_bytes(b"weights")
    for name in ("cat", "dog"):
        (tmp_path / "data" / "val" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "data" / "val" / name / "1.png")
    recorded = {
        "checkpoint": {"file": "best.pth", "sha256": hashlib.sha256(b"weights").hexdigest()},
        "data": {
            "val_spec": str(tmp_path / "data"),
            "val_sha256": open_images(str(tmp_path / "data"), "val").fingerprint(),
            "train_spec": "digits",
            "train_sha256": "ab" * 32,
        },
    }
    path = write(lineage=recorded)
    code, out, err = without_torch_and_onnx(path, "--json")
    assert (code, err) == (0, "")
    found, whole = json.loads(out), values(path)
    assert found["metadata"] == whole["metadata"] and found["seal"] == "intact" and found["graph"] is None
    status = {each["what"]: each["status"] for each in found["lineage"]}
    assert (status["checkpoint"], status["validation images"], status["training images"]) == (
        "matches",
        "matches",
        "not at hand",  # the digits need a package that is not there
    )
    assert [each for each in found["warnings"] if "package onnx" in each]
    for words in ((path,), (path, "--all")):
        code, out, err = without_torch_and_onnx(*words)
        assert (code, err) == (0, "") and "tiny" in out
    path.write_bytes(path.read_bytes().replace(b'"drop": 0.25', b'"drop": 0.05'))
    code, _, err = without_torch_and_onnx(path)
    assert code == 4 and "changed since it was written" in err


def test_a_checkpoint_without_torch_is_one_clear_line(student_checkpoint):
    path = student_checkpoint()
    for given in (path, path.parent):
        code, out, err = without_torch_and_onnx(given)
        assert (code, out, err.count("\n")) == (3, "", 1)
        assert "is read with torch" in err and 'pip install "large2small[train]"' in err


@pytest.mark.parametrize("content", [b"", b"\xff junk" * 50])
def test_what_is_not_an_onnx_file_is_said_to_be_none_without_onnx_too(tmp_path, content):
    (tmp_path / "x.onnx").write_bytes(content)
    code, out, err = without_torch_and_onnx(tmp_path / "x.onnx")
    assert (code, out, err.count("\n")) == (4, "", 1)


def test_a_run_folder_is_its_best_checkpoint(student_checkpoint, values):
    path = student_checkpoint()
    assert values(path.parent) == values(path)


@pytest.fixture
def student_checkpoint(tmp_path):
    def make(**changes):
        path = tmp_path / "best.pth"
        checkpoint.save(
            checkpoint.Checkpoint(
                **{
                    "model": "tiny",
                    "model_args": {"width": 0.5},
                    "preprocess": Preprocess((3, 4, 4)),
                    "class_names": ["cat", "dog"],
                    "state_dict": {"w": torch.arange(4096.0), "bn.running_mean": torch.zeros(9)},
                    "metrics": {"top1": 81.25},
                }
                | changes
            ),
            path,
        )
        return path

    return make


def test_a_checkpoint_says_what_it_is(student_checkpoint, values, run, tmp_path):
    (tmp_path / "teacher.pth").write_bytes(b"T")
    path = student_checkpoint(
        lineage={
            "teacher": {"file": "/gone/teacher.pth", "sha256": hashlib.sha256(b"T").hexdigest()},
            "versions": env.versions(("torch",)),
        },
        quantized={"settings": {"placement": "cpu"}, "layers": ["a"], "scales": {"t": torch.ones(1)}},
    )
    found = values(path)
    assert (found["kind"], found["seal"], found["warnings"], found["graph"]) == (
        "checkpoint",
        "checksums fit",
        [],
        None,
    )
    about = found["metadata"]
    assert (about["parameters"], about["tensors"], about["metrics"], about["resumable"]) == (
        4096,
        2,
        {"top1": 81.25},
        False,
    )
    assert about["trained_int8"] == {"settings": {"placement": "cpu"}, "layers": 1, "scales": 1}
    assert [(a["what"], a["status"]) for a in found["lineage"]] == [("teacher", "matches")]
    code, out, _ = run(path)
    assert code == 0 and "81.25" in out and "matches" in out


def test_a_changed_weight_in_a_checkpoint_is_found_although_torch_reads_it(student_checkpoint, run, values):
    path = student_checkpoint()
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(4096.0).numpy().tobytes()) + 4002] ^= 1
    path.write_bytes(content)
    assert len(checkpoint.load(path, checked=False).state_dict["w"]) == 4096  # torch does not notice
    with pytest.raises(ArtifactError, match="its CRC-32 does not fit"):
        checkpoint.load(path)
    code, out, err = run(path)
    assert code == 4 and "was changed since it was written (its CRC-32 does not fit)" in err and "tiny" in out
    assert values(path)["seal"].startswith("broken")


def test_a_changed_byte_in_a_checkpoint_never_crashes_the_report(student_checkpoint, run):
    """Zip files have a few bytes that no checksum covers (times, padding); all else ends with exit 4."""
    path = student_checkpoint()
    whole, codes = path.read_bytes(), []
    for place in [*range(0, len(whole), 997), *range(len(whole) - 200, len(whole), 7)]:
        content = bytearray(whole)
        content[place] ^= 0xFF
        path.write_bytes(content)
        code, _, err = run(path)
        codes.append(code)
        assert code in (0, 4), (place, err)
    assert codes.count(4) > 10


def test_foreign_weights_are_counted(tmp_path, values):
    torch.save({"state_dict": {"module.w": torch.zeros(3, 4)}, "epoch": 7}, tmp_path / "their.pth")
    found = values(tmp_path / "their.pth")
    assert (
        found["kind"] == "foreign weights"
        and found["metadata"]["parameters"] == 12
        and "--model NAME" in found["warnings"][0]
    )


def test_bad_input_is_one_line_with_the_right_code(tmp_path, run, write):
    (tmp_path / "junk.onnx").write_bytes(b"\xff junk" * 50)
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    (tmp_path / "notes.txt").write_text("hello")
    foreign = network(int8=False).SerializeToString()
    (tmp_path / "cut.onnx").write_bytes(foreign[: len(foreign) // 2])
    (tmp_path / "renamed.pth").write_bytes(write().read_bytes())
    for name, code, words in (
        ("junk.onnx", 4, "not an ONNX file"),
        ("empty.onnx", 4, "holds no graph"),
        ("cut.onnx", 4, "cut short"),
        ("junk.pth", 4, "not a checkpoint"),
        ("renamed.pth", 4, "not a checkpoint"),
        ("notes.txt", 2, "neither an .onnx file nor a checkpoint"),
        ("none.onnx", 2, "no such file"),
        (".", 2, "a folder, without a best.pth in it"),
    ):
        found, out, err = run(tmp_path / name)
        assert (found, out, err.count("\n")) == (code, "", 1) and words in err, (name, err)
    code, out, _ = run(tmp_path / "none.onnx", "--json")
    assert code == 2 and json.loads(out)["exit_code"] == 2
    newer = write(schema=99)
    assert run(newer)[0] == 4


def test_an_unknown_flag_names_the_nearest(run, write):
    code, _, err = run(write(), "--teachr", "x")
    assert code == 2 and "did you mean --teacher?" in err


def test_help_has_examples_and_needs_no_torch(capsys):
    assert cli.main(["inspect", "--help"]) == 0
    out = capsys.readouterr().out
    assert "distill inspect best.int8.onnx" in out and "--calib" in out
    assert "torch" not in vars(inspect)


@pytest.fixture
def plan(tmp_path):
    """A plan as TensorRT 10.3 would begin it, its metadata beside it, and the ONNX file that it names."""
    onnx_file, path = tmp_path / "a.onnx", tmp_path / "a.plan"
    onnx_file.write_bytes(b"the graph")
    path.write_bytes(b"ftrt" + bytes(20) + bytes((10, 3, 0, 30)) + bytes(100))
    digest = hashlib.sha256(b"the graph").hexdigest()
    sidecar_of(path).write_bytes(
        sidecar_bytes(
            Metadata(
                model="resnet20",
                precision="int8",
                lineage={"onnx": {"file": "a.onnx", "sha256": digest}},
                engine=EngineRecord.from_dict(
                    {
                        "plan_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                        "plan_bytes": 128,
                        "platform": "Linux of elsewhere",
                        "warnings": ["3 layers only change a format"],
                        "flavor": "tensorrt",
                        "version": "10.3.0.30",
                        "gpu": None,
                        "compute_capability": None,
                        "flags": {"version_compat": False, "hardware_compat": "none", "strip_weights": False},
                        "profiles": [{"min": 1, "opt": 1, "max": 1}],
                        "onnx": {"file": "a.onnx", "sha256": digest},
                    },
                    "the test",
                ),
            )
        )
    )
    return path


def test_a_plan_its_metadata_and_its_onnx_file(plan, capsys):
    assert cli.main(["inspect", str(plan), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["kind"] == "plan of TensorRT 10.3.0.30" and said["seal"] == "intact"
    assert said["metadata"]["model"] == "resnet20" and said["warnings"][0] == "3 layers only change a format"
    assert [(each["what"], each["status"]) for each in said["lineage"]] == [("onnx", "matches")]


def test_a_version_compatible_plan_may_begin_with_its_own_runtime(plan, capsys):
    meta, content = read_sidecar(plan), b"\x7fELF" + plan.read_bytes()
    plan.write_bytes(content)
    assert cli.main(["inspect", str(plan)]) == 4 and "not a TensorRT plan" in capsys.readouterr().err
    engine = dataclasses.replace(
        meta.engine,
        plan_sha256=hashlib.sha256(content).hexdigest(),
        plan_bytes=len(content),
        flags=dataclasses.replace(meta.engine.flags, version_compat=True),
    )
    sidecar_of(plan).write_bytes(sidecar_bytes(dataclasses.replace(meta, engine=engine)))
    assert cli.main(["inspect", str(plan), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "plan of TensorRT 10.3.0.30"


@pytest.mark.parametrize("which", ["plan", "sidecar", "onnx"])
def test_a_changed_byte_around_a_plan_is_found(plan, capsys, which):
    changed = {"plan": plan, "sidecar": sidecar_of(plan), "onnx": plan.with_suffix(".onnx")}[which]
    content = bytearray(changed.read_bytes())
    content[-5] ^= 1
    changed.write_bytes(content)
    assert cli.main(["inspect", str(plan)]) == 4
    assert capsys.readouterr().err.startswith("error: ")
