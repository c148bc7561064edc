"""`distill export onnx`: the whole pipeline, on a small trained student and real digits; and every way it may
refuse.
"""

import dataclasses
import hashlib
import json
import tempfile

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import runtime
from distill import checkpoint, models
from export import __main__ as cli
from export.checks import samples
from export.fp16 import cast, engine
from export.graph import from_torch
from export.int8 import images as calibration_images
from export.options.onnx import OnnxOptions
from export.stages import report
from export.stages.inputs import open_sources, placement_of
from runtime.images import open_images

pytestmark = pytest.mark.usefixtures("exports_once")
INT8 = (
    "--int8",
    "--calib-size",
    "64",
    "--accuracy-size",
    "200",
    "--verify-size",
    "32",
    "--calib-cache",
    "none",
    "--placement",
    "tensorrt",
    "--calib-method",
    "percentile",
    "--percentile",
    "99.99",
)
SELECTION_SIZE = calibration_images.SELECTION_SIZE
RUINED = ("--percentile", "51", "--exclude", "conv1", "layer1.1.*", "layer1.2.*", "layer2.*", "layer3.*")
"""Two layers in int8 with ranges that cut half of all values: either loses more than sixty points."""


def export(*words) -> int:
    return cli.main(["onnx", *map(str, words)])


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The only folder in which temporary files can appear."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def exported(student_onnx, monkeypatch):
    """The exporter's result without its seconds: the network is always the same."""

    def to_onnx(*_args, **_more):
        model = onnx.ModelProto()
        model.CopyFrom(student_onnx)
        return model

    monkeypatch.setattr(from_torch, "to_onnx", to_onnx)


@pytest.fixture(autouse=True)
def few_selection_images(monkeypatch):
    """Each layer that may go back to float is ranked on them."""
    monkeypatch.setattr(calibration_images, "SELECTION_SIZE", 96)


@pytest.fixture
def digits_npz(tmp_path):
    """The evaluation digits as a file; names in the order given."""

    def write(names=tuple("0123456789"), split="val"):
        digits = open_images("digits", split)
        path = tmp_path / f"{split}.npz"
        np.savez(path, x=digits.x[:200], y=digits.labels[:200], class_names=np.array(list(names)))
        return f"npz:{path}"

    return write


def test_fp32_and_int8_of_one_student(student_file, tmp_path, temporary, capsys):
    fp32, int8 = tmp_path / "best.onnx", tmp_path / "best.int8.onnx"
    copy = tmp_path / "best.pth"
    copy.write_bytes(student_file.read_bytes())
    assert export(copy, "--verify-size", 32) == 0  # data from the checkpoint's lineage, output beside it
    assert capsys.readouterr().out.startswith(f"{fp32}: top-1 agreement with torch 100.00 % on 32 images")
    assert export(copy, *INT8, "--max-drop", 5) == 0
    printed = capsys.readouterr().out
    assert "student, fp32, torch" in printed and "tensorrt placement, percentile ranges: 100.0 %" in printed
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "best.int8.onnx",
        "best.onnx",
        "best.pth",
        "temporary",
    ]
    assert not list(temporary.iterdir())

    with runtime.load(fp32) as a, runtime.load(int8) as b:
        digits = open_images("digits", "val")
        images = [digits.image(i) for i in range(60)]
        right = [
            sum(
                guess[0].label == str(label)
                for guess, label in zip(p.classify(images), digits.labels[:60], strict=True)
            )
            for p in (a, b)
        ]
        assert right[0] > 30 and abs(right[0] - right[1]) <= 3
        first, second = a.metadata, b.metadata
    assert (first.precision, second.precision) == ("fp32", "int8")
    assert first.model == "resnet20" and first.role == "student" and first.parameters == 269_722
    assert first.class_names == [str(i) for i in range(10)] and first.preprocess.input_size == (3, 32, 32)
    assert first.training["metrics"]["top1"] == 90.0 and first.lineage["teacher"]["sha256"] == "ab" * 32
    assert first.lineage["checkpoint"] == {
        "file": "best.pth",
        "sha256": hashlib.sha256(copy.read_bytes()).hexdigest(),
    }
    assert first.quantization is None and first.versions["onnx"] == onnx.__version__
    assert second.lineage["fp32_onnx"]["sha256"] == hashlib.sha256(fp32.read_bytes()).hexdigest()
    how = second.quantization
    assert (how.method, how.placement, how.int8_layers, how.tensors) == (
        "percentile",
        "tensorrt",
        19,
        21,
    )
    assert how.scales == 21 + 7 * 16 + 6 * 32 + 6 * 64  # one a tensor and one an output channel
    assert len(how.images) == 64 and how.float_layers == {"linear": "makes the logits"}
    checks = second.verification.lowered
    assert checks.images == 200 and checks.reference_top1 > 50 and checks.drop <= 5.0
    assert checks.fp32_onnx_top1 == checks.reference_top1 and checks.repeatability["bit_equal"]
    assert checks.drop == pytest.approx((checks.right_to_wrong - checks.wrong_to_right) / 2)  # of 200 images
    assert checks.drop_low_points <= checks.drop <= checks.drop_high_points and checks.speed.ratio > 0
    assert not how.not_for_accuracy and how.budget.more["history"] == [
        {
            "float_groups": 0,
            "drop_points": checks.drop,
            "int8_macs_percent": how.budget.int8_macs_percent,
            "agreement_percent": checks.agreement,
        }
    ]


