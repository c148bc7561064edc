"""export.qat.trainer, export.qat.trained and `distill train --qat`: what is exported is what was trained,
from the command line to the int8 graph.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

from distill import checkpoint, models
from distill.__main__ import main
from distill.commands.train import is_qat
from distill.training.trainer import Trainer
from export.commands import train_qat
from export.graph import from_torch
from export.qat import trained
from runtime.errors import ArtifactError, Interrupted, UsageError
from runtime.preprocess import Preprocess

pytestmark = pytest.mark.usefixtures("exports_once", "without_report")
SIZE = (3, 16, 16)
NAMES = ["ant", "bee", "cat", "dog"]
FAST = [
    "--epochs",
    "2",
    "--batch",
    "8",
    "--eval-batch",
    "16",
    "--opt",
    "adamw",
    "--lr",
    "1e-4",
    "--calib-size",
    "16",
    "--device",
    "cpu",
    "--checkpoint-minutes",
    "0",
    "--crop-padding",
    "2",
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, exports_once):
    """A folder with set/ (32 and 32 images with a stripe whose place is the class), runs/student/ and
    teacher.pth.
    """
    root = tmp_path_factory.mktemp("qat")
    (root / "set").mkdir()
    for split, seed in (("train", 0), ("val", 1)):
        x = np.random.default_rng(seed).integers(0, 100, (32, 16, 16, 3)).astype(np.uint8)
        y = np.arange(32) % 4
        for image, label in zip(x, y, strict=True):
            image[:, 4 * label : 4 * label + 4] += 150
        np.savez(root / "set" / f"{split}.npz", x=x, y=y, class_names=np.array(NAMES))
    spec = f"npz:{root / 'set'}"
    (root / "runs" / "student").mkdir(parents=True)
    (root / "runs" / "student" / "args.yaml").write_text("student: resnet20\n")
    for name, seed in (("runs/student/best.pth", 0), ("teacher.pth", 1)):
        torch.manual_seed(seed)
        network = models.build("resnet20", 4, {"width": 0.5})
        network.train()(torch.randn(64, *SIZE))  # batch norm has seen something
        checkpoint.save(
            checkpoint.Checkpoint(
                "resnet20",
                {"width": 0.5},
                network.state_dict(),
                Preprocess(input_size=SIZE, crop_pct=1.0),
                NAMES,
                lineage={
                    "data": {"train_spec": spec, "val_spec": spec},
                    "recipe": {
                        "smoothing": 0.1,
                        "kd_loss": "nkd",
                        "drop_path": 0.2,
                        "lr": 0.5,
                        "feature_loss": "fitnets",
                    },
                },
            ),
            root / name,
        )
    return root


@pytest.fixture(scope="module")
def fp32(workspace):
    """The student's fp32 graph, as export makes it."""
    found = checkpoint.load(workspace / "runs/student/best.pth")
    network = models.build("resnet20", 4, {"width": 0.5})
    checkpoint.load_weights(network, found)
    return from_torch.to_onnx(from_torch.merge(network.eval()), SIZE)


def train_as_int8(workspace, output, *more):
    return main(
        [
            "train",
            "--qat",
            "--resume",
            str(workspace / "runs/student/best.pth"),
            "--teacher-ckpt",
            str(workspace / "teacher.pth"),
            "--output",
            str(workspace / output),
            *FAST,
            *more,
        ]
    )


@pytest.fixture(scope="module", params=["tensorrt", "cpu"])
def run(request, workspace):
    """(placement, best.pth) of a tiny run."""
    assert train_as_int8(workspace, request.param, "--placement", request.param) == 0
    return request.param, checkpoint.load(workspace / request.param / "best.pth")


