"""Words out of files and names of files move no cursor and forge no line, on the screen or in an error."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
import tiny_onnx

from distill import checkpoint as checkpoints
from distill import models
from distill.checkpoint import Checkpoint
from runtime.cli.front_door import main
from runtime.cli.terminal import screen
from runtime.preprocess import Preprocess

EVIL = "x\x1b[31m\nerror: forged\u202e\x07"
pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """In all of these a class, a word of the training or a name is evil: a.onnx, a.pth, set.npz, photos/."""
    monkeypatch.chdir(tmp_path)
    names = [EVIL, "green", "red"]
    words = {"role": EVIL, "model": EVIL, "training": {EVIL: EVIL}, "versions": {"pillow": EVIL}}
    tiny_onnx.write("a.onnx", meta=tiny_onnx.metadata(class_names=names, **words))
    tiny_onnx.write_images(tmp_path / "photos")
    os.rename(tmp_path / "photos" / "blue", tmp_path / "photos" / EVIL)
    weights = models.build("resnet20", 3, {"width": 0.25}).state_dict()
    shape = Preprocess((3, 16, 16), "bilinear", 1.0)
    checkpoints.save(Checkpoint("resnet20", {"width": 0.25}, weights, shape, names), tmp_path / "a.pth")
    np.savez("set.npz", x=np.zeros((3, 16, 16, 3), np.uint8), y=np.arange(3), class_names=np.array(names))


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("inspect a.onnx", 0),
        ("inspect --all a.onnx", 0),
        ("predict a.onnx photos", 0),
        ("bench latency a.onnx --iterations 2 --warmup 1", 0),
        ("bench accuracy a.onnx photos", 0),
        ("check photos", 1),
        ("eval a.pth --data npz:set.npz", 0),
        ("eval a.pth --data photos/EVIL", 2),
        ("eval EVIL.pth", 2),
        ("bench latency EVIL.onnx", 2),
        ("inspect EVIL", 2),
        ("train --recipe EVIL", 2),
        ("eval a.pth --EVIL", 2),
        ("EVIL", 2),
    ],
)
def test_no_command_prints_them(words, code, place, capsys):
    assert main([word.replace("EVIL", EVIL) for word in words.split()]) == code
    said = capsys.readouterr()
    assert not re.search(r"[\x1b\x07\u202e]|^error: forged", said.out + said.err, re.MULTILINE)
    assert sum(line.startswith("error: ") for line in said.err.splitlines()) == (code == 2)


def test_tables_show_them_as_they_are_written(capsys):
    screen(width=200).print(f"[bold]{EVIL}[/bold]", style="red")
    assert capsys.readouterr().out == "x\\x1b[31m\nerror: forged\\u202e\n"  # rich drops the bell itself