def test_a_drop_above_the_budget_exits_1_and_leaves_no_file(
    student_file, tmp_path, temporary, exported, capsys
):
    out = tmp_path / "out" / "student.onnx"
    assert export(student_file, *INT8, *RUINED, "--max-drop", 1, "--output", out) == 1
    assert "at most 1 allowed, nothing written" in capsys.readouterr().err.splitlines()[-1]
    assert not out.parent.exists() and not list(temporary.iterdir())
    budgets = ("--max-drop", 100, "--min-agreement", 100)
    assert export(student_file, *INT8, *RUINED, *budgets, "--output", out) == 1
    assert "and 100 % agreement asked for, nothing written" in capsys.readouterr().err.splitlines()[-1]
    assert not out.parent.exists() and not list(temporary.iterdir())


def test_layers_go_back_to_float_until_the_budget_holds(student_file, tmp_path, exported, capsys):
    out = tmp_path / "student.onnx"
    assert export(student_file, *INT8, "--percentile", 90, "--max-drop", 1, "--output", out, "--json") == 0
    printed, notes = capsys.readouterr()
    result = json.loads(printed)
    assert result["rolled_back"] and result["drop_points"] <= 1 and 0 < result["int8_macs_percent"] < 95
    assert "sensitivity 1/19: " in notes
    table = json.loads((tmp_path / "student.sensitivity.json").read_text())
    assert sum(len(group["layers"]) for group in table["groups"]) == 19
    back = [name for group in table["groups"] if group["precision"] == "float" for name in group["layers"]]
    assert back == result["rolled_back"]
    assert "| layers | top-1 lost, points |" in (tmp_path / "student.sensitivity.md").read_text()
    with runtime.load(out) as predictor:
        left = predictor.metadata.quantization.float_layers
        assert {name for name, why in left.items() if "budget" in why} == set(result["rolled_back"])
        digits = open_images("digits", "val")
        chosen = samples.choose(digits.labels, 200, 0)
        guesses = predictor.logits(predictor.preprocess.batch(digits.image(int(i)) for i in chosen)).argmax(1)
    assert 100 * float((guesses == digits.labels[chosen]).mean()) == pytest.approx(
        result["int8_top1_percent"]
    )


