"""Weights as other frameworks write them: read, and what was chosen and stripped is said; or refused in one
line. Nothing pickled runs.
"""

import collections
import datetime
import os
import pathlib

import numpy as np
import pytest
import torch

from distill import checkpoint as checkpoints
from distill import models
from runtime.errors import ArtifactError

PLAIN = models.build("resnet20", 4, {"width": 0.25}).state_dict()
BETTER = {key: value + 1 if value.is_floating_point() else value for key, value in PLAIN.items()}
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
        ["prefix 'module.'", "prefix '_orig_mod.'"],
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
    network.load_state_dict(weights)
    expected = BETTER if "ema" in values else PLAIN
    assert torch.equal(network.conv1.weight, expected["conv1.weight"])


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
    "complex": ({"w": torch.ones(2, dtype=torch.complex64)}, "w is a complex tensor"),
    "a class of another project": ({"model": Harmful()}, "pickled code, which is never run"),
    "code beside weights": ({"model": PLAIN, "callback": Harmful()}, "pickled code, which is never run"),
    "a date": ({"model": PLAIN, "when": datetime.datetime(2026, 1, 1)}, "pickled code, which is never run"),
    "no weights": ({"epoch": 3, "lr": 0.1}, "holds no weights (entries: epoch, lr)"),
    "a list": ([torch.ones(2)], "holds a list; expected a dict of weights"),
}


@pytest.mark.parametrize("habit", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line(habit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values, words = REFUSED[habit]
    torch.save(values, tmp_path / "w.pth")
    with pytest.raises(ArtifactError) as caught:
        checkpoints.load_any(tmp_path / "w.pth", "resnet20", ARGS)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_quantized_tensor_is_refused_by_name(tmp_path):
    torch.save({"w": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, tmp_path / "w.pth")
    with pytest.raises(ArtifactError, match="w is a quantized tensor"):
        checkpoints.load_any(tmp_path / "w.pth", "resnet20", ARGS)
