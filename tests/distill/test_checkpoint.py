"""Checkpoints: come back as written, load whole or not at all, and never run what is in them."""

import argparse
import contextlib
import errno
import io
import os
import pickle
import random
from pathlib import Path

import pytest
import torch

from distill import checkpoint as checkpoints
from distill import models
from distill.checkpoint import Checkpoint
from runtime.errors import ArtifactError, MissingError, UsageError
from runtime.preprocess import Preprocess


@pytest.fixture
def model():
    torch.manual_seed(0)
    return models.build("resnet20", 4, {"width": 0.25})


@pytest.fixture
def mine(model):
    return Checkpoint(
        "resnet20",
        {"width": 0.25},
        model.state_dict(),
        Preprocess((3, 16, 16), "bilinear", 1.0),
        ["ant", "bee", "cat", "dog"],
        "student",
        {"top1": 12.5},
        {"data": {"val_spec": "npz:x"}},
        {"epoch": 3, "random": {"python": (3, (1, 2), None)}},
    )


def test_comes_back_as_written(mine, tmp_path, same_weights):
    checkpoints.save(mine, tmp_path / "a.pth")
    found = checkpoints.load(tmp_path / "a.pth")
    same_weights(found.state_dict, mine.state_dict)
    for name in ("model", "model_args", "preprocess", "class_names", "role", "metrics", "lineage", "state"):
        assert getattr(found, name) == getattr(mine, name), name
    assert found.num_classes == 4


def test_fills_the_network_it_describes(mine, tmp_path, model, same_weights):
    checkpoints.save(mine, tmp_path / "a.pth")
    found = checkpoints.load_any(tmp_path / "a.pth")
    other = models.build(found.model, found.num_classes, found.model_args)
    checkpoints.load_weights(other, found)
    same_weights(other.state_dict(), model.state_dict())


def test_is_read_without_running_code(mine, tmp_path):
    checkpoints.save(mine, tmp_path / "a.pth")
    torch.load(tmp_path / "a.pth", weights_only=True)


def test_describe_holds_no_weights(mine):
    import json

    assert json.loads(json.dumps(checkpoints.describe(mine)))["class_names"] == ["ant", "bee", "cat", "dog"]


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_cut_anywhere_is_refused_with_one_line(mine, tmp_path, legacy):
    buffer = io.BytesIO()
    values = {checkpoints.MARK: 1, "state_dict": mine.state_dict, "model": "resnet20"}
    torch.save(values, buffer, _use_new_zipfile_serialization=not legacy)
    whole, file = buffer.getvalue(), tmp_path / "cut.pth"
    for length in [0, 1, 2, 10, 64, *random.Random(0).sample(range(len(whole)), 20)]:
        file.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match="truncated or not a checkpoint") as caught:
            checkpoints.load_any(file)
        assert "\n" not in str(caught.value), length


@pytest.mark.parametrize(
    "content",
    [
        b"not a checkpoint\n",
        b"\x80\x02garbage",
        bytes(1000),
        b"PK\x03\x04" + bytes(100),
        b"\x89PNG\r\n\x1a\n" + bytes(50),
    ],
    ids=["text", "pickle", "zeros", "zip", "png"],
)
def test_a_file_of_another_kind_is_refused_with_one_line(tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ArtifactError, match="truncated or not a checkpoint") as caught:
        checkpoints.load(tmp_path / "x.pth")
    assert "\n" not in str(caught.value)


class Evil:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle 2", "pickle 5", "with weights", "in settings"])
def test_code_in_a_file_is_never_run(tmp_path, form, mine):
    proof, file = tmp_path / "proof", tmp_path / "evil.pth"
    evil = Evil(f"touch {proof}")
    if form == "in settings":
        evil = argparse.Namespace(model="resnet20", data=evil)
    if form.startswith("pickle"):
        file.write_bytes(pickle.dumps({"state_dict": evil}, protocol=int(form[-1])))
    else:
        values = (
            {checkpoints.MARK: 1, "state_dict": mine.state_dict, "lineage": evil}
            if form == "with weights"
            else evil
        )
        torch.save(values, file, _use_new_zipfile_serialization=form != "legacy")
    for read in (checkpoints.load, checkpoints.load_any, lambda path: checkpoints.load_any(path, "resnet20")):
        words = "not a checkpoint" if form == "pickle 5" else "contains pickled code, which is never run"
        with pytest.raises(ArtifactError, match=words) as caught:
            read(file)
        assert "\n" not in str(caught.value)
        assert "weights_only" not in str(caught.value)  # torch's advice is to run the code
    assert not proof.exists()
    with contextlib.suppress(RuntimeError):  # the trap is live: this is what must not happen
        torch.load(file, weights_only=False)
    assert proof.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_settings_pickled_beside_the_weights_are_read_past(model, tmp_path, legacy, same_weights):
    settings = argparse.Namespace(
        model="resnet20",
        lr=4e-3,
        kernel_size=[51, 49, 47, 13, 5],
        resume=None,
        nested=argparse.Namespace(a=1),
    )
    torch.save(
        {"model": model.state_dict(), "args": settings, "epoch": 299, "optimizer": {"state": {}}},
        tmp_path / "published.pth",
        _use_new_zipfile_serialization=not legacy,
    )
    found = checkpoints.load_any(tmp_path / "published.pth", "resnet20", {"width": 0.25})
    same_weights(found.state_dict, model.state_dict())
    assert found.lineage["converted"] == ["taken from entry 'model'"]
    assert argparse.Namespace not in torch.serialization.get_safe_globals()  # allowed for our own call alone


