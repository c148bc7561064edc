"""A checkpoint, recipe or run folder from a stranger: no word in it runs a command or opens what it may not.

Every file here tries to. While a command reads it, an audit hook writes down each process and connection that
Python starts; a started command would also leave the file PWNED.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_training import TINY

from distill import checkpoint as checkpoints
from distill import models
from distill import recipe as recipes
from distill.checkpoint import Checkpoint
from runtime import recorded
from runtime.cli.front_door import main
from runtime.errors import UsageError
from runtime.preprocess import Preprocess

pytestmark = pytest.mark.usefixtures("without_report")

CLASSES = ["ant", "bee", "cat", "dog"]
STARTS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.startfile",
    "pty.spawn",
    "socket.connect",
    "socket.getaddrinfo",
    "urllib.Request",
)
"""Audit events of CPython that mean a process or a connection (docs.python.org, audit events table)."""
started: list[str] | None = None


def _listen(event: str, arguments: tuple) -> None:
    if started is not None and event in STARTS:
        started.append(f"{event} {arguments!r}")


sys.addaudithook(_listen)  # cannot be removed again; it listens only while `started` is a list


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working folder of the test, with images in set/ and a fifo."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    dice = np.random.default_rng(0)
    for split in ("train", "val"):
        np.savez(
            tmp_path / "set" / f"{split}.npz",
            x=dice.integers(0, 256, (8, 16, 16, 3)).astype(np.uint8),
            y=np.arange(8) % 4,
            class_names=np.array(CLASSES),
        )
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero.tar").symlink_to("/dev/zero")
    return tmp_path


def words(argv) -> list[str]:
    return [str(word) for word in argv]


def refused(capsys, place, argv, *said: str) -> str:
    """The command ends with one line that says all of `said`, exit code 2 or 4, and has started nothing."""
    global started
    started = []
    try:
        code = main(words(argv))
    finally:
        seen, started = started, None
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert code in (2, 4), captured.err
    assert len(lines) == 1, captured.err
    assert "internal" not in lines[0]
    for each in said:
        assert each in lines[0]
    assert seen == []
    assert not (place / "PWNED").exists()
    return lines[0]


def write_checkpoint(path: Path, spec: str, model="resnet20", model_args=None, recipe=None) -> Path:
    arguments = {"width": 0.25} if model_args is None else model_args
    weights = models.build("resnet20", 4, {"width": 0.25}).state_dict()
    lineage = {"data": {"train_spec": spec, "val_spec": spec}, "recipe": recipe or {}}
    checkpoints.save(
        Checkpoint(
            model, arguments, weights, Preprocess((3, 16, 16), "bilinear", 1.0), CLASSES, lineage=lineage
        ),
        path,
    )
    return path


SPECS = [
    "wds/x:pipe:touch PWNED;#",
    "wds/x:pipe:touch PWNED #.tar",
    "WDS/x:pipe:touch PWNED;#",
    "wds/x:https://example.com/{000..001}.tar",
    "hfds/someone/dataset",
    "hfids/someone/dataset",
    "tfds/mnist",
    "torch/image_folder:set",
    "torch/cifar10:set",
    "pipe:touch PWNED",
    "https://example.com/photos.tar",
    "$(touch PWNED)",
    "fifo",
    "npz:fifo",
    "zero.tar",
    "/proc",
    "/proc/self/fd",
]
"""Data that no file may name; the last ones are on this disk, and no data."""

READERS = {
    "eval": ["eval", "hostile.pth", "--num-classes", "4"],
    "erf": ["erf", "hostile.pth", "--num-classes", "4", "--output", "out"],
    "attack": ["attack", "hostile.pth", "--output", "x.npz"],
    "export onnx": ["export", "onnx", "hostile.pth", "--output", "x.onnx"],
    "export onnx --int8": ["export", "onnx", "--int8", "hostile.pth", "--data", "npz:set"],
    "parity": ["parity", "hostile.pth", "other.onnx"],
    "train --qat --resume": ["train", "--qat", "--resume", "hostile.pth", "--num-classes", "4"],
}
"""Commands that open the data which a checkpoint names."""


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("command", READERS)
def test_data_that_a_checkpoint_names(command, spec, place, capsys):
    write_checkpoint(place / "hostile.pth", spec)
    (place / "other.onnx").write_bytes(b"")
    refused(capsys, place, READERS[command], "hostile.pth", repr(spec))


@pytest.mark.parametrize("spec", SPECS)
def test_inspect_opens_no_data_that_a_checkpoint_names(spec, place, capsys):
    global started
    write_checkpoint(place / "hostile.pth", spec)
    values = torch.load("hostile.pth", weights_only=True)
    values["lineage"]["data"] |= {"train_sha256": "0" * 64, "val_sha256": "0" * 64}
    torch.save(values, "hostile.pth")
    started = []
    try:
        code = main(["inspect", "hostile.pth", "--json"])
    finally:
        seen, started = started, None
    assert code == 0 and seen == [] and not (place / "PWNED").exists()
    assert capsys.readouterr().out.count('"not at hand"') == 2


@pytest.mark.parametrize("key", ["data", "val_data"])
@pytest.mark.parametrize("spec", SPECS)
def test_data_that_a_recipe_names(spec, key, place, capsys):
    values = {"data": "npz:set", "student": "resnet20", "teacher": "none", "num_classes": 4} | {key: spec}
    Path("r.yaml").write_text(yaml.safe_dump(values))
    for flag in ("--recipe", "--config", "-c"):
        refused(capsys, place, ["train", flag, "r.yaml"], "r.yaml", repr(spec))
    with pytest.raises(UsageError, match=re.escape(repr(spec))):
        recipes.load("r.yaml")


@pytest.mark.parametrize("qat", [False, True])
@pytest.mark.parametrize("spec", SPECS)
def test_data_that_a_run_folder_names(spec, qat, place, capsys):
    values = {"data": spec, "student": "resnet20", "teacher": "none", "num_classes": 4}
    (place / "run").mkdir()
    (place / "run" / "args.yaml").write_text(yaml.safe_dump(values | ({"qat": True} if qat else {})))
    refused(capsys, place, ["train", "--resume", "run"], "args.yaml", repr(spec))


def test_data_in_the_recipe_that_a_checkpoint_carries(place, capsys):
    spec = SPECS[0]
    path = write_checkpoint(place / "hostile.pth", "", recipe={"data": spec, "num_classes": 4})
    values = torch.load(path, weights_only=True)
    values["class_names"] = None  # then the recipe's own words are taken
    torch.save(values, path)
    refused(capsys, place, ["train", "--qat", "--resume", path], repr(spec))


def test_what_is_typed_takes_the_place_of_what_a_file_names(place, capsys):
    write_checkpoint(place / "hostile.pth", SPECS[0])
    assert main(["eval", "hostile.pth", "--data", "npz:set"]) == 0
    Path("r.yaml").write_text(yaml.safe_dump({"data": SPECS[0], "val_data": SPECS[0], "student": "resnet20"}))
    argv = ["train", "--recipe", "r.yaml", *TINY, "--data-dir=npz:set", "--val_data", "npz:set"]
    assert main([*argv, "--teacher", "none", "--output", "run"]) == 0
    assert not (place / "PWNED").exists()


def test_a_run_on_shards_goes_on_when_its_data_is_typed_again(place, capsys):
    pytest.importorskip("webdataset")
    spec = f"wds/made:{place / 'shards'}"
    write_shards(place / "shards")
    more = ["--teacher", "none", "--num-classes", "4", "--output", "run"]
    assert main(["train", "--data", spec, "--student", "resnet20", *TINY, *more]) == 0
    capsys.readouterr()
    message = refused(capsys, place, ["train", "--resume", "run"], "args.yaml", repr(spec))
    assert message.endswith(f"--data {spec}")
    assert main(["train", "--resume", "run", "--data", spec]) == 0
    refused(capsys, place, ["eval", "run/best.pth", "--num-classes", "4"], f"--data {spec}")
    assert main(["eval", "run/best.pth", "--num-classes", "4", "--data", spec]) == 0


def write_shards(folder: Path) -> None:
    """Eight images in a training and a validation shard, as timm reads them."""
    folder.mkdir()
    dice = np.random.default_rng(1)
    for split in ("train", "validation"):
        with tarfile.open(folder / f"made-{split}-0000.tar", "w") as shard:
            for number in range(8):
                picture = io.BytesIO()
                Image.fromarray(dice.integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(picture, "PNG")
                for suffix, content in (("png", picture.getvalue()), ("cls", str(number % 4).encode())):
                    member = tarfile.TarInfo(f"{number:04}.{suffix}")
                    member.size = len(content)
                    shard.addfile(member, io.BytesIO(content))
    info = {
        "splits": {
            split: {
                "name": split,
                "filenames": [f"made-{split}-0000.tar"],
                "shard_lengths": [8],
                "num_samples": 8,
            }
            for split in ("train", "validation")
        }
    }
    (folder / "_info.json").write_text(json.dumps(info))


ARGUMENTS = {
    "checkpoint_path": "evil.pth",
    "cache_dir": "elsewhere",
    "pretrained": True,
    "pretrained_cfg": {"file": "evil.pth"},
    "pretrained_cfg_overlay": {"file": "evil.pth"},
    "pretrained_model_args": {"x": 1},
    "pretrained_filter_fn": "os.system",
    "pretrained_strict": False,
    "features_only": True,
    "feature_cls": "hook",
    "model_cls": "os.system",
    "kwargs_filter": ["width"],
    "scriptable": True,
    "exportable": True,
    "no_jit": True,
    "pruned": True,
}
"""Arguments of timm's loader, not of a network."""


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("command", ["eval", "erf", "export onnx", "train --qat --resume"])
def test_arguments_that_a_checkpoint_names(command, name, place, capsys):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch PWNED",)

    torch.save({"state_dict": Evil()}, place / "evil.pth")
    (place / "other.onnx").write_bytes(b"")
    write_checkpoint(place / "hostile.pth", "npz:set", model_args={"width": 0.25, name: ARGUMENTS[name]})
    refused(capsys, place, READERS[command], repr(name))


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("key", ["student_args", "teacher_args"])
def test_arguments_that_a_recipe_or_a_run_folder_names(key, name, place, capsys):
    value = json.dumps(ARGUMENTS[name])
    values = {"data": "npz:set", "student": "resnet20", "img_size": 16, "epochs": 1, "batch": 4}
    values |= {"teacher": "none" if key == "student_args" else "resnet20", key: [f"{name}={value}"]}
    Path("r.yaml").write_text(yaml.safe_dump(values))
    refused(capsys, place, ["train", "--recipe", "r.yaml"], repr(name))
    (place / "run").mkdir()
    (place / "run" / "args.yaml").write_text(yaml.safe_dump(values))
    refused(capsys, place, ["train", "--resume", "run"], repr(name))


