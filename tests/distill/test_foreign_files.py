"""Weights as other frameworks write them: read, and what was chosen and stripped is said; or refused in one
line. Nothing pickled runs.
"""

import collections
import dataclasses
import datetime
import os
import pathlib

import numpy as np
import pytest
import torch

from distill import checkpoint as checkpoints
from distill import models
from runtime.cli.front_door import main
from runtime.errors import ArtifactError
from runtime.preprocess import Preprocess

PLAIN = models.build("resnet20", 4, {"width": 0.25}).state_dict()
BETTER = {key: value + 1 if value.is_floating_point() else value for key, value in PLAIN.items()}
BODY = {
    key: value
    for key, value in PLAIN.items()
    if not key.startswith("linear.") and not key.endswith("num_batches_tracked")
}
NUMBERED = {f"{place}.{key.rpartition('.')[2]}": v for place, (key, v) in enumerate(BODY.items())}
"""The same with numbers for names, as from a row of layers."""
HALVES = {key: v.half().float() if v.is_floating_point() else v for key, v in PLAIN.items()}
RECOMPUTED = "_checkpoint_wrapped_module"
ARGS = {"width": 0.25}


def prefixed(prefix, weights=PLAIN):
    return {prefix + key: value for key, value in weights.items()}


READ = {
    "a state dict": (PLAIN, []),
    "a training loop's model_state_dict": (
        {"epoch": 3, "model_state_dict": PLAIN, "optimizer_state_dict": {"state": {0: {"m": torch.ones(2)}}}},
        ["entry 'model_state_dict'"],
    ),
    ("net beside a NumPy scalar (kuangliu's CIFAR loop)"): (
        {"net": PLAIN, "acc": np.float64(93.1)},
        ["entry 'net'"],
    ),
    "Lightning": (
        {
            "state_dict": prefixed("model."),
            "loops": collections.defaultdict(list, {"fit": [1]}),
            "hparams": {"lr": np.float32(0.1)},
        },
        ["entry 'state_dict'", "prefix 'model.' removed"],
    ),
    "DeepSpeed": ({"module": PLAIN, "dp_world_size": 8}, ["entry 'module'"]),
    "DistributedDataParallel and compile": (
        {"model": prefixed("module._orig_mod.")},
        ["'_orig_mod.' removed", "prefix 'module.'"],
    ),
    "torchvision's references": (
        {"model": PLAIN, "args": __import__("argparse").Namespace(lr=0.1), "epoch": 9},
        ["entry 'model'"],
    ),
    "OpenMMLab": (
        {
            "meta": {"seed": 0},
            "state_dict": {
                ("head.fc." if key.startswith("linear.") else "backbone.")
                + key.removeprefix("linear."): value
                for key, value in PLAIN.items()
            },
        },
        ["prefix 'backbone.' removed", "of another head"],
    ),
    "a distiller's student": ({"weights": prefixed("student.")}, ["entry 'weights'", "prefix 'student.'"]),
    "averaged weights beside others": (
        {"model": PLAIN, "ema": BETTER},
        ["entry 'ema', the averaged weights; 'model' holds the others (--checkpoint-key model)"],
    ),
    "averaged weights in a wrapper": ({"model": PLAIN, "ema": {"module": BETTER}}, ["entry 'ema.module'"]),
    "one dictionary of any name": (
        {"my_net": PLAIN, "where": pathlib.PurePosixPath("x")},
        ["entry 'my_net'"],
    ),
    "Fully Sharded Data Parallel": (
        {"model": {key.replace("layer", "_fsdp_wrapped_module.layer", 1): v for key, v in PLAIN.items()}},
        ["'_fsdp_wrapped_module.' removed from 108 names"],
    ),
    "layers that are recomputed and compiled": (
        {
            "state_dict": {
                ("module." + key)
                .replace("conv", "_checkpoint_wrapped_module.conv")
                .replace("bn", "_orig_mod.bn"): v
                for key, v in PLAIN.items()
            }
        },
        [
            "'_checkpoint_wrapped_module.' removed from 19 names",
            "'_orig_mod.' removed from",
            "prefix 'module.'",
        ],
    ),
    "an average of torch": (
        {"n_averaged": torch.tensor(7), **prefixed("module.")},
        ["left out: 1 counters (first: n_averaged)", "prefix 'module.'"],
    ),
    "timm's average beside the last weights": (
        {"arch": "resnet20", "state_dict": PLAIN, "state_dict_ema": BETTER, "metric": 91.0},
        ["entry 'state_dict_ema', the averaged weights"],
    ),
    "operations counted by thop": (
        {**PLAIN, "total_ops": torch.zeros(1), "layer1.0.conv1.total_params": torch.zeros(1)},
        ["left out: 2 counters (first: total_ops)"],
    ),
    "pruned by torch": (
        {
            **{key: value for key, value in PLAIN.items() if key != "conv1.weight"},
            "conv1.weight_orig": PLAIN["conv1.weight"],
            "conv1.weight_mask": torch.ones_like(PLAIN["conv1.weight"]),
        },
        ["pruned: 1 weights multiplied by their masks (first: conv1.weight)"],
    ),
    "a Lightning module with a loss of its own": (
        {"state_dict": {**prefixed("model.backbone."), "criterion.weight": torch.ones(4)}},
        ["begin with 'model.backbone.'; left out: 1 others (first: criterion.weight)"],
    ),
    "MoCo": (
        {
            "state_dict": {
                **prefixed("module.encoder_q."),
                **prefixed("module.encoder_k.", BETTER),
                "module.queue": torch.ones(8, 2),
            }
        },
        ["prefix 'module.'", "begin with 'encoder_q.'"],
    ),
    "a detector's backbone": (
        {"model": {**prefixed("backbone.body."), "rpn.head.conv.weight": torch.ones(2, 2, 3, 3)}},
        ["begin with 'backbone.body.'"],
    ),
    "a network behind its normalization": (
        {**prefixed("1."), "0.mean": torch.zeros(3), "0.std": torch.ones(3)},
        ["begin with '1.'; left out: 2 others (first: 0.mean)"],
    ),
    "timm in fastai": (
        {"model": {**prefixed("0.model."), "1.2.weight": torch.ones(4, 32)}, "opt": {}},
        ["entry 'model'", "begin with '0.model.'"],
    ),
    "numbers for names (lightly, fastai)": (
        {
            "state_dict": {
                **{
                    f"backbone.{place}.{key.rpartition('.')[2]}": v
                    for place, (key, v) in enumerate(BODY.items())
                },
                "projection_head.layers.0.weight": torch.ones(2, 2),
            }
        },
        [f"names matched by their order: {len(BODY)} weights", "-> conv1.weight"],
    ),
    "numbers for names with the classifier": (
        {f"{place}.{key.rpartition('.')[2]}": v for place, (key, v) in enumerate(PLAIN.items())},
        [f"names matched by their order: {len(BODY)} weights"],
    ),
    "NumPy arrays (Detectron2)": (
        {"model": {key: value.numpy() for key, value in PLAIN.items()}, "matching_heuristics": True},
        ["entry 'model'"],
    ),
    "DINO": (
        {"student": prefixed("module.backbone."), "teacher": prefixed("backbone."), "epoch": 3},
        ["entry 'student'; other entries with weights: teacher (--checkpoint-key teacher)"],
    ),
    "half precision": ({key: v.half() if v.is_floating_point() else v for key, v in HALVES.items()}, []),
    "arrays beside the weights": ({"model": PLAIN, "mean": np.arange(3.0)}, ["entry 'model'"]),
}


