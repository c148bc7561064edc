"""A process that is killed at any step on the disk leaves nothing that another run does not tidy up.

A step is a file that is opened to be written, a new name, a sync, a folder made or a file removed, in the
folder of the test or in that of temporary files. Each command is run once in peace and once for every step,
at which it kills itself; then it is run again in peace.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_onnx

from distill import checkpoint as checkpoints
from distill import models
from distill.checkpoint import Checkpoint
from export.graph import from_torch
from runtime.cli.front_door import main
from runtime.preprocess import Preprocess

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are forked"),
]
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
EVENTS = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link")
IMPORTED = (
    *("bench.table", "bench.commands.table", "distill.run.labeling", "distill.commands.label", "rich.table"),
    *("export.stages.onnx", "export.commands.onnx", "export.stages.report", "onnxruntime"),
)
CLASSES = ["ant", "bee", "cat", "dog"]


def forked(work: Callable[[], object], folder: Path, end_at: int = 0) -> tuple[int, int]:
    """(signal or exit code of a process that does `work` and kills itself at step `end_at`, steps it did)."""
    come, go = os.pipe()
    child = os.fork()
    if child == 0:
        count = [0]

        def step(*_: object) -> None:
            count[0] += 1
            if count[0] == end_at:
                os.kill(os.getpid(), signal.SIGKILL)

        def hook(event: str, arguments: tuple) -> None:
            is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
            if (is_write or event in EVENTS) and not isinstance(arguments[0], int):
                place = os.path.abspath(os.fsdecode(arguments[0]))
                if place.startswith(f"{folder}/"):
                    step()

        real = os.fsync
        os.fsync = lambda handle: (step(), real(handle))[1]
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        code = 99
        try:
            sys.addaudithook(hook)
            code = int(work() or 0)
        finally:
            os.write(go, str(count[0]).encode())
            os._exit(code)
    os.close(go)
    said = os.read(come, 100)
    os.close(come)
    _, status = os.waitpid(child, 0)
    return (-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)), int(said or 0)


def tree(folder: Path) -> list[str]:
    return sorted(str(each.relative_to(folder)) for each in folder.rglob("*"))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """in/ with what is read; out/ and temporary/, empty, in which steps count."""
    (tmp_path / "in").mkdir()
    (tmp_path / "disk" / "temporary").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "disk" / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    tempfile.gettempdir()  # leaves a file for a moment, once a process: it is Python that does that
    dice = np.random.default_rng(0)
    for split in ("train", "val"):
        x = dice.integers(0, 256, (8, 16, 16, 3)).astype(np.uint8)
        np.savez(f"in/{split}.npz", x=x, y=np.arange(8) % 4, class_names=np.array(CLASSES))
    checkpoints.save(made(), "in/a.pth")
    tiny_onnx.write("in/teacher.onnx", meta=tiny_onnx.metadata())
    tiny_onnx.write("in/a.onnx", meta=tiny_onnx.metadata())
    tiny_onnx.write_images(tmp_path / "in" / "photos")
    return tmp_path


def made() -> Checkpoint:
    arguments = {"width": 0.25}
    weights = models.build("resnet20", 4, arguments).state_dict()
    return Checkpoint("resnet20", arguments, weights, Preprocess((3, 16, 16), "bilinear", 1.0), CLASSES)


def table() -> int:
    words = "bench table --teacher in/teacher.onnx in/a.onnx --data in/photos --iterations 1 --warmup 0"
    return main([*words.split(), "--output", "disk/out/t", "--overwrite"])


def label() -> int:
    words = "label --teacher-ckpt in/a.pth --data npz:in --epochs 1 --batch 4 --img-size 16 --workers 0"
    words += " --student resnet20 --student-args width=0.25 --device cpu --output disk/out/labels"
    return main(words.split())


def export() -> int:
    words = "export onnx in/a.pth --data npz:in --verify-size 4 --output disk/out/a.onnx --overwrite"
    return main(words.split())


def keep() -> None:
    checkpoints.save(checkpoints.load("in/a.pth"), "disk/out/best.pth")


WORK = {"bench table": table, "label": label, "export onnx": export, "checkpoint": keep}


@pytest.mark.parametrize("name", WORK)
def test_killed_at_any_step_and_run_again_nothing_is_left_over(name, place, monkeypatch):
    work, disk = WORK[name], place / "disk"
    if name == "export onnx":  # without torch's exporter, which takes seconds
        student = models.build("resnet20", 4, {"width": 0.25}).eval()
        checkpoints.load_weights(student, checkpoints.load("in/a.pth"))
        graph = from_torch.to_onnx(from_torch.merge(student), (3, 16, 16))
        monkeypatch.setattr(from_torch, "to_onnx", lambda *_, **__: graph)
    for module in IMPORTED:  # once, and not in every process that is forked
        importlib.import_module(module)
    code, steps = forked(work, disk)
    assert code == 0 and 3 <= steps <= 60
    expected = tree(disk)
    ends = [forked(work, disk, step)[0] for step in range(1, steps + 1)]
    # a killed run is the next one's past; what one goes on with, another need not write
    assert set(ends) <= {-signal.SIGKILL, 0} and ends.count(-signal.SIGKILL) > steps // 2
    assert forked(work, disk)[0] == 0
    assert tree(disk) == expected