def test_a_whole_pickled_network_is_refused_and_says_what_to_save(tmp_path, model):
    torch.save(model, tmp_path / "model.pth")
    with pytest.raises(ArtifactError, match=r"torch.save\(model.state_dict\(\)"):
        checkpoints.load_any(tmp_path / "model.pth", "resnet20")


def test_another_architecture_is_named(mine, tmp_path):
    checkpoints.save(mine, tmp_path / "a.pth")
    with pytest.raises(ArtifactError, match="holds resnet20, not resnet32"):
        checkpoints.load_any(tmp_path / "a.pth", "resnet32")
    with pytest.raises(
        ArtifactError, match=r"does not fit resnet20: 60 weights missing \(first: layer1\.3\..*0 unknown"
    ):
        checkpoints.load_weights(models.build("resnet32", 4, {"width": 0.25}), mine)


def test_another_number_of_classes_is_named_with_both_shapes(mine):
    with pytest.raises(
        ArtifactError, match=r"linear.weight is \(4, 16\) in the file, \(7, 16\) in the network"
    ):
        checkpoints.load_weights(models.build("resnet20", 7, {"width": 0.25}), mine)


def test_weights_that_do_not_fit_leave_the_network_alone(mine, same_weights):
    other = models.build("resnet20", 7, {"width": 0.25})
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(ArtifactError):
        checkpoints.load_weights(other, mine)
    same_weights(other.state_dict(), before)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        lambda weights: {"state_dict": weights, "epoch": 3},
        lambda weights: {"model": weights, "optimizer": {}},
        lambda weights: {
            "state_dict_ema": weights,
            "state_dict": {key: 0 * value for key, value in weights.items()},
        },
        lambda weights: {"model_ema": weights, "model": {key: 0 * value for key, value in weights.items()}},
        lambda weights: {f"module.{key}": value for key, value in weights.items()},
        lambda weights: {f"_orig_mod.{key}": value for key, value in weights.items()},
        lambda weights: {"state_dict": {f"module._orig_mod.{key}": value for key, value in weights.items()}},
        lambda weights: {"state_dict": {f"_orig_mod.module.{key}": value for key, value in weights.items()}},
        lambda weights: {
            "state_dict": {key: value for key, value in weights.items() if "num_batches_tracked" not in key}
        },
    ],
    ids=[
        "plain",
        "state_dict",
        "model",
        "ema",
        "model_ema",
        "parallel",
        "compiled",
        "both",
        "both turned",
        "older torch",
    ],
)
def test_weights_of_other_projects_are_found(model, tmp_path, wrap, same_weights):
    torch.save(wrap(dict(model.state_dict())), tmp_path / "foreign.pth")
    found = checkpoints.load_any(tmp_path / "foreign.pth", "resnet20", {"width": 0.25})
    other = models.build("resnet20", 4, found.model_args)
    checkpoints.load_weights(other, found)
    same_weights(other.state_dict(), model.state_dict())
    assert found.class_names is None
    assert found.preprocess == models.preprocess_of("resnet20")


SLAK = {"depths": [1, 1], "dims": [4, 6], "kernel_sizes": [9, 7], "small_kernel": 3, "width_factor": 1.0}


def test_published_names_are_converted_and_every_change_is_noted(tmp_path, same_weights):
    network = models.build("slak_tiny", 4, SLAK)
    older = {f"module.{key.replace('LoRA', 'Decom')}": value for key, value in network.state_dict().items()}
    torch.save({"model": older, "args": argparse.Namespace(Decom=True)}, tmp_path / "slak.pth")
    found = checkpoints.load_any(tmp_path / "slak.pth", "slak_tiny", SLAK)
    other = models.build(found.model, 4, found.model_args)
    checkpoints.load_weights(other, found)
    same_weights(other.state_dict(), network.state_dict())
    assert [note.partition("(")[0] for note in found.lineage["converted"]] == [
        "taken from entry 'model'",
        f"prefix 'module.' removed from {len(older)} names",
        "renamed 24 names ",
    ]
    assert found.preprocess == models.preprocess_of("slak_tiny")


