"""Names of figures outside, and the ids that a run keeps."""

import json

import pytest

from distill.training.loggers import base
from distill.training.records import EpochRecord
from runtime.recorded import LOGGER_IDS


@pytest.fixture
def record():
    return EpochRecord(
        epoch=2,
        step=40,
        lr=0.1,
        train_loss=3.0,
        train_distill_loss=2.0,
        train_task_loss=1.0,
        train_each_loss={"kl": 2.5},
        val_top1_percent=75.0,
        val_top5_percent=99.0,
        val_loss_nats=0.5,
        val_images=16,
        val_teacher_agreement_percent=None,
        train_images_per_s=100.0,
        teacher_share_of_step=0.25,
        train_seconds=9.0,
        bad_images=1,
    )


def test_figures_are_grouped_by_what_they_are_of(record):
    assert base.tags(record.to_dict()) == {
        "run/epoch": 2.0,
        "lr/largest": 0.1,
        "train/loss": 3.0,
        "train/distill": 2.0,
        "train/task": 1.0,
        "train/kl": 2.5,
        "val/top1": 75.0,
        "val/top5": 99.0,
        "val/loss": 0.5,
        "time/images_per_s": 100.0,
        "time/teacher_share_of_step": 0.25,
        "time/seconds": 9.0,
        "run/bad_images": 1.0,
    }


def test_a_figure_that_comes_later_finds_its_group():
    assert base.tags({"val_balanced_percent": 50.0, "train_fd_loss": 1.0}) == {
        "val/balanced": 50.0,
        "train/fd": 1.0,
    }


def test_ids_are_kept_beside_each_other(tmp_path):
    base.keep_id(tmp_path, "wandb", "abc-1")
    base.keep_id(tmp_path, "mlflow", "0f3")
    assert base.kept_id(tmp_path, "wandb") == "abc-1" and base.kept_id(tmp_path, "mlflow") == "0f3"


@pytest.mark.parametrize(
    "text", ["", "[]", '{"wandb": 3}', '{"wandb": "../../x"}', '{"wandb": ""}', "[" * 100_000, "\xff"]
)
def test_what_is_not_an_id_is_none(tmp_path, text):
    (tmp_path / LOGGER_IDS).write_text(text, encoding="latin-1")
    assert base.kept_id(tmp_path, "wandb") == ""
    base.keep_id(tmp_path, "wandb", "new")
    assert json.loads((tmp_path / LOGGER_IDS).read_text())["wandb"] == "new"
