"""Random wrong command lines: every one ends in one line and an exit code of the user's end, and writes
nothing.
"""

import importlib
import json
import os
import random
from pathlib import Path

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
VALUES = (
    *WORDS,
    "1",
    "0.5",
    "16",
    "true",
    "cpu",
    "int8",
    "auto",
    "3,x",
    "1e-3",
    "-0",
    "99999999999999999999",
)
LINES = 200
COSTLY = ("workers", "threads", "img_size", "crop_padding", "num_classes", "input_size", "contexts")
"""Settings whose value costs memory or time before a file is read."""
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
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best.pth").write_bytes(b"PK")
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "classes" / "train" / "a").mkdir(parents=True)
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
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


def options_of(name):
    """The settings of a command."""
    return settings_of(importlib.import_module(front_door.COMMANDS[name]).Options)


def all_flags():
    """Every flag of every command, once."""
    found = {word: each for name in front_door.COMMANDS for each in options_of(name) for word in each.words}
    return [(word, found[word]) for word in sorted(found)]


def line_with_flags_of_others(chance, names):
    """A command with two flags of any commands, whose values are of any type, and words for its files."""
    name = chance.choice(list(front_door.COMMANDS))
    words = [*name.split(), *chance.sample(names, chance.randint(0, 2))]
    for word, setting in chance.sample(all_flags(), 2):
        words += [word] if setting.kind is bool else [word, chance.choice([*VALUES, *names])]
    own = {word for each in options_of(name) for word in each.words}
    if name in NEED_NO_FILE and {word for word in words if word.startswith("--")} <= own:
        words.append("--no-such-flag")
    return words


def line_with_the_wrong_thing(chance, names):
    """A command whose flags for files and folders are given, each with something else than it says."""
    name = chance.choice([each for each in front_door.COMMANDS if each not in NEED_NO_FILE])
    words = name.split()
    for setting in options_of(name):
        is_place = setting.kind is Path or setting.flag.metavar in ("DATA", "DIR", "CKPT", "FILE")
        if is_place and (setting.required or setting.flag.positional or chance.random() < 0.3):
            thing = chance.choice(names)
            words += [thing] if setting.flag.positional else [setting.words[0], thing]
    return words


def problem_of(words, before, place, capsys):
    """(exit code, what is wrong with the answer to this line; empty when nothing is)."""
    code = front_door.main(words)
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    is_help = code == 0 and any(word.startswith(("-h", "--help")) for word in words)
    written = sorted(set(os.listdir(place)) - set(before))
    if written:
        return code, f"{words} wrote {written}"
    if is_help or (code in (1, 2, 3, 4) and ("--json" in words or len(errors) == 1)):
        return code, ""
    return code, f"{words}: {code} {said.err[-300:]}"


@pytest.mark.parametrize("kind", [wrong_line, line_with_flags_of_others, line_with_the_wrong_thing])
def test_wrong_command_lines_are_the_users_end(kind, place, capsys):
    chance, before = random.Random(12), sorted(os.listdir(place))
    names = [*before, "gone.pth", "empty/x.onnx", "x" * 300, "/dev/null", ".", "run/best.pth"]
    answers = [problem_of(kind(chance, names), before, place, capsys) for _ in range(LINES)]
    problems = [problem for _, problem in answers if problem]
    assert not problems, "\n".join(problems[:8])
    assert {2} <= {code for code, _ in answers}


@pytest.mark.parametrize("name", COSTLY)
def test_what_would_cost_gigabytes_is_refused_in_every_command(name, place, capsys):
    value = 10**8
    for module in front_door.COMMANDS.values():
        for setting in settings_of(importlib.import_module(module).Options):
            assert setting.name != name or setting.kind is str or setting.problem(value), module
    command = ["bench", "latency"] if name in ("threads", "contexts") else ["train"]
    values = [str(value)] * (2 if name == "input_size" else 1)
    assert front_door.main([*command, f"--{name.replace('_', '-')}", *values]) == 2
    assert f"--{name.replace('_', '-')} 100000000" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["100000", "20000x20000", "9" * 5000, "1x99999999999999999999"])
def test_sizes_that_are_typed_as_text_are_bounded(size, place, capsys):
    assert front_door.main(["bench", "latency", "empty.onnx", "--img-size", size]) == 2
    assert "expected pixels, such as 224" in capsys.readouterr().err