@pytest.mark.parametrize("habit", READ)
def test_a_habit_is_read_and_said(habit, tmp_path):
    values, words = READ[habit]
    torch.save(values, tmp_path / "w.pth")
    found = checkpoints.load_any(tmp_path / "w.pth", "resnet20", ARGS)
    said = "; ".join(found.notes)
    network = models.build("resnet20", 4, ARGS)
    weights, notes = models.classifier.fitted(network, found.state_dict, None, list("abcd"))
    said += "; " + "; ".join(notes)
    assert all(each in said for each in words), said
    checkpoints.load_weights(network, dataclasses.replace(found, state_dict=weights))
    expected = BETTER if {"ema", "state_dict_ema"} & set(values) else PLAIN
    expected = HALVES if habit == "half precision" else expected
    assert all(network.state_dict()[key].equal(expected[key]) for key in BODY)


def test_an_entry_can_be_named(tmp_path):
    torch.save({"a": {"b": PLAIN}, "c": BETTER}, tmp_path / "w.pth")
    for entry, expected in (("a.b", PLAIN), ("c", BETTER)):
        found = checkpoints.load_any(tmp_path / "w.pth", "resnet20", ARGS, entry=entry)
        assert torch.equal(found.state_dict["conv1.weight"], expected["conv1.weight"])
    with pytest.raises(ArtifactError, match=r"no weights in an entry 'd'. Entries with weights: c, a\.b"):
        checkpoints.load_any(tmp_path / "w.pth", "resnet20", ARGS, entry="d")
    with pytest.raises(ArtifactError, match=r"name one: --checkpoint-key c or a\.b"):
        checkpoints.load_any(tmp_path / "w.pth", "resnet20", ARGS)


