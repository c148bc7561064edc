"""last.pth: a run that the version before this layout stopped goes on as that version would have gone on.

tests/data/before_12/stopped_run.zip holds run/, stopped by SIGTERM after step 7 of 15 at commit 89cb9d4, and
whole/metrics.jsonl, what that commit wrote for the same run without a stop:

    distill train --data digits --teacher none --student resnet20 --student-args width=0.07 --img-size 8
        --batch 256 --epochs 3 --opt sgd --lr 0.05 --warmup-epochs 0 --drop-path 0.1 --smoothing 0.1
"""

import csv
import json
import zipfile
from pathlib import Path

import pytest
from timm.data.transforms import RandomResizedCropAndInterpolation

from distill import checkpoint as checkpoints
from distill.__main__ import main
from distill.data import augment

OLD_RUN = Path(__file__).parents[2] / "data" / "before_12" / "stopped_run.zip"
TIMINGS = {"train_images_per_s", "teacher_share_of_step", "train_seconds"}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def old(tmp_path):
    """A folder with run/ and whole/."""
    pytest.importorskip("sklearn")
    with zipfile.ZipFile(OLD_RUN) as archive:
        archive.extractall(tmp_path)
    return tmp_path


def test_a_run_of_the_version_before_goes_on_as_that_version_would_have(old, monkeypatch):
    """With that version's crops, which Pillow resized; those of today differ from them in rounding."""

    def crop(size, scale, ratio, interpolation):
        return RandomResizedCropAndInterpolation(size, scale, ratio, interpolation)

    monkeypatch.setattr(augment, "ResizedCrop", crop)
    run = old / "run"
    first = lines(run / "metrics.jsonl")
    assert checkpoints.load(run / "last.pth").state["updates"] == 7
    assert main(["train", "--resume", str(run), "--device", "cpu"]) == 0
    found, expected = lines(run / "metrics.jsonl"), lines(old / "whole" / "metrics.jsonl")
    assert found[:1] == first  # to the digit, timings too
    later = ["val_balanced_percent", "val_class_percent"]
    assert list(found[0]) == list(expected[0])
    assert [list(line) for line in found[1:]] == [[*line, *later] for line in expected[1:]]
    for ours, theirs in zip(found, expected, strict=True):
        for key in set(theirs) - TIMINGS:
            if theirs[key] is None:
                assert ours[key] is None
            elif key.startswith("val_top"):  # a few images may fall otherwise with another torch
                assert ours[key] == pytest.approx(theirs[key], abs=1)
            else:
                assert ours[key] == pytest.approx(theirs[key], rel=1e-3), key
    with open(run / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [5, 10, 15]
    assert rows[0]["val_balanced_percent"] == "" and float(rows[2]["val_balanced_percent"]) > 0
    assert json.loads((run / "result.json").read_text())["best"]["images"] == 445


def test_checkpoints_of_the_version_before_can_be_used(old, capsys):
    best = checkpoints.load(old / "run" / "best.pth")
    assert (best.model, best.role, best.metrics["epoch"]) == ("resnet20", "plain", 1)
    assert main(["eval", str(old / "run" / "best.pth"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["top1_percent"] == pytest.approx(best.metrics["top1"], abs=1)
    assert found["loss_nats"] == pytest.approx(best.metrics["loss"], rel=1e-3)