def initializers(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_exported_scales_are_the_trained_ones_to_the_bit(run, fp32, workspace):
    placement, best = run
    int8 = trained.trained_graph(best, fp32).quantized()
    found, state = initializers(int8), best.quantized["state"]
    activations = {
        node.input[0]: node.input[1:3] for node in int8.graph.node if node.op_type == "QuantizeLinear"
    }
    moved = 0
    for tensor, (scale, zero) in activations.items():
        assert found[scale] == best.quantized["scales"][tensor].numpy()
        assert found[zero] == best.quantized["zero_points"][tensor]
        assert found[zero].dtype == (np.int8 if placement == "tensorrt" else np.uint8)
        if f"{scale}_start" in state:  # not one of those that share another's
            moved += bool(found[scale] != state[f"{scale}_start"].numpy())
            by_hand = state[f"{scale}_start"].double() * (300 * state[scale].double()).exp()
            assert found[scale] == pytest.approx(by_hand.item(), rel=1e-6)
    assert moved > len(activations) / 2


def test_exported_weights_are_the_trained_ones_in_steps_of_their_trained_scales(run, fp32):
    _, best = run
    found, state, before = (
        initializers(trained.trained_graph(best, fp32).quantized()),
        best.quantized["state"],
        initializers(fp32),
    )
    assert best.quantized["layers"]
    for layer in best.quantized["layers"]:
        weight, scales = state[f"{layer}.weight"].numpy(), best.quantized["scales"][f"{layer}.weight"].numpy()
        assert (found[f"{layer}.weight_scale"] == scales).all()
        exact = weight.astype(np.float64) / scales.reshape(-1, *[1] * (weight.ndim - 1))
        assert np.abs(found[f"{layer}.weight_int8"] - np.clip(exact, -127, 127)).max() <= 0.5 + 1e-5
        assert (weight != before[f"{layer}.weight"]).any()
    kept_float = [name for name in state if name in found and name in before]
    assert kept_float  # biases, in the tensorrt placement the last layer too
    assert all((found[name] == state[name].numpy()).all() for name in kept_float)


def test_the_exported_graph_has_the_accuracy_that_training_reported(run, fp32, workspace):
    _, best = run
    settings = ort.SessionOptions()
    settings.graph_optimization_level = (
        ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    )  # these change the order of sums
    session = ort.InferenceSession(
        trained.trained_graph(best, fp32).quantized().SerializeToString(), settings
    )
    data = np.load(workspace / "set" / "val.npz")
    from PIL import Image

    images = best.preprocess.batch(Image.fromarray(image) for image in data["x"])
    found = session.run(None, {"images": images})[0].argmax(1)
    assert best.metrics["images"] == 32
    assert abs(100 * (found == data["y"]).mean() - best.metrics["int8_top1"]) <= 100 / 32


def test_the_checkpoint_still_is_the_fp32_student_and_says_what_both_can(run, workspace, capsys):
    _, best = run
    student = checkpoint.load(workspace / "runs/student/best.pth")
    assert all(torch.equal(best.state_dict[key], value) for key, value in student.state_dict.items())
    assert {"top1", "int8_top1", "untrained_int8_top1"} <= set(best.metrics)
    assert best.lineage["student"]["file"] == str(workspace / "runs/student/best.pth")
    assert main(["eval", best.path]) == 0 and "not the int8 graph" in capsys.readouterr().out
    assert main(["eval", best.path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1_percent"] == pytest.approx(best.metrics["top1"])
    result = json.loads((workspace / run[0] / "result.json").read_text())["best"]
    assert (
        result["top1_percent"] == best.metrics["int8_top1"]
        and result["fp32_top1_percent"] == best.metrics["top1"]
    )


def test_another_placement_graph_or_student_is_refused(run, fp32, workspace):
    placement, best = run
    other = {"tensorrt": "cpu", "cpu": "tensorrt"}[placement]
    with pytest.raises(UsageError, match=f"was trained for --placement {placement}, not {other}"):
        trained.trained_graph(best, fp32, other)
    network = models.build("resnet20", 4, {"width": 0.5})
    with pytest.raises(
        ArtifactError, match=r"not the one that was trained\. It was trained at opset 19: give --opset 19"
    ):
        trained.trained_graph(
            dataclasses.replace(best, quantized=best.quantized | {"layers": best.quantized["layers"][1:]}),
            from_torch.to_onnx(from_torch.merge(network.eval()), SIZE, 20),
        )
    with pytest.raises(ArtifactError, match="belong to another fp32 student"):
        trained.trained_graph(dataclasses.replace(best, state_dict=network.state_dict()), fp32)
    with pytest.raises(ArtifactError, match="was not trained as an int8 graph"):
        trained.trained_graph(checkpoint.load(workspace / "runs/student/best.pth"), fp32)


def test_a_damaged_entry_is_refused_in_one_line(run, fp32):
    _, best = run
    conv = next(name for name, value in best.quantized["state"].items() if value.ndim == 4)
    tensor = next(name for name in best.quantized["zero_points"])
    for changes, words in (
        ({"schema": torch.ones(2)}, "of schema of type Tensor"),
        ({"layers": 3}, "layers is not a list of names"),
        ({"ranges": {tensor: ["a", "b"]}}, "ranges holds something else than"),
        ({"zero_points": {tensor: "x"}}, "zero_points holds a str"),
        ({"zero_points": {}}, "does not fit the graph"),
        ({"scales": [1]}, "scales is a list"),
        ({"scales": {}}, "does not fit the graph"),
        ({"state": best.quantized["state"] | {conv: torch.ones(3)}}, f"of {conv} does not fit the graph"),
        ({"state": best.quantized["state"] | {conv: torch.eye(3).to_sparse()}}, "is a sparse tensor"),
        ({"settings": [1]}, "is damaged (TypeError"),
        ({"settings": best.quantized["settings"] | {"placement": "x"}}, "a placement that is not known"),
    ):
        with pytest.raises(ArtifactError) as caught:
            trained.trained_graph(dataclasses.replace(best, quantized=best.quantized | changes), fp32)
        assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ("--calib-draws", "2"),
        ("--calib-method", "auto"),
        ("--exclude", "conv1"),
        ("--equalize",),
        ("--depthwise", "fp32"),
        ("--last-layer", "int8"),
    ],
)
def test_settings_of_a_calibration_are_refused_for_what_was_trained(run, tmp_path, capsys, words):
    _, best = run
    assert (
        main(["export", "onnx", "--int8", str(best.path), "--output", str(tmp_path / "a.onnx"), *words]) == 2
    )
    assert (
        f"{words[0]}: {best.path} holds weights, layers and scales trained as int8" in capsys.readouterr().err
    )
    assert not list(tmp_path.iterdir())


def test_layers_may_go_back_to_float_and_keep_their_trained_weights(run, fp32):
    _, best = run
    parts = trained.trained_graph(best, fp32)
    weights = initializers(parts.model)
    assert all(
        (weights[f"{layer}.weight"] == best.quantized["state"][f"{layer}.weight"].numpy()).all()
        for layer in parts.layout.layers
    )


# ---- the run


def test_an_interrupted_run_goes_on_bit_for_bit(workspace, monkeypatch):
    more = ["--mixup", "0.4", "--model-ema"]
    assert train_as_int8(workspace, "whole", *more) == 0

    def stop(trainer):
        if trainer.updates == 3:
            raise Interrupted("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "check_stop", stop)
        assert train_as_int8(workspace, "cut", *more) == 130
    assert checkpoint.load(workspace / "cut/last.pth").state["updates"] == 3
    assert main(["train", "--resume", str(workspace / "cut")]) == 0
    for name in ("last.pth", "best.pth"):
        whole, cut = (checkpoint.load(workspace / folder / name) for folder in ("whole", "cut"))
        state = whole.quantized["state"]
        assert [key for key in state if not torch.equal(state[key], cut.quantized["state"][key])] == []
        assert whole.metrics == cut.metrics and whole.quantized["ranges"] == cut.quantized["ranges"]


def test_a_resumed_run_keeps_its_quantization_and_its_student(workspace, capsys):
    assert train_as_int8(workspace, "kept", "--epochs", "1") == 0
    assert main(["train", "--resume", str(workspace / "kept"), "--exclude", "layer1.*"]) == 2
    assert "the run to resume has" in capsys.readouterr().err
    last = checkpoint.load(workspace / "kept/last.pth")
    last.quantized["fp32_sha256"] = "0" * 64
    checkpoint.save(last, workspace / "kept/last.pth")
    assert main(["train", "--resume", str(workspace / "kept")]) == 2
    assert "is not the student that the run began with" in capsys.readouterr().err


def test_the_students_own_recipe_is_the_start_and_flags_come_over_it(workspace):
    options = train_qat.parse(
        ["--qat", "--resume", str(workspace / "runs/student/best.pth"), "--epochs", "7"]
    )
    assert (options.smoothing, options.kd_loss, options.img_size) == (0.1, "nkd", 16)
    assert (options.epochs, options.drop_path, options.feature_loss) == (7, 0.0, "none")
    assert options.lr == train_qat.FINE_TUNING["lr"]
    assert options.data == f"npz:{workspace / 'set'}"
    assert options.output == str(workspace / "runs/student-qat")
    assert options.resume == "" and options.student_ckpt == str(workspace / "runs/student/best.pth")
    assert (
        train_qat.parse(["--qat", "--resume", str(workspace / "runs/student")]).student_ckpt
        == options.student_ckpt
    )


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ("runs/student", "best.pth"),
        ("runs/student", "."),
        ("runs", "student"),
        ("runs/student/control", ".."),
        (".", "runs/student"),
    ],
)
def test_the_run_goes_beside_the_students_own_wherever_it_is_typed(workspace, monkeypatch, where, named):
    (workspace / where).mkdir(exist_ok=True)
    monkeypatch.chdir(workspace / where)
    options = train_qat.parse(["--qat", "--resume", named])
    assert Path(options.output).resolve() == workspace / "runs/student-qat"


