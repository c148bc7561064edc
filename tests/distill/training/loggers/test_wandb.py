"""Weights & Biases: what it is handed, from a double; and the real package, offline, where there is one."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from distill.training.loggers.base import Outcome, Run, kept_id
from distill.training.loggers.wandb import Wandb
from runtime.errors import MissingError


class Double:
    """The part of the package that is used."""

    def __init__(self, mode="online", key="k"):
        self.errors = SimpleNamespace(Error=RuntimeError)
        self.api, self.login = SimpleNamespace(api_key=key), lambda prompt: bool(key)
        self.setup = lambda: SimpleNamespace(settings=SimpleNamespace(mode=mode))
        self.begun, self.logged, self.exit_codes = [], [], []

    def Settings(self, **settings):
        return settings

    def Image(self, pixels):
        return f"picture {pixels.shape}"

    def init(self, **given):
        self.begun.append(given)
        return SimpleNamespace(
            id=given["id"] or f"run{len(self.begun)}",
            offline=self.setup().settings.mode == "offline",
            url="https://wandb.example/run",
            dir=str(Path(given["dir"]) / "wandb" / "offline-run-1" / "files"),
            log=lambda values, step: self.logged.append((step, values)),
            finish=lambda exit_code: self.exit_codes.append(exit_code),
        )


@pytest.fixture
def double(monkeypatch):
    made = Double()
    monkeypatch.setitem(sys.modules, "wandb", made)
    return made


def test_figures_and_pictures_arrive_and_the_run_is_closed(double, tmp_path):
    log = Wandb("team/birds")
    Wandb("birds").require()
    assert log.begin(Run("student", tmp_path, {"epochs": 3}, [], 0)) == "https://wandb.example/run"
    log.scalars(10, {"val_top1_percent": 50.0, "step": 10})
    log.image(10, "val/worst", np.zeros((2, 3, 3), np.uint8))
    log.end(Outcome.STOPPED)
    given = double.begun[0]
    assert (given["entity"], given["project"], given["name"]) == ("team", "birds", "student")
    assert given["config"] == {"epochs": 3} and given["id"] is None and given["dir"] == str(tmp_path)
    assert double.logged == [(10, {"val/top1": 50.0}), (10, {"val/worst": "picture (2, 3, 3)"})]
    assert double.exit_codes == [130]


def test_neither_output_nor_code_is_sent(double, tmp_path):
    Wandb("birds").begin(Run("student", tmp_path, {}, [], 0))
    settings = double.begun[0]["settings"]
    assert settings["console"] == "off" and settings["disable_code"] and settings["disable_git"]


def test_a_resumed_run_goes_on_as_the_same_one(double, tmp_path):
    for step in (0, 10):
        Wandb("birds").begin(Run("student", tmp_path, {}, [], step))
    first, second = double.begun
    assert (first["id"], second["id"], second["resume"]) == (None, "run1", "allow")
    assert kept_id(tmp_path, "wandb") == "run1"


def test_who_is_not_logged_in_is_told_before_the_training(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", Double(key=None))
    with pytest.raises(MissingError, match=r"wandb login.*WANDB_MODE=offline"):
        Wandb("birds").require()
    away = Double()
    away.login = lambda prompt: (_ for _ in ()).throw(RuntimeError("the server\nis away"))
    monkeypatch.setitem(sys.modules, "wandb", away)
    with pytest.raises(MissingError, match=r"\(the server is away\)"):
        Wandb("birds").require()
    old = Double(key=None)
    old.login = lambda: None
    monkeypatch.setitem(sys.modules, "wandb", old)
    with pytest.raises(MissingError, match="no key is kept"):
        Wandb("birds").require()
    monkeypatch.setitem(sys.modules, "wandb", Double(mode="offline", key=None))
    Wandb("birds").require()


def test_the_real_package_keeps_a_run_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()  # it reads the environment once
    Wandb("birds").require()
    for step in (0, 10):
        log = Wandb("birds")
        line = log.begin(Run("student", tmp_path, {"epochs": 3}, [], step))
        log.scalars(step + 10, {"val_top1_percent": 50.0})
        log.image(step + 10, "val/worst", np.zeros((20, 30, 3), np.uint8))
        log.end(Outcome.FINISHED)
    kept = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(kept) == 2 and str(kept[1]) in line
    run_id = json.loads((tmp_path / "loggers.json").read_text())["wandb"]
    assert all(folder.name.endswith(run_id) and list(folder.glob("*.wandb")) for folder in kept)
