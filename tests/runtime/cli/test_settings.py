"""Fields become settings with type, range and explanation; what is not allowed is refused by name."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest

from runtime import UsageError
from runtime.cli.settings import Flag, check, explanation, settings_of


@dataclass(frozen=True)
class Base:
    """Base: what others share. More about it."""

    file: Annotated[Path, Flag("CKPT", positional=True)]
    """A file,
    on two lines."""
    share: Annotated[float, Flag("SHARE", least=0, below=1)] = 0.5
    """A share."""


@dataclass(frozen=True)
class Costly:
    """Fields whose value costs before anything is read."""

    workers: int = 0
    """Processes."""
    threads: Annotated[int | None, Flag("N", least=1)] = None
    """Threads."""
    input_size: tuple[int, ...] = ()
    """Sides."""
    crop_padding: Annotated[int, Flag("PIXELS", most=10)] = 0
    """Pixels, with a range of its own."""
    img_size: Annotated[str, Flag("PIXELS")] = ""
    """Text, which no range fits."""


@dataclass(frozen=True)
class Options(Base):
    """Settings of the test."""

    sizes: tuple[int, ...] = ()
    """Sizes."""
    pair: Annotated[tuple[float, float], Flag("X", above=0)] = (1.0, 2.0)
    """Two numbers."""
    hint: Literal["latency", "throughput"] | None = None
    """One of two."""
    word: Annotated[str, Flag(choices=("a", "b"))] = "a"
    """A word of a table."""
    limit: int | None = None
    seed: int = 0
    """Seed."""


def setting(name: str):
    return next(found for found in settings_of(Options) if found.name == name)


def test_type_count_and_default_come_from_the_field():
    shape = {s.name: (s.kind, s.count, s.optional, s.choices, s.required) for s in settings_of(Options)}
    assert shape == {
        "file": (Path, 1, False, (), True),
        "share": (float, 1, False, (), False),
        "sizes": (int, None, False, (), False),
        "pair": (float, 2, False, (), False),
        "hint": (str, 1, True, ("latency", "throughput"), False),
        "word": (str, 1, False, ("a", "b"), False),
        "limit": (int, 1, True, (), False),
        "seed": (int, 1, False, (), False),
    }


def test_metavars_say_what_is_expected():
    assert {s.name: s.metavar for s in settings_of(Options)} == {
        "file": "CKPT",
        "share": "SHARE",
        "sizes": "N ...",
        "pair": "X X",
        "hint": "{latency,throughput}",
        "word": "{a,b}",
        "limit": "N",
        "seed": "N",
    }


def test_the_explanation_is_the_docstring_below_the_field_on_one_line():
    assert explanation(setting("file")) == "A file, on two lines."
    assert explanation(setting("word")) == "A word of a table."
    assert explanation(setting("limit")) == ""


def test_a_setting_belongs_to_the_class_that_declares_it():
    assert (setting("share").owner, setting("pair").owner) == (Base, Options)


def test_a_type_that_no_flag_can_have_is_an_error_of_ours():
    @dataclass(frozen=True)
    class Wrong:
        values: dict = field(default_factory=dict)

    with pytest.raises(TypeError, match=r"^Wrong\.values: no flag can be made"):
        settings_of(Wrong)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"share": 1.0}, "share 1.0: expected 0 to below 1"),
        ({"share": -0.1}, "share -0.1: expected 0 to below 1"),
        ({"share": math.inf}, "share inf: expected a finite number, 0 to below 1"),
        ({"share": math.nan}, "share nan: expected a number, 0 to below 1"),
        ({"pair": (1.0, 0.0)}, "pair 1.0 0.0: expected above 0"),
        ({"pair": (math.nan, 1.0)}, "pair nan 1.0: expected a number, above 0"),
        ({"sizes": (1, 2**63)}, f"sizes 1 {2**63}: expected at most {2**63 - 1}"),
        ({"sizes": (-(2**64),)}, "expected at least"),
        ({"seed": -1}, "seed -1: expected 0 or more"),
        ({"seed": 99999999999999999999}, "expected at most 9223372036854775807"),
        ({"hint": "speed"}, "hint speed: expected one of latency, throughput"),
        ({"word": "c"}, "word c: expected one of a, b"),
        ({"word": None}, "word None: expected one of a, b"),
    ],
)
def test_what_is_not_allowed_is_refused_by_name(values, words):
    with pytest.raises(UsageError) as found:
        check(Options(Path("x"), **values))
    assert words in str(found.value)


@pytest.mark.parametrize(
    "values",
    [{}, {"share": 0.0}, {"seed": 2**63 - 1}, {"limit": None}, {"hint": None}, {"word": "b"}, {"sizes": ()}],
)
def test_what_is_allowed_passes(values):
    check(Options(Path("x"), **values))


def test_what_costs_before_anything_is_read_has_an_upper_bound():
    most = {each.name: each.flag.most for each in settings_of(Costly)}
    assert 128 <= most["workers"] == most["threads"] < 100_000
    assert (most["input_size"], most["crop_padding"], most["img_size"]) == (16384, 10, None)
    check(Costly(int(most["workers"]), int(most["threads"]), (16384, 1), 10, "224"))
    for name, value in (("workers", 2000 * most["workers"]), ("threads", 10**5), ("input_size", (8, 10**5))):
        with pytest.raises(UsageError, match=rf"^{name.replace('_', '-')} .*: expected .*\b\d+$"):
            check(Costly(**{name: value}))


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        (Flag(least=1), "1 or more"),
        (Flag(least=0, most=1), "0 to 1"),
        (Flag(above=0, most=1), "above 0, at most 1"),
        (Flag(above=0), "above 0"),
        (Flag(), ""),
    ],
)
def test_a_range_in_words(flag, words):
    assert flag.range == words
