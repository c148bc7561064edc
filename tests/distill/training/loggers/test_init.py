"""All loggers together: own ones must work, others are left out once they fail."""

from pathlib import Path

import numpy as np
import pytest

from distill.training import loggers
from distill.training.loggers import Loggers
from distill.training.loggers.base import Outcome, Run
from runtime.errors import MissingError


class Written:
    """A logger that remembers what it is told, and fails at one thing."""

    def __init__(self, name, fails_at="", line=""):
        self.name, self.fails_at, self.line, self.told = name, fails_at, line, []

    def _told(self, *what):
        if what[0] == self.fails_at:
            raise ConnectionError("the server\nis away")
        self.told.append(what)
        return self.line

    def begin(self, run):
        return self._told("begin", run.name)

    def scalars(self, step, values):
        self._told("scalars", step, dict(values))

    def image(self, step, name, pixels):
        self._told("image", step, name, pixels.shape)

    def end(self, outcome):
        self._told("end", outcome)


def told(own, others, tmp_path):
    """What a person is told of a short run with these loggers."""
    said = []
    log = Loggers(own, others)
    log.say = said.append
    log.begin(Run("a", tmp_path, {}, [], 0))
    for step in (1, 2):
        log.scalars(step, {"lr": step})
    log.image(2, "picture", lambda: np.zeros((2, 3, 3), np.uint8))
    log.end(Outcome.FINISHED)
    return said


def test_every_logger_is_told_everything(tmp_path):
    own, other = Written("own"), Written("other", line="at home")
    assert told([own], [other], tmp_path) == ["other: at home"]
    figures = [("begin", "a"), ("scalars", 1, {"lr": 1}), ("scalars", 2, {"lr": 2})]
    assert own.told == [*figures, ("end", Outcome.FINISHED)]
    assert other.told == [*figures, ("image", 2, "picture", (2, 3, 3)), ("end", Outcome.FINISHED)]


@pytest.mark.parametrize("where", ["begin", "scalars", "image", "end"])
def test_one_that_fails_is_named_once_and_the_others_go_on(tmp_path, where):
    broken, whole = Written("broken", fails_at=where), Written("whole")
    (line,) = told([Written("own")], [broken, whole], tmp_path)
    assert line == "warning: broken failed (the server is away); the training goes on without it"
    assert len(whole.told) == 5 and where not in [what for what, *_ in broken.told]


def test_the_tables_of_the_run_must_be_written(tmp_path):
    with pytest.raises(ConnectionError):
        told([Written("own", fails_at="scalars")], [], tmp_path)


def test_a_picture_that_cannot_be_made_is_named(tmp_path):
    said, log = [], Loggers([], [Written("other")])
    log.say = said.append

    def fails():
        raise ValueError("no image")

    log.image(0, "picture", fails)
    assert said == []  # nothing is shown of what was not begun
    log.begin(Run("a", Path(), {}, [], 0))
    log.image(1, "picture", fails)
    assert said == ["warning: other failed (no image); the training goes on without it"]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch, name):
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(MissingError, match=rf'--{name} needs a package.*pip install "large2small\[{name}\]"'):
        loggers.require(False, {name: "x"})