def test_the_run_folder_says_that_it_is_quantized_and_how(run, workspace):
    options = train_qat.parse(["--resume", str(workspace / run[0])])
    assert options.qat and options.placement == run[0] and options.calib_size == 16
    assert is_qat(["--resume", str(workspace / run[0])]) and not is_qat(
        ["--resume", str(workspace / "runs/student")]
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--amp"], "--amp does not go with --qat"),
        (["--compile"], "--compile does not go with --qat"),
        (["--sparsity", "0.4"], "--sparsity does not go with --qat"),
        (["--drop-path", "0.1"], "--drop-path does not go with --qat"),
        (["--feature-loss", "fd"], "loss fd: compares feature maps"),
        (["--losses", "kl", "mgd:weight=2"], "loss mgd: compares feature maps"),
        (["--erf"], "--erf measures float networks"),
        (["--opset", "18"], "--opset 18: expected 19 to 21"),
        (["--calib-size", "0"], "--calib-size 0: expected 1 or more"),
        (["--percentile", "0"], "--percentile 0"),
        (["--student-ckpt", "other.pth"], "with --qat the student is what --resume names"),
        (["--exclude", "layer9*"], "--exclude layer9*: matched 0 of"),
        (["--exclude", "*"], "nothing to quantize"),
        (["--placement", "gpu"], "placement"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(workspace, capsys, flags, message):
    assert train_as_int8(workspace, "refused", *flags) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]
    assert not (workspace / "refused" / "best.pth").exists()


def test_there_must_be_a_student_and_it_must_be_a_float_one(run, workspace, capsys):
    assert main(["train", "--qat", "--data", "digits"]) == 2
    assert "--qat fine-tunes a trained student. Name it: --resume" in capsys.readouterr().err
    copy = workspace / "copy.pth"
    copy.write_bytes((workspace / run[0] / "best.pth").read_bytes())
    assert main(["train", "--qat", "--resume", str(copy)]) == 2
    assert "was trained with --qat already" in capsys.readouterr().err
