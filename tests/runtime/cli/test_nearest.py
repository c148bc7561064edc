"""A suggestion names a flag that exists and does what was meant, or nothing is suggested."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from runtime import UsageError
from runtime.cli import flags, front_door
from runtime.cli.nearest import SYNONYMS, nearest, nearest_flag
from runtime.cli.settings import settings_of


def settings(command: str):
    return settings_of(importlib.import_module(front_door.COMMANDS[command]).Options)


@pytest.mark.parametrize(
    ("command", "typed", "meant"),
    [
        ("train", "--optimizer", "--opt"),
        ("train", "--learning-rate", "--lr"),
        ("train", "--learning_rate", "--lr"),
        ("train", "--num-epochs", "--epochs"),
        ("train", "--model", "--student"),
        ("train", "--weights", "--student-ckpt"),
        ("train", "--input-size", "--img-size"),
        ("train", "--dataset", "--data"),
        ("train", "--num-workers", "--workers"),
        ("train", "--gpu", "--device"),
        ("train", "--wd", "--weight-decay"),
        ("train", "--pretrained", "--student-ckpt"),
        ("train", "--temperature", "--kd-temperature"),
        ("train", "--label-smoothing", "--smoothing"),
        ("train", "--no-chanels-last", "--no-channels-last"),
        ("train", "--weigth-decay", "--weight-decay"),
        ("export onnx", "--half", "--fp16"),
        ("export onnx", "--quantize", "--int8"),
        ("bench latency", "--model", "--engine"),
        ("bench latency", "--runs", "--iterations"),
        ("bench latency", "--batchsize", "--batch-size"),
        ("eval", "--batchsize", "--batch-size"),
    ],
)
def test_usual_words_and_misspellings_lead_to_the_flag(command, typed, meant):
    assert nearest_flag(typed, settings(command)) == f"; did you mean {meant}?"


def test_what_is_typed_without_a_flag_is_named_as_such():
    assert nearest_flag("--weights", settings("export onnx")) == "; give CKPT without a flag."
    assert nearest_flag("--onnx", settings("inspect")) == "; give FILE without a flag."


@pytest.mark.parametrize(
    ("command", "typed"),
    [("train", "--no-epochs"), ("train", "--no-optimizer"), ("train", "--verbose"), ("env", "--lr")],
)
def test_nothing_is_suggested_where_nothing_fits(command, typed):
    assert nearest_flag(typed, settings(command)) == "."


@pytest.mark.parametrize("command", front_door.COMMANDS)
def test_every_suggestion_is_taken_by_the_command(command):
    """Whatever is typed: every synonym, and every flag of all commands with a letter too few."""
    options = importlib.import_module(front_door.COMMANDS[command]).Options
    others = {word for name in front_door.COMMANDS for s in settings(name) for word in s.words}
    typed = {f"--{word.replace('_', '-')}" for word in SYNONYMS}
    typed |= {f"--no-{word.replace('_', '-')}" for word in SYNONYMS}
    typed |= {word[:-1] for word in others if word.startswith("--")} | {
        f"--no{word[1:-1]}" for word in others
    }
    for word in sorted(typed - {"--"}):
        found = re.search(r"did you mean (\S+)\?", nearest_flag(word, settings(command)))
        if found:
            flags.check_flags(options, [found[1]], "tool")  # raises for a flag that it does not have


def test_every_synonym_means_something_in_some_command():
    known = {setting.name for name in front_door.COMMANDS for setting in settings(name)}
    for word, targets in SYNONYMS.items():
        assert set(targets) <= known, word
        assert "-" not in word and word == word.lower()


def test_unknown_words_elsewhere_are_answered_too():
    assert nearest("trian", ["train", "eval"]) == "; did you mean train?"
    assert nearest("zzz", ["train", "eval"]) == "."


def test_the_message_of_a_wrong_flag_is_one_sentence_and_where_to_look():
    with pytest.raises(UsageError) as found:
        flags.check_flags(
            importlib.import_module("distill.commands.eval").Options, ["--no-data"], "distill eval"
        )
    assert str(found.value) == "unknown flag --no-data. See distill eval --help"


OTHER_PROGRAMS = {
    *("--backend-config", "--model-repository"),  # tritonserver
    *("--format", "--query-compute-apps", "--query-gpu"),  # nvidia-smi
    *("--ipc", "--shm-size"),  # docker
    *("--master-port", "--max-restarts", "--nproc-per-node", "--standalone"),  # torchrun
    "--get",  # in trtexec's --getPlanVersionOnly
    "--inputs-as-nchw",  # tf2onnx
    "--system-site-packages",  # venv
}
NO_FLAGS = {"--multilabel", "--multi-label", "--no-", "--rule", "--val", "--word"}
"""Flags that are refused by name, and beginnings and patterns of flags in code and docstrings."""


def test_every_flag_that_the_code_speaks_of_exists():
    """Advice is worth nothing when the flag it names is none: messages, help and docstrings."""
    known = {"--help", "--help-all"}
    for name in front_door.COMMANDS:
        for each in settings(name):
            known |= {*each.words, *([each.negated] if each.negated else [])}
    root = Path(__file__).parents[3]
    files = [
        file for each in ("runtime", "distill", "export", "bench") for file in (root / each).rglob("*.py")
    ]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    named = {flag for text in texts for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text)}
    assert len(named & known) > 100
    assert named - known <= OTHER_PROGRAMS | NO_FLAGS
