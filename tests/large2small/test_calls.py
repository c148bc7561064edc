"""Keywords of Python become the settings that the command would have had."""

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import numpy as np
import pytest

from large2small import calls
from runtime.cli import front_door
from runtime.cli.settings import Flag, check
from runtime.errors import GateError, MissingError, UsageError


@dataclass(frozen=True)
class Options:
    """A command with one setting of every kind."""

    source: Annotated[Path, Flag(positional=True)]
    """File."""
    name: str = ""
    """Text."""
    rate: Annotated[float | None, Flag("X", above=0)] = None
    """Number."""
    steps: Annotated[int, Flag("N", aliases=("--num-steps",), least=1)] = 1
    """Count."""
    fast: bool = True
    """Switch."""
    place: Path | None = None
    """Path."""
    words: Annotated[tuple[str, ...], Flag("KEY=VALUE")] = ("a",)
    """Several."""
    pair: tuple[float, float] = (0.0, 1.0)
    """Two."""
    kind: Literal["one", "two"] = "one"
    """Choice."""
    service: Annotated[str, Flag("PLACE", alone="home")] = ""
    """Flag that may stand alone."""
    json: bool = False
    """Output."""

    def __post_init__(self) -> None:
        check(self)


@pytest.fixture
def toy(monkeypatch) -> ModuleType:
    """`distill bench toy`, whose result is its settings."""
    module = ModuleType("toy_command")
    module.SUMMARY, module.DESCRIPTION, module.Options = "do nothing", "", Options
    module.do = lambda options: options
    monkeypatch.setitem(sys.modules, "toy_command", module)
    monkeypatch.setitem(front_door.COMMANDS, "bench toy", "toy_command")
    return module


def made(**keywords) -> Options:
    return calls.call("bench toy", keywords, ("a.onnx",))


def test_values_arrive_as_they_are_with_the_defaults_of_the_command(toy):
    assert made() == Options(Path("a.onnx"))
    given = {
        "name": "two words",
        "rate": 1e-4,
        "steps": 3,
        "fast": False,
        "place": Path("b c"),
        "kind": "two",
    }
    assert made(**given, words=["x=1", "-y"], pair=(0.5, -2)) == Options(
        Path("a.onnx"), **given, words=("x=1", "-y"), pair=(0.5, -2.0)
    )


@pytest.mark.parametrize(
    ("keyword", "given", "read"),
    [
        ("place", "b.json", Path("b.json")),
        ("name", Path("data") / "train", "data/train"),
        ("name", "--name", "--name"),
        ("name", "", ""),
        ("rate", np.float32(0.5), 0.5),
        ("rate", 1 / 3, 1 / 3),
        ("rate", None, None),
        ("steps", np.int64(7), 7),
        ("fast", np.bool_(False), False),
        ("words", {"width": 0.25, "dims": [1, 2]}, ("width=0.25", "dims=[1, 2]")),
        ("words", "x=1", ("x=1",)),
        ("words", (), ()),
    ],
)
def test_a_value_may_have_the_form_that_is_at_hand(toy, keyword, given, read):
    assert getattr(made(**{keyword: given}), keyword) == read


def test_another_name_of_a_flag_is_a_keyword_too(toy):
    assert made(num_steps=4).steps == 4


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"step": 2}, "bench_toy() has no keyword step; did you mean steps?"),
        ({"source": "b.onnx"}, "bench_toy() has no keyword source."),
        ({"json": True}, "bench_toy() has no keyword json."),
        ({"iters": 2}, "bench_toy() has no keyword iters."),
        ({"steps": 0}, "--steps 0: expected 1 or more. See distill bench toy --help"),
        ({"steps": 2.5}, "--steps 2.5: expected a whole number. See distill bench toy --help"),
        ({"steps": True}, "--steps True: expected a whole number. See distill bench toy --help"),
        ({"steps": None}, "steps None: expected a value. Leave it out for the default"),
        ({"fast": "no"}, "fast 'no': expected True or False"),
        ({"fast": 1}, "fast 1: expected True or False"),
        ({"fast": np.zeros(2)}, "fast array([0., 0.]): expected True or False"),
        ({"name": np.zeros(2)}, "name array([0., 0.]): expected one value"),
        ({"name": b"a"}, "name b'a': expected one value"),
        ({"name": ["a"]}, "name ['a']: expected one value"),
        ({"words": [["a"]]}, "words ['a']: expected text or numbers"),
        ({"words": ["a", "--fast"]}, "words --fast: expected values that do not begin with two dashes"),
        ({"pair": (1,)}, "--pair 1: expected 2 values, X X. See distill bench toy --help"),
        ({"kind": "three"}, "--kind three: expected one or two. See distill bench toy --help"),
    ],
)
def test_a_keyword_that_cannot_be_is_a_usage_error(toy, keywords, said):
    with pytest.raises(UsageError) as caught:
        made(**keywords)
    assert str(caught.value) == said


def test_a_place_that_is_not_a_path_is_a_usage_error(toy):
    with pytest.raises(UsageError, match=r"^None: expected a path$"):
        calls.call("bench toy", {}, (None,))


def raising(error):
    def do(options):
        raise error

    return do


def test_a_missing_package_is_the_error_that_the_command_would_print(toy):
    toy.do = raising(ModuleNotFoundError("No module named 'torch'", name="torch"))
    with pytest.raises(MissingError, match=r'needs torch.*pip install "large2small\[train\]"'):
        made()


def test_errors_of_ours_and_bugs_arrive_as_they_were_raised(toy):
    for error in (GateError("drop 3"), ValueError("a bug"), KeyboardInterrupt()):
        toy.do = raising(error)
        with pytest.raises(type(error)) as caught:
            made()
        assert caught.value is error


@pytest.mark.parametrize("quiet", [False, True])
def test_nothing_comes_to_stdout_and_with_quiet_nothing_to_stderr(toy, quiet, capsys):
    def do(options):
        print("a library")
        print("progress", file=sys.stderr)

    toy.do = do
    calls.call("bench toy", {}, ("a.onnx",), quiet)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == ([] if quiet else ["a library", "progress"])


@pytest.mark.parametrize(("value", "found"), [(True, "home"), (False, ""), ("there", "there")])
def test_a_flag_that_may_stand_alone_takes_true(toy, value, found):
    assert made(service=value, rate=2.0).service == found
