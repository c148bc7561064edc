"""Random wrong command lines: every one ends in one line and an exit code of the user's end, and writes
nothing.
"""

import importlib
import json
import os
import random

import numpy as np
import pytest
from PIL import Image

from runtime.cli import front_door
from runtime.cli.settings import settings_of

WORDS = (
    "",
    "-1",
    "nan",
    "1e999",
    "none",
    "é",
    "[",
    "a=b",
    "../..",
    "0x10",
    "--",
    "train",
    "npz:",
    "csv:x",
    "wds/x",
)
LINES = 300
NEED_NO_FILE = ("demo", "env", "models", "recipes")
"""Commands that would do their work on a line without a file."""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with things of every wrong kind."""
    Image.new("RGB", (4, 4)).save(tmp_path / "image.png")
    (tmp_path / "text.txt").write_text("some words\n")
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "noise.pth").write_bytes(np.random.default_rng(0).bytes(300))
    (tmp_path / "noise.plan").write_bytes(np.random.default_rng(1).bytes(300))
    (tmp_path / "values.json").write_text(json.dumps({"a": 1}))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def wrong_line(chance, names):
    """A command with a few flags of its own, among them at least one that cannot be right."""
    name = chance.choice(list(front_door.COMMANDS))
    settings = settings_of(importlib.import_module(front_door.COMMANDS[name]).Options)
    words = name.split()
    for setting in chance.sample(settings, min(len(settings), chance.randint(0, 4))):
        flag = f"--{setting.name.replace('_', '-')}"
        words += [flag] if setting.kind is bool else [flag, chance.choice([*WORDS, *names])]
    words += chance.sample(names, chance.randint(0, 2))
    if name in NEED_NO_FILE or chance.random() < 0.5:
        words.append(chance.choice(["--no-such-flag", "--epochs=x", "--batch=-3", "--json=7"]))
    return words


def test_wrong_command_lines_are_the_users_end(place, capsys):
    chance, before = random.Random(12), sorted(os.listdir(place))
    names = [*before, "gone.pth", "empty/x.onnx"]
    found, codes = [], set()
    for _ in range(LINES):
        words = wrong_line(chance, names)
        code = front_door.main(words)
        said = capsys.readouterr()
        errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
        codes.add(code)
        is_help = code == 0 and "--help" in " ".join(words)
        if (code not in (1, 2, 3, 4) or ("--json" not in words and len(errors) != 1)) and not is_help:
            found.append((words, code, said.err[-300:]))
        if sorted(os.listdir(place)) != before:
            found.append((words, "wrote", sorted(set(os.listdir(place)) - set(before))))
            break
    assert not found, found[:5]
    assert {2, 4} <= codes