NAMES = ["hf-hub:someone/model", "hf_hub:someone/model", "local-dir:.", "someone/model", "resnet18.hf-hub:x"]


@pytest.mark.parametrize("name", NAMES)
def test_networks_that_a_file_names(name, place, capsys):
    (place / "config.json").write_text('{"architecture": "resnet18"}')
    write_checkpoint(place / "hostile.pth", "npz:set", model=name)
    (place / "other.onnx").write_bytes(b"")
    for command in ("eval", "export onnx", "train --qat --resume"):
        refused(capsys, place, READERS[command], "hf-hub:x'" if name.endswith("hub:x") else repr(name))
    for key in ("student", "teacher"):
        values = {"data": "npz:set", "student": "resnet20", "teacher": "none", "img_size": 16} | {key: name}
        Path("r.yaml").write_text(yaml.safe_dump(values))
        refused(
            capsys,
            place,
            ["train", "--recipe", "r.yaml", "--output", "run"],
            "hub" if "hub" in name else name,
        )


CODE = "__import__('os').system('touch PWNED')"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("aa", CODE),
        ("opt", CODE),
        ("sched", CODE),
        ("kd_loss", CODE),
        ("feature_loss", CODE),
        ("losses", [CODE]),
        ("losses", [{"name": CODE}]),
        ("losses", [f"nkd:{CODE}=1"]),
        ("kd_args", [f"alpha={CODE}"]),
        ("device", CODE),
        ("student", CODE),
        ("student_args", ["width=!!python/object/apply:os.system ['touch PWNED']"]),
        ("teacher_ckpt", "fifo"),
        ("student_ckpt", "/dev/zero"),
        ("output", "elsewhere"),
        ("resume", "elsewhere"),
    ],
)
def test_other_words_of_a_recipe(key, value, place, capsys):
    teacher = {"teacher": "resnet20", "teacher_ckpt": "teacher.pth"}
    values = {"data": "npz:set", "student": "resnet20", "student_args": ["width=0.25"], "img_size": 16}
    values |= {"epochs": 1, "batch": 4, "device": "cpu"} | teacher
    write_checkpoint(place / "teacher.pth", "npz:set")
    Path("r.yaml").write_text(yaml.safe_dump(values | {key: value}))
    refused(capsys, place, ["train", "--recipe", "r.yaml", "--output", "run"])
    assert not (place / "elsewhere").exists()