class Harmful:
    def __reduce__(self):
        return os.system, ("touch PWNED",)


REFUSED = {
    "sparse": ({"w": torch.eye(3).to_sparse()}, "w is a sparse tensor"),
    "without values": ({"w": torch.ones(2, device="meta")}, "w is a meta tensor"),
    "whole numbers": (
        PLAIN | {"conv1.weight": PLAIN["conv1.weight"].to(torch.int8)},
        "conv1.weight is int8 in the file",
    ),
    "complex": ({"w": torch.ones(2, dtype=torch.complex64)}, "w is a complex tensor"),
    "a class of another project": ({"model": Harmful()}, "pickled code, which is never run"),
    "code beside weights": ({"model": PLAIN, "callback": Harmful()}, "pickled code, which is never run"),
    "a date": ({"model": PLAIN, "when": datetime.datetime(2026, 1, 1)}, "pickled code, which is never run"),
    "no weights": ({"epoch": 3, "lr": 0.1}, "holds no weights (entries: epoch, lr)"),
    "names of Keras": (
        {f"conv_{place}/kernel:0": v for place, v in enumerate(PLAIN.values())},
        "weights missing (first: conv1.weight)",
    ),
    "names of transformers, other shapes": (
        {f"resnet.encoder.{place}.weight": torch.ones(place + 1) for place in range(90)},
        "weights missing (first: conv1.weight)",
    ),
    "counters alone": ({"n_averaged": torch.ones(1)}, "holds no weights, only counters"),
    "counters in an entry": ({"model": {"total_ops": torch.ones(1)}}, "holds no weights, only counters"),
    "a mask of another shape": (
        {"conv1.weight_orig": torch.ones(3), "conv1.weight_mask": torch.ones(4)},
        "conv1.weight_orig is (3,) and its mask (4,)",
    ),
    "an average without names": ({"decay": 0.99, "shadow_params": [torch.ones(2)]}, "holds no weights"),
    "a list": ([torch.ones(2)], "holds a list; expected a dict of weights"),
}


