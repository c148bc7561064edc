"""The keywords that editors and type checkers see are the flags of the commands."""

import importlib
import typing
from dataclasses import fields
from pathlib import Path

import pytest
from python_flags import CLASSES, text

from large2small import flags
from runtime.cli.front_door import COMMANDS

ROOT = Path(__file__).parents[2]


def test_the_file_is_what_make_flags_writes():
    assert (ROOT / "large2small" / "flags.py").read_text(encoding="utf-8") == text(), "run: make flags"


@pytest.mark.parametrize("name", CLASSES)
def test_a_function_has_a_keyword_for_every_field_of_its_command(name):
    asked = {"checkpoint", "engine", "file", "images"}  # by position
    asked |= {"data"} if name == "AccuracyFlags" else set()
    known = {field.name for command in CLASSES[name] for field in fields(options_of(command))}
    assert set(typing.get_type_hints(getattr(flags, name))) == known - asked - {"json", "csv"}


def test_a_value_has_the_type_that_a_person_has_at_hand():
    hints = typing.get_type_hints(flags.TrainFlags)
    assert hints["data"] == hints["output"] == flags.Pathlike and hints["student"] is str
    assert hints["epochs"] is int and hints["control"] is bool and hints["lr"] == (float | None)
    hints = typing.get_type_hints(flags.LatencyFlags)
    assert hints["hint"] == (typing.Literal["latency", "throughput"] | None)
    assert hints["engine_backend"] == (str | None)  # a table, which may grow


def options_of(command: str) -> type:
    return importlib.import_module(COMMANDS[command]).Options