def test_objects_in_a_recipe_are_not_made(place, capsys):
    Path("r.yaml").write_text("data: !!python/object/apply:os.system ['touch PWNED']\n")
    refused(capsys, place, ["train", "--recipe", "r.yaml"], "r.yaml")
    (place / "run").mkdir()
    (place / "run" / "args.yaml").write_text("!!python/object/apply:os.system ['touch PWNED']\n")
    refused(capsys, place, ["train", "--resume", "run"], "args.yaml")


def test_a_list_of_contents_beside_a_tar_is_not_read(place, monkeypatch):
    """timm before 1.0.31 unpickled it, code and all, for archives above 10 GB."""
    from timm.data.readers import reader_image_in_tar

    from distill.data import open_data

    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    with tarfile.open("set.tar", "w") as archive:
        for name in ("ant/1.png", "bee/2.png"):
            member = tarfile.TarInfo(name)
            member.size = len(picture.getvalue())
            archive.addfile(member, io.BytesIO(picture.getvalue()))
    Path("_set_tarinfos.pickle").write_bytes(b"\x80\x04never read")
    monkeypatch.setattr(reader_image_in_tar.os.path, "getsize", lambda _: 11 * 1024**3)
    assert len(open_data(recorded.local_data("set.tar", "r.yaml", "--data"), "val")) == 2
    assert Path("_set_tarinfos.pickle").read_bytes() == b"\x80\x04never read"


def test_what_a_file_may_name(place):
    """Local data, in a form that no reader of timm is chosen by: relative folders become absolute."""
    (place / "wds").mkdir()
    (place / "wds" / "photos:x").mkdir()
    found = {spec: recorded.local_data(spec, "r.yaml", "--data") for spec in ("", "digits", "set", "npz:set")}
    assert found == {"": "", "digits": "digits", "set": str(place / "set"), "npz:set": f"npz:{place / 'set'}"}
    assert recorded.local_data("wds/photos:x", "r.yaml", "--data") == str(place / "wds" / "photos:x")
    assert recorded.local_data("/not/here", "r.yaml", "--data") == "/not/here"
    assert recorded.is_plain("/dev/shm") == Path("/dev/shm").is_dir()