def test_the_default_placement_is_for_cpus_and_auto_says_what_it_tried(
    student_file, tmp_path, exported, capsys, monkeypatch
):
    monkeypatch.setattr(calibration_images, "SELECTION_SIZE", SELECTION_SIZE)
    small = (
        "--int8",
        "--calib-size",
        64,
        "--accuracy-size",
        200,
        "--verify-size",
        32,
        "--calib-cache",
        tmp_path / "cache",
    )
    assert (
        export(
            student_file,
            *small,
            "--calib-method",
            "auto",
            "--calib-draws",
            2,
            "--max-drop",
            5,
            "--output",
            tmp_path / "a.onnx",
            "--json",
        )
        == 0
    )
    printed, notes = capsys.readouterr()
    result = json.loads(printed)
    methods, draws = ("minmax", "percentile", "entropy", "mse"), result["draws"]["candidate_top1"]
    assert result["placement"] == "cpu" and result["method"] in methods
    assert all(f"{method} " in notes for method in methods) and "512 selection images" in notes
    assert len(draws) == 2 and draws[0] == pytest.approx(result["int8_top1_percent"])
    assert (
        len(list((tmp_path / "cache").iterdir())) == 2
    )  # one file for each draw, whatever the number of methods


@pytest.mark.parametrize("words", [("--fp16",), (*INT8, "--fp16")])
def test_fp16_computes_the_same_in_half_the_size(student_file, tmp_path, exported, capsys, words):
    out = tmp_path / "a.onnx"
    assert (
        export(
            student_file, *words, "--calib-size", 32, "--accuracy-size", 200, "--max-drop", 3, "--output", out
        )
        == 0
    )
    written = onnx.load(out)
    kinds = [t.data_type for t in written.graph.initializer]
    assert (
        kinds.count(onnx.TensorProto.FLOAT16) > 20 and written.graph.input[0].type.tensor_type.elem_type == 1
    )
    assert written.graph.output[0].type.tensor_type.elem_type == 1
    with runtime.load(out) as predictor:
        meta = predictor.metadata
    assert meta.precision == ("int8+fp16" if "--int8" in words else "fp16")
    checks = meta.verification.lowered
    assert checks.agreement >= 99 and checks.drop <= 1 and checks.images == 200
    assert meta.quantization.fp16["kept_fp32"] == {}


def test_an_engine_that_drops_fractions_is_not_the_judge_and_is_named(
    student_file, tmp_path, exported, capsys, monkeypatch
):
    monkeypatch.setattr(engine, "drops_fractions", lambda: True)
    words = (*INT8, "--fp16", "--calib-size", 32, "--accuracy-size", 50, "--verify-size", 8, "--max-drop", 3)
    out = tmp_path / "a.onnx"
    assert export(student_file, *words, "--output", out, "--json") == 0
    said = json.loads(capsys.readouterr().out)["judged_as"]
    assert f"ONNX Runtime {onnxruntime.__version__} drops fractions where fp16 becomes int8" in said
    written = onnx.load(out)  # what is written is fp16 all the same
    assert onnx.TensorProto.FLOAT16 in {tensor.data_type for tensor in written.graph.initializer}
    onnx.save(cast.rounded(written), tmp_path / "copy.onnx")
    digits = open_images("digits", "val")
    chosen = samples.choose(digits.labels, 50, 0)
    with runtime.load(out) as predictor:
        meta = predictor.metadata
    assert said in report.sentences(meta, meta.verification.lowered)
    x = meta.preprocess.batch(digits.image(i) for i in chosen)
    session = onnxruntime.InferenceSession(tmp_path / "copy.onnx", providers=["CPUExecutionProvider"])
    logits = session.run(None, {session.get_inputs()[0].name: x})[0]
    student = from_torch_logits(student_file, x)
    assert meta.verification.lowered.max_abs == pytest.approx(np.abs(logits - student).max(), rel=1e-3)


def from_torch_logits(file, x):
    network = models.build("resnet20", 10).eval()
    network.load_state_dict(checkpoint.load(file).state_dict)
    with torch.no_grad():
        return network(torch.from_numpy(x)).numpy()


def test_a_student_that_guesses_is_refused_before_calibration(student_file, tmp_path, capsys):
    guessing = checkpoint.load(student_file)
    guessing.state_dict = {
        key: torch.zeros_like(value) if key.startswith("linear") else value
        for key, value in guessing.state_dict.items()
    }
    checkpoint.save(guessing, tmp_path / "guessing.pth")
    assert export(tmp_path / "guessing.pth", *INT8) == 1
    assert "nothing to preserve" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["guessing.pth"]


