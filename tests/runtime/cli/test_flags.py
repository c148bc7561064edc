"""Flags from a dataclass, and every failure as one line with an exit code."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

from runtime import UsageError
from runtime.cli import flags, front_door, help
from runtime.cli.settings import Flag, settings_of


@dataclass(frozen=True)
class Options:
    """Settings of the test."""

    engine: Path
    """A file."""
    batch: Annotated[int, Flag(aliases=("-b", "--batch-size"))] = 1
    """Images."""
    share: float = 0.5
    """Of them."""
    hint: Literal["latency", "throughput", "both"] | None = None
    """One of three."""
    img_size: str | None = None
    """Pixels."""
    json: bool = False
    """JSON."""
    seed: int = 0
    """Of chance."""


def parse(*argv: str) -> Options:
    return flags.parse(Options, argv, "tool run")


@pytest.mark.parametrize(
    "argv", [("-b", "3"), ("--batch", "3"), ("--batch-size", "3"), ("--batch=3",), ("--batch_size=3",)]
)
def test_aliases_and_both_spellings_set_the_field(argv):
    assert parse("--engine", "x", *argv) == Options(Path("x"), 3)


def test_a_word_that_a_flag_before_it_swallowed_is_explained():
    @dataclass(frozen=True)
    class Several:
        """Settings of the test."""

        engine: Annotated[Path, Flag(positional=True)]
        """A file."""
        sizes: tuple[str, ...] = ()
        """Numbers."""
        seed: int = 0
        """Of chance."""

    assert flags.parse(Several, ["x", "--sizes", "1", "2"], "tool") == Several(Path("x"), ("1", "2"))
    with pytest.raises(
        UsageError, match=r"^Missing .* \(--sizes takes all words behind it: give it last\)\. See tool"
    ):
        flags.parse(Several, ["--sizes", "1", "x", "--seed", "3"], "tool")
    with pytest.raises(UsageError, match=r"^Missing (?!.*all words)"):
        flags.parse(Several, ["--seed", "3"], "tool")


def test_flags_override_the_default_given():
    assert flags.parse(Options, ["--batch", "5"], "tool", default=Options(Path("y"), 2, 0.25)) == Options(
        Path("y"), 5, 0.25
    )


def test_a_switch_can_be_turned_on_and_off():
    assert parse("--engine", "x", "--json").json
    assert not parse("--engine", "x", "--no-json").json


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--engin", "x"), "unknown flag --engin; did you mean --engine?"),
        (("--engine", "x", "--batchsize=3"), "unknown flag --batchsize; did you mean --batch-size?"),
        (("--qqqqqq",), "unknown flag --qqqqqq. "),
    ],
)
def test_an_unknown_flag_names_the_nearest(argv, words):
    with pytest.raises(UsageError) as found:
        parse(*argv)
    assert str(found.value).startswith(words)
    assert str(found.value).endswith("See tool run --help")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), "--engine"),
        (("--engine",), "--engine: its value is missing."),
        (("--engine", "x", "--batch", "1.5"), "--batch 1.5: expected a whole number."),
        (("--engine", "x", "--share", "half"), "--share half: expected a number."),
        (("--engine", "x", "--share", "NaN"), "--share nan: expected a number."),
        (("--engine", "x", "--seed", "-1"), "--seed -1: expected 0 or more."),
        (("--engine", "x", "--hint", "speed"), "--hint speed: expected both, latency or throughput."),
        (("--engine", "x", "--batch", "/a/long/path" * 9), "/a/long/path" * 9),
        (("--engine", "x", "stray"), "stray"),
    ],
)
def test_what_cannot_be_parsed_is_said_on_one_line(argv, words, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")  # a narrow terminal must not break the line
    with pytest.raises(UsageError) as found:
        parse(*argv)
    assert words in str(found.value)
    assert "\n" not in str(found.value)
    assert str(found.value).endswith("See tool run --help")


def test_help_has_every_flag_and_exits_0(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    assert not stop.value.code
    out = capsys.readouterr().out
    for words in ("--engine", "--batch-size", "--img-size", "Pixels."):
        assert words in out


def test_the_terminals_width_is_as_before(monkeypatch):
    import os

    monkeypatch.setenv("COLUMNS", "77")
    parse("--engine", "x")
    assert os.environ["COLUMNS"] == "77"
    monkeypatch.delenv("COLUMNS")
    parse("--engine", "x")
    assert "COLUMNS" not in os.environ


@pytest.mark.parametrize("argv", [("-b3",), ("-b=3",), ("-b", "3"), ("--batch", "5", "--batch", "3")])
def test_short_flags_take_their_value_in_every_usual_way_and_the_last_one_counts(argv):
    assert parse("--engine", "x", *argv).batch == 3


def test_negative_numbers_are_values():
    @dataclass(frozen=True)
    class Numbers:
        """Settings of the test."""

        low: float = 0.0
        """A number."""
        pair: tuple[float, float] = (0.0, 1.0)
        """Two numbers."""

    argv = ["--low", "-1e-3", "--pair", "-2", "-1"]
    assert flags.parse(Numbers, argv, "tool") == Numbers(-0.001, (-2.0, -1.0))
    with pytest.raises(UsageError, match=r"^--pair 1: expected 2 values, X X\. See tool --help$"):
        flags.parse(Numbers, ["--pair", "1"], "tool")


@dataclass(frozen=True)
class Files:
    """Settings of the test."""

    files: Annotated[tuple[Path, ...], Flag("FILE", positional=True)]
    """Files."""
    engine: Path
    """A file."""
    words: tuple[str, ...] = ()
    """Words."""
    amp: bool = False
    """Faster."""


@pytest.mark.parametrize(
    "argv",
    [
        ["a", "b", "--engine", "e", "--amp"],
        ["--engine", "e", "a", "--amp", "b"],
        ["--amp", "a", "--engine=e", "b"],
        ["--engine", "e", "--amp", "--", "a", "b"],
    ],
)
def test_words_without_a_flag_may_stand_anywhere(argv):
    assert flags.parse(Files, argv, "tool") == Files((Path("a"), Path("b")), Path("e"), (), True)


def test_a_flag_of_several_words_ends_at_the_next_flag():
    argv = ["a", "--words", "x", "y", "--engine", "e"]
    assert flags.parse(Files, argv, "tool").words == ("x", "y")
    assert flags.parse(Files, ["a", "--engine", "e", "--words"], "tool").words == ()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--engine", "e", "--amp=yes"], "--amp: takes no value, found 'yes'. Give --amp or --no-amp."),
        (["--engine", "--amp"], "--engine: its value is missing. Expected FILE."),
        (["-x"], "unknown flag -x."),
        (["--no-engine"], "unknown flag --no-engine."),
    ],
)
def test_what_a_flag_cannot_be_given_is_said(argv, words):
    with pytest.raises(UsageError) as found:
        flags.parse(Files, argv, "tool")
    assert str(found.value) == f"{words} See tool --help"


def test_a_file_typed_without_its_flag_is_answered_with_the_flag():
    with pytest.raises(UsageError) as found:
        parse("x.onnx")
    assert str(found.value) == (
        "x.onnx: no flag takes this word; did you mean --engine x.onnx? See tool run --help"
    )


@dataclass(frozen=True)
class Bare:
    """Flags whose words may be left out."""

    engine: Annotated[Path, Flag("FILE", bare=True)]
    data: Annotated[str, Flag("DATA", bare=True)] = "digits"
    batch: int = 1


@pytest.mark.parametrize(
    "argv",
    [
        ("x.onnx", "photos", "--batch", "2"),
        ("--engine", "x.onnx", "photos", "--batch", "2"),
        ("--batch=2", "x.onnx", "--data", "photos"),
        ("--data=photos", "--batch", "2", "--", "x.onnx"),
    ],
)
def test_a_word_stands_for_the_first_flag_that_was_left_out(argv):
    assert flags.parse(Bare, argv, "tool") == Bare(Path("x.onnx"), "photos", 2)


def test_a_word_too_many_is_named_and_one_too_few_too():
    with pytest.raises(UsageError, match=r"y\.onnx: no flag takes this word"):
        flags.parse(Bare, ["x.onnx", "photos", "y.onnx"], "tool")
    with pytest.raises(UsageError, match="Missing --engine FILE"):
        flags.parse(Bare, ["--data", "photos"], "tool")
    assert help.usage("tool", settings_of(Bare)) == "usage: tool [--engine] FILE [flags]"


def test_what_a_recipe_says_can_be_taken_back():
    assert parse("--engine", "x", "--hint", "None").hint is None
    given = flags.parse(Options, ["--img-size", "None"], "tool", default=Options(Path("x"), img_size="3"))
    assert given.img_size is None


@dataclass(frozen=True)
class Weights:
    """Flags that name checkpoints, and one that does not."""

    checkpoint: Annotated[Path, Flag("CKPT", positional=True)]
    teacher: Annotated[str, Flag("CKPT")] = ""
    data: Annotated[str, Flag("DIR")] = ""


def test_the_folder_of_a_run_is_its_best_checkpoint_where_one_is_asked_for(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "best.pth").write_bytes(b"")
    found = flags.parse(Weights, [str(run), "--teacher", str(run), "--data", str(run)], "distill x")
    assert found == Weights(run / "best.pth", str(run / "best.pth"), str(run))
    (run / "best.pth").unlink()  # a folder without one is left as it is, for the command to refuse
    assert flags.parse(Weights, [str(run)], "distill x").checkpoint == run


@pytest.mark.parametrize(
    "name", ["eval", "erf", "export onnx", "export trt", "parity", "inspect", "train", "train --qat"]
)
def test_every_command_that_reads_checkpoints_says_so_to_the_reader_of_flags(name):
    options = importlib.import_module(front_door.COMMANDS[name]).Options
    assert [each.name for each in settings_of(options) if each.is_checkpoint]


@pytest.mark.parametrize(
    ("word", "of_float", "of_int"),
    [
        ("nan", "nan: expected a number", "nan: expected a whole number"),
        ("inf", "inf: expected a finite number", "inf: expected a whole number"),
        ("-inf", "-inf: expected a finite number", "-inf: expected a whole number"),
        ("1e999", "inf: expected a finite number", "1e999: expected a whole number"),
        ("9" * 20, None, f"{'9' * 20}: expected at most 9223372036854775807"),
        ("ten", "ten: expected a number", "ten: expected a whole number"),
        ("", "'': expected a number", "'': expected a whole number"),
    ],
)
@pytest.mark.parametrize("command", front_door.COMMANDS)
def test_no_number_of_a_command_takes_what_is_not_one(command, word, of_float, of_int):
    options = importlib.import_module(front_door.COMMANDS[command]).Options
    for setting in settings_of(options):
        expected = {float: of_float, int: of_int}.get(setting.kind)
        if expected and setting.words:
            repeated = [word] * (setting.count or 1)
            with pytest.raises(UsageError) as found:
                flags.parse(options, [setting.words[0], *repeated], "tool")
            said = str(found.value).replace(f"{expected.split(':')[0]} ", "", len(repeated) - 1)
            assert said.startswith(f"{setting.words[0]} {expected}"), said


@pytest.mark.parametrize(
    ("argv", "found"),
    [
        ((), ""),
        (("--service",), "home"),
        (("--service", "--seed", "3"), "home"),
        (("--service", "there"), "there"),
        (("--service=there",), "there"),
        (("--service=",), ""),
    ],
)
def test_a_flag_may_stand_alone_where_it_says_what_is_meant_then(argv, found):
    @dataclass(frozen=True)
    class Sends:
        """Settings of the test."""

        service: Annotated[str, Flag("PLACE", alone="home")] = ""
        """A place."""
        seed: int = 0
        """Of chance."""

    assert flags.parse(Sends, list(argv), "tool").service == found
    assert settings_of(Sends)[0].metavar == "[PLACE]"