def test_a_merged_file_is_loaded_merged_and_refused_for_training(tmp_path):
    merged = models.build("slak_tiny", 4, SLAK | {"deploy": True})
    torch.save(merged.state_dict(), tmp_path / "merged.pth")
    found = checkpoints.load_any(tmp_path / "merged.pth", "slak_tiny", SLAK)
    assert found.model_args == SLAK | {"deploy": True}
    assert found.lineage["converted"] == ["arguments read from the weights: deploy=true"]
    checkpoints.load_weights(models.build(found.model, 4, found.model_args), found)
    with pytest.raises(
        ArtifactError, match=r"does not fit slak_tiny: .* It is merged for inference: .* deploy=true"
    ):
        checkpoints.load_weights(models.build("slak_tiny", 4, SLAK), found)


def test_safetensors_are_read(model, tmp_path, same_weights):
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    same_weights(
        dict(sorted(checkpoints.load_any(tmp_path / "w.safetensors", "resnet20").state_dict.items())),
        dict(sorted(model.state_dict().items())),
    )
    whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match="truncated or not a checkpoint"):
        checkpoints.load_any(tmp_path / "w.safetensors", "resnet20")


def test_foreign_weights_need_an_architecture(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "foreign.pth")
    with pytest.raises(UsageError, match="--model NAME"):
        checkpoints.load_any(tmp_path / "foreign.pth")
    with pytest.raises(ArtifactError, match="not a large2small checkpoint"):
        checkpoints.load(tmp_path / "foreign.pth")
    with pytest.raises(UsageError, match="did you mean resnet20"):
        checkpoints.load_any(tmp_path / "foreign.pth", "resnt20")


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"epoch": 3},
        {"state_dict": {}},
        {1: torch.zeros(1)},
        {"state_dict": {0: torch.zeros(1)}},
        [torch.zeros(1)],
        torch.zeros(3),
    ],
)
def test_a_file_without_weights_is_refused_with_one_line(tmp_path, values):
    torch.save(values, tmp_path / "x.pth")
    with pytest.raises(ArtifactError) as caught:
        found = checkpoints.load_any(tmp_path / "x.pth", "resnet20")
        checkpoints.load_weights(models.build("resnet20", 4), found)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        {"preprocess": None},
        {"preprocess": {"input_size": [3, 0, 0]}},
        {"preprocess": {"new": 1}},
        {"preprocess": "text"},
        {"state_dict": None},
        {"model": None},
        {"model": 7},
        {"class_names": 5},
        {"lineage": None},
        {"model_args": []},
    ],
)
def test_a_checkpoint_with_a_damaged_entry_is_refused(mine, tmp_path, damage):
    checkpoints.save(mine, tmp_path / "a.pth")
    values = torch.load(tmp_path / "a.pth", weights_only=True)
    torch.save(values | damage, tmp_path / "b.pth")
    with pytest.raises(ArtifactError, match="damaged checkpoint"):
        checkpoints.load(tmp_path / "b.pth")
    del values[next(iter(damage))]
    torch.save(values, tmp_path / "b.pth")
    if next(iter(damage)) != "lineage":  # what has a default may be absent
        with pytest.raises(ArtifactError, match="damaged checkpoint"):
            checkpoints.load(tmp_path / "b.pth")


def test_a_later_schema_asks_for_a_later_version(mine, tmp_path):
    checkpoints.save(mine, tmp_path / "a.pth")
    torch.save(torch.load(tmp_path / "a.pth", weights_only=True) | {checkpoints.MARK: 2}, tmp_path / "b.pth")
    with pytest.raises(ArtifactError, match="schema 2; this version reads 1"):
        checkpoints.load(tmp_path / "b.pth")


def test_a_file_that_is_not_there_is_usage(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(UsageError, match=r"no such checkpoint|is a folder without a best\.pth"):
            checkpoints.load_any(path)


def test_a_full_disk_is_named_and_leaves_the_old_file(mine, tmp_path, monkeypatch):
    file = tmp_path / "last.pth"
    checkpoints.save(mine, file)
    before = file.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MissingError, match="no space left"):
        checkpoints.save(mine, file)
    assert file.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_file(mine, tmp_path, monkeypatch, moment):
    file = tmp_path / "last.pth"
    checkpoints.save(mine, file)
    before = file.read_bytes()

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, moment, fail)
    with pytest.raises(OSError):
        checkpoints.save(mine, file)
    monkeypatch.undo()
    assert file.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [file]


def test_the_published_weights_are_told_from_another_depth(shared):
    found = checkpoints.load_any(shared / "data" / "weights" / "resnet20-12fca82f.th", "resnet32")
    with pytest.raises(ArtifactError, match="does not fit resnet32"):
        checkpoints.load_weights(models.build("resnet32", 10), found)
    assert Path(found.path).name == "resnet20-12fca82f.th"