def test_an_export_that_computes_something_else_exits_1_and_leaves_no_file(
    student_file, tmp_path, temporary, exported, monkeypatch, capsys
):
    wrong = from_torch.to_onnx()
    bias = next(t for t in wrong.graph.initializer if t.name == "linear.bias")
    bias.CopyFrom(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.01), "linear.bias")
    )
    monkeypatch.setattr(from_torch, "to_onnx", lambda *_: wrong)
    assert export(student_file, "--verify-size", 32, "--output", tmp_path / "student.onnx") == 1
    error = capsys.readouterr().err
    assert "ONNX against torch at batch 1: largest logit difference 0.01" in error
    assert sum(not line.startswith("note: ") for line in error.splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["temporary"] and not list(temporary.iterdir())


def test_a_failed_check_keeps_the_old_file(student_file, tmp_path, exported):
    out = tmp_path / "student.onnx"
    out.write_bytes(b"old")
    assert export(student_file, *INT8, *RUINED, "--output", out, "--overwrite") == 1
    assert out.read_bytes() == b"old"


def test_ranges_of_noise_are_marked_not_for_accuracy_and_held_to_no_budget(
    student_file, tmp_path, exported, capsys
):
    out = tmp_path / "a.onnx"
    assert export(student_file, *INT8, "--calib", "random", "--max-drop", 0, "--output", out) == 0
    printed, notes = capsys.readouterr()
    assert "not for accuracy" in printed and "not held to --max-drop" in notes
    with runtime.load(out) as predictor:
        how = predictor.metadata.quantization
    assert how.not_for_accuracy and how.images == [] and how.data == "random"


def test_calibrating_on_evaluation_images_is_refused_by_name(student_file, tmp_path, digits_npz, capsys):
    assert export(student_file, *INT8, "--calib", digits_npz(), "--output", tmp_path / "a.onnx") == 2
    error = capsys.readouterr().err
    assert "val.npz[" in error and "(digits:val[" in error and "also in --data" in error


@pytest.mark.parametrize("flag", ["--data", "--calib"])
def test_other_classes_exit_4_and_are_named(student_file, tmp_path, digits_npz, capsys, flag):
    spec = digits_npz(names="01234567xy", split="train")
    assert export(student_file, *INT8, flag, spec, "--output", tmp_path / "a.onnx") == 4
    assert "classes differ: 8, 9 only in" in capsys.readouterr().err


def test_images_in_another_order_of_classes_calibrate_alike(student_file, tmp_path, digits_npz):
    """The labels follow the names: the same images under the same names make the same network."""
    there = digits_npz(split="train")
    digits = open_images("digits", "train")
    names = np.array(list("9876543210"))
    np.savez(tmp_path / "back.npz", x=digits.x[:200], y=9 - digits.labels[:200], class_names=names)
    weights = []
    for file, spec in (("a.onnx", there), ("b.onnx", f"npz:{tmp_path / 'back.npz'}")):
        assert export(student_file, *INT8, "--calib", spec, "--output", tmp_path / file) == 0
        weights.append([each.SerializeToString() for each in onnx.load(tmp_path / file).graph.initializer])
    assert weights[0] == weights[1]


def test_an_unreadable_calibration_image_is_named(student_file, tmp_path, exported, capsys):
    digits = open_images("digits", "train")
    for i in range(40):
        folder = tmp_path / "train" / str(digits.labels[i])
        folder.mkdir(parents=True, exist_ok=True)
        digits.image(i).save(folder / f"{i}.png")
    (tmp_path / "train" / "5" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n cut short")
    assert export(student_file, *INT8, "--calib", tmp_path / "train", "--output", tmp_path / "a.onnx") == 2
    assert "broken.png: not a readable image" in capsys.readouterr().err
    assert not (tmp_path / "a.onnx").exists()


def test_foreign_weights_take_class_names_from_the_data_and_json_is_one_object(
    student, tmp_path, digits_npz, exported, capsys
):
    path = tmp_path / "foreign.th"
    torch.save({"state_dict": {f"module.{k}": v for k, v in student.state_dict().items()}}, path)
    assert (
        export(
            path,
            "--model",
            "resnet20",
            "--data",
            digits_npz(),
            *INT8,
            "--calib",
            "digits",
            "--max-drop",
            100,
            "--placement",
            "cpu",
            "--exclude",
            "layer1.0.*",
            "--json",
        )
        == 0
    )
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert "no class names; they are taken from npz:" in err
    assert "--exclude layer1.0.*: matched 2 nodes" in err
    assert result["rolled_back"] == [] and result["images"] == 200
    assert result["output"] == str(tmp_path / "foreign.int8.onnx") and result["precision"] == "int8"
    assert result["sha256"] == hashlib.sha256((tmp_path / "foreign.int8.onnx").read_bytes()).hexdigest()
    assert result["images"] == 200 and result["drop_points"] == pytest.approx(
        result["fp32_top1_percent"] - result["int8_top1_percent"]
    )
    with runtime.load(tmp_path / "foreign.int8.onnx") as predictor:
        assert predictor.class_names == [str(i) for i in range(10)]
        assert predictor.metadata.quantization.float_layers["layer1.0.conv1"] == "excluded"


def test_json_of_a_failure_is_one_object_too(tmp_path, capsys):
    assert export(tmp_path / "none.pth", "--json") == 2
    assert json.loads(capsys.readouterr().out) == {
        "error": f"{tmp_path}/none.pth: no such checkpoint",
        "exit_code": 2,
    }


def test_foreign_weights_without_a_name_or_data_say_what_to_give(student, tmp_path, capsys):
    path = tmp_path / "foreign.th"
    torch.save(student.state_dict(), path)
    assert export(path) == 2 and "--model NAME" in capsys.readouterr().err
    assert export(path, "--model", "resnet20") == 2 and "--data DIR" in capsys.readouterr().err


def test_recorded_data_that_is_gone_names_the_flag(student_file, tmp_path, capsys):
    moved = dataclasses.replace(checkpoint.load(student_file), lineage={"data": {"val_spec": "/gone"}})
    checkpoint.save(moved, tmp_path / "moved.pth")
    assert export(tmp_path / "moved.pth") == 2
    assert (
        "own val images cannot be opened here" in (error := capsys.readouterr().err) and "--data DIR" in error
    )
    assert export(tmp_path / "moved.pth", "--data", "digits", "--int8") == 2
    assert "--calib DIR" in capsys.readouterr().err


@pytest.mark.parametrize("words", [(), ("--int8",)])
def test_weights_that_are_nan_are_named(student_file, tmp_path, capsys, words):
    found = checkpoint.load(student_file)
    found.state_dict["layer2.0.conv1.weight"][0, 0, 0, 0] = torch.nan
    checkpoint.save(found, tmp_path / "nan.pth")
    assert export(tmp_path / "nan.pth", *words, "--output", tmp_path / "x.onnx") == 4
    assert "nan.pth: its weight layer2.0.conv1.weight holds NaN or inf" in capsys.readouterr().err
    assert not (tmp_path / "x.onnx").exists()


def test_an_existing_file_is_kept(student_file, tmp_path, capsys):
    (tmp_path / "a.onnx").write_bytes(b"old")
    assert export(student_file, "--output", tmp_path / "a.onnx") == 2
    assert "--overwrite" in capsys.readouterr().err and (tmp_path / "a.onnx").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--opset", "17"), "expected 18 to 21"),
        (("--opset", "18", "--int8"), "expected 19 to 21"),
        (("--int8", "--percentile", "0.5"), "above 50"),
        (("--int8", "--calib-size", "0"), "expected 1 or more"),
        (("--calib", "digits"), "only read with --int8"),
        (("--output", "a.plan"), "ends in .onnx"),
        (("--model-args", "kernel"), "expected KEY=VALUE"),
        (("--placement", "dla"), "dla"),
        (("--int8", "--fp16", "--placement", "cpu"), "no CPU engine has integer kernels between fp16 layers"),
        (("--fp16", "--equalize"), "--equalize is only read with --int8"),
        (("--atol", "-1"), "--atol -1.0: expected above 0"),
        (("--atol", "nan"), "--atol nan: expected a number"),
        (("--int8", "--max-drop", "nan"), "--max-drop nan: expected a number"),
        (("--fp16", "--max-drop", "-3"), "--max-drop -3.0: expected 0 or more"),
        (("--fp16", "--accuracy-size", "0"), "--accuracy-size 0: expected 1 or more"),
        (("--fp16", "--calib-size", "-5"), "--calib-size -5: expected 1 or more"),
        (("--fp16", "--calib", "random"), "--calib random is for ranges of int8"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_read(
    student_file, tmp_path, capsys, words, said
):
    extra = () if "--output" in words else ("--output", tmp_path / "a.onnx")
    assert export(student_file, *extra, *words) == 2
    assert said in capsys.readouterr().err


def test_exclude_without_a_match_is_an_error(student_file, tmp_path, exported, capsys):
    assert export(student_file, *INT8, "--output", tmp_path / "a.onnx", "--exclude", "layer9.*") == 2
    assert "--exclude layer9.*: matched 0 of" in capsys.readouterr().err


def test_image_size_replaces_the_checkpoints(student_file, tmp_path):
    options = OnnxOptions(checkpoint=student_file, img_size=48)
    sources = open_sources(options)
    found, held_out = sources.checkpoint, sources.evaluation
    assert found.preprocess.input_size == (3, 48, 48) and held_out.name == "digits:val"


def test_the_final_bytes_are_opened_before_they_are_written(student_file, tmp_path, exported, monkeypatch):
    from export.checks import verify

    monkeypatch.setattr(
        from_torch,
        "write_metadata",
        lambda model, meta, write=from_torch.write_metadata: write(
            model, meta if not meta.verification else dataclasses.replace(meta, model="something else")
        ),
    )
    assert (
        export(student_file, "--verify-size", 16, "--output", tmp_path / "a.onnx")
        == verify.GateError.exit_code
    )
    assert not (tmp_path / "a.onnx").exists()


def test_an_artifact_keeps_no_folder_of_this_disk():
    from export.stages.fp32 import without_folders

    lineage = {
        "data": {"train_spec": "npz:/home/ann/cifar10", "val_spec": "/data/photos", "train_images": 3},
        "teacher": None,
        "recipe": {
            "data": "torch/cifar10:/data/sets",
            "student_args": ["dims=[1,2]"],
            "lr": 0.1,
            "teacher_ckpt": "t.pth",
        },
    }
    assert without_folders(lineage) == {
        "data": {"train_spec": "npz:cifar10", "val_spec": "photos", "train_images": 3},
        "teacher": None,
        "recipe": {
            "data": "torch/cifar10:sets",
            "student_args": ["dims=[1,2]"],
            "lr": 0.1,
            "teacher_ckpt": "t.pth",
        },
    }


@pytest.mark.parametrize(
    ("flags", "placement"),
    [
        ({}, "cpu"),
        ({"fp16": True}, "tensorrt"),
        ({"placement": "cpu"}, "cpu"),
        ({"placement": "tensorrt"}, "tensorrt"),
    ],
)
def test_the_placement_is_what_was_asked_for_else_what_fits(student_file, flags, placement):
    student = checkpoint.load(student_file)
    options = OnnxOptions(checkpoint=student_file, int8=True, **flags)
    assert placement_of(options, student) == placement


def test_a_checkpoint_trained_as_int8_says_its_placement(student_file):
    student = dataclasses.replace(
        checkpoint.load(student_file), quantized={"settings": {"placement": "tensorrt"}}
    )
    assert placement_of(OnnxOptions(checkpoint=student_file, int8=True), student) == "tensorrt"
    damaged = dataclasses.replace(student, quantized={"settings": None})
    with pytest.raises(runtime.ArtifactError, match="'quantized' is damaged"):
        placement_of(OnnxOptions(checkpoint=student_file, int8=True), damaged)