@pytest.mark.parametrize("habit", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line(habit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values, words = REFUSED[habit]
    torch.save(values, tmp_path / "w.pth")
    with pytest.raises(ArtifactError) as caught:
        found = checkpoints.load_any(tmp_path / "w.pth", "resnet20", ARGS)
        checkpoints.load_weights(models.build("resnet20", 4, ARGS), found)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "PWNED").exists()


def test_the_shapes_must_all_be_the_same(tmp_path):
    """One other shape, or one other kind, and the order says nothing."""
    last = list(NUMBERED)[-1]
    for changed in (
        NUMBERED | {last: torch.ones(3)},
        {("x." + key if key != last else "x.0.scale"): v for key, v in NUMBERED.items()},
        {key: NUMBERED[key] for key in list(NUMBERED)[:-1]},
    ):
        torch.save(changed, tmp_path / "w.pth")
        found = checkpoints.load_any(tmp_path / "w.pth", "resnet20", ARGS)
        assert not any("order" in note for note in found.notes)


def test_torchscript_is_named(tmp_path):
    torch.jit.script(torch.nn.Conv2d(1, 1, 1)).save(str(tmp_path / "s.pt"))
    with pytest.raises(ArtifactError, match="a TorchScript archive, whose code is never run"):
        checkpoints.load_any(tmp_path / "s.pt", "resnet20", ARGS)


@pytest.mark.filterwarnings("ignore")
def test_a_quantized_tensor_is_refused_by_name(tmp_path):
    torch.save({"w": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, tmp_path / "w.pth")
    with pytest.raises(ArtifactError, match="w is a quantized tensor"):
        checkpoints.load_any(tmp_path / "w.pth", "resnet20", ARGS)


HOSTILE = {
    "a number for lines": (("lineage", "converted"), 3, "lineage.converted is a int"),
    "numbers for lines": (("lineage", "converted"), [3], "lineage.converted holds a int"),
    "a number for data": (("lineage", "data"), 3, "lineage.data is a int"),
    "a list for a hash": (("lineage", "teacher", "sha256"), [1], "lineage.teacher.sha256 is a list"),
    "a list in stored labels": (("lineage", "labels"), {"sha256": [1]}, "lineage.labels.sha256 is a list"),
    "labels in a list": (("lineage",), {"labels": [1]}, "lineage.labels is a list"),
    "a number for a name": (
        ("lineage", "fitted_from"),
        {"published": 3},
        "lineage.fitted_from.published is a int",
    ),
    "a number without end": (("metrics", "top1"), 10**400, "metrics.top1 is a whole number beyond 64 bits"),
    "a mean without end": (("preprocess", "mean"), [10**400, 0, 0], "damaged checkpoint (mean 1000"),
    "a size without end": (("preprocess", "input_size"), [3, 10**400, 1], "(input_size (3, 1000"),
    "a crop without pixels": (("preprocess", "crop_pct"), 17.0, "crop_pct 17.0 of input_size"),
    "a mark that is a tensor": (
        ("large2small_checkpoint",),
        torch.ones(2),
        "schema of type Tensor",
    ),
    "a mark that is true": (("large2small_checkpoint",), True, "schema of type bool"),
    "a mark without end": (("large2small_checkpoint",), 10**400, "checkpoint schema 1000"),
    "a tensor in a metric": (("metrics", "top1"), torch.ones(1), "metrics.top1 is a Tensor"),
    "numbers for class names": (("class_names",), [1, 2, 3, 4], "class_names holds more than names"),
    "a number for a weight": (("state_dict", "conv1.weight"), 3, "'conv1.weight' is a int, not a tensor"),
    "a sparse weight": (("state_dict", "conv1.weight"), torch.eye(3).to_sparse(), "is a sparse tensor"),
    "a number for a role": (("role",), 3, "role is a int"),
    "a state that is text": (("state",), "x", "state is a str"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_damaged_checkpoint_of_ours_is_refused_in_one_line(case, tmp_path, capsys):
    """Whatever its lineage holds is read again by eval, export, inspect and a resumed run."""
    where, value, words = HOSTILE[case]
    path = tmp_path / "best.pth"
    spec = Preprocess((3, 16, 16), "bilinear", 1.0)
    checkpoints.save(checkpoints.Checkpoint("resnet20", ARGS, PLAIN, spec, list("abcd")), path)
    values = torch.load(path, weights_only=True)
    inside = values
    for part in where[:-1]:
        inside = inside.setdefault(part, {})
    inside[where[-1]] = value
    torch.save(values, path)
    for command in (["eval", str(path), "--data", "digits"], ["inspect", str(path)]):
        assert main(command) == 4
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1 and words in said[0], said


def test_what_is_nested_without_end_is_refused(tmp_path):
    inside: list = []
    for _ in range(100):
        inside = [inside]
    spec = Preprocess((3, 16, 16), "bilinear", 1.0)
    checkpoints.save(
        checkpoints.Checkpoint("resnet20", ARGS, PLAIN, spec, list("abcd"), lineage={"x": inside}),
        tmp_path / "best.pth",
    )
    with pytest.raises(ArtifactError, match="nested more than 16 deep"):
        checkpoints.load(tmp_path / "best.pth")


@pytest.fixture
def two_entries(tmp_path):
    """A foreign file with two sets of weights, and images of its classes."""
    dice = np.random.default_rng(0)
    for split in ("train", "val"):
        x = dice.integers(0, 256, (8, 16, 16, 3)).astype(np.uint8)
        np.savez(tmp_path / f"{split}.npz", x=x, y=np.arange(8) % 4, class_names=np.array(list("abcd")))
    torch.save({"model": PLAIN, "ema": {"module": BETTER}}, tmp_path / "two.pth")
    return tmp_path


def test_every_command_takes_the_entry_that_is_named(two_entries, capsys, monkeypatch):
    monkeypatch.chdir(two_entries)
    foreign = ["two.pth", "--model", "resnet20", "--model-args", "width=0.25", "--img-size", "16"]
    data = ["--data", f"npz:{two_entries}"]
    assert main(["eval", *foreign, *data]) == 0
    assert "taken from entry 'ema.module', the averaged weights" in capsys.readouterr().out
    assert main(["eval", *foreign, *data, "--checkpoint-key", "model"]) == 0
    assert "taken from entry 'model'" in capsys.readouterr().out
    assert main(["erf", *foreign, *data, "--checkpoint-key", "model", "--num-images", "1"]) == 0
    key = ["--checkpoint-key", "model"]
    assert main(["export", "onnx", *foreign, *data, *key, "--output", "x.onnx"]) == 0
    assert main(["parity", "two.pth", "x.onnx", *foreign[1:], *data, *key]) == 0
    assert (
        main(["parity", "two.pth", "x.onnx", *foreign[1:], *data]) == 1
    )  # the other entry is another network
    capsys.readouterr()
    assert main(["inspect", "two.pth", *key, "--all"]) == 0
    assert "taken from entry 'model'" in capsys.readouterr().out
    for command in (
        ["eval", *foreign, *data, "--checkpoint-key", "nothing"],
        ["inspect", "two.pth", "--checkpoint-key", "nothing"],
    ):
        assert main(command) == 4
        assert "Entries with weights: model, ema.module" in capsys.readouterr().err


def test_an_entry_of_what_has_none_is_refused(two_entries, capsys):
    spec = Preprocess((3, 16, 16), "bilinear", 1.0)
    path = str(two_entries / "ours.pth")
    checkpoints.save(checkpoints.Checkpoint("resnet20", ARGS, PLAIN, spec, list("abcd")), path)
    data = ["--data", f"npz:{two_entries}"]
    for command in (
        ["eval", path, *data],
        ["erf", path, *data, "--output", str(two_entries / "erf")],
        ["export", "onnx", path, *data],
        ["inspect", path],
        ["train", *data, "--student-ckpt", path, "--output", str(two_entries / "run")],
    ):
        assert main([*command, "--checkpoint-key", "model"]) == 2
        assert "checkpoint of this project" in capsys.readouterr().err
