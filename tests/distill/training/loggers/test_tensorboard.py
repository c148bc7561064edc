"""TensorBoard's events: one file a run."""

import numpy as np
import pytest

from distill.training.loggers.base import Outcome, Run
from distill.training.loggers.tensorboard import EVENTS, TensorBoard

accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def written(folder):
    """(the event files, {tag: steps}) as TensorBoard reads them."""
    found = accumulators.EventAccumulator(str(folder), {"scalars": 0, "images": 0})
    found.Reload()
    tags = found.Tags()
    steps = {tag: [event.step for event in found.Scalars(tag)] for tag in tags["scalars"]}
    steps |= {tag: [event.step for event in found.Images(tag)] for tag in tags["images"]}
    return list(folder.glob(EVENTS)), steps


def train(folder, done, until, outcome=Outcome.FINISHED):
    """A training of `done` steps before, to step `until`, a figure at every tenth."""
    log = TensorBoard()
    log.begin(Run("a", folder, {}, [], done))
    if not done:
        log.image(0, "train/augmented", np.zeros((4, 4, 3), np.uint8))
    for step in range(done + 10, until + 1, 10):
        log.scalars(step, {"train_kl_loss": step / 2, "val_top1_percent": 50.0})
    if outcome:
        log.image(until, "val/worst", np.zeros((4, 4, 3), np.uint8))
        log.end(outcome)


def test_figures_and_pictures_are_in_one_file(tmp_path):
    train(tmp_path, 0, 30)
    files, steps = written(tmp_path)
    assert len(files) == 1
    every = [10, 20, 30]
    assert steps == {"train/augmented": [0], "train/kl": every, "val/top1": every, "val/worst": [30]}


def test_a_resumed_run_goes_on_in_one_file_without_what_was_lost(tmp_path):
    train(tmp_path, 0, 30, outcome=None)  # killed at step 30, having saved itself at step 20
    train(tmp_path, 20, 40)
    files, steps = written(tmp_path)
    every = [10, 20, 30, 40]
    assert len(files) == 1
    assert steps == {"train/augmented": [0], "train/kl": every, "val/top1": every, "val/worst": [40]}


def test_a_finished_run_that_is_resumed_shows_nothing_twice(tmp_path):
    train(tmp_path, 0, 20)
    train(tmp_path, 20, 20)
    assert written(tmp_path)[1]["val/worst"] == [20]


def test_a_file_that_was_cut_is_read_up_to_there(tmp_path):
    train(tmp_path, 0, 30)
    (file,) = tmp_path.glob(EVENTS)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) - 20])
    train(tmp_path, 30, 40)
    files, steps = written(tmp_path)
    assert len(files) == 1 and steps["val/top1"] == [10, 20, 30, 40] and steps["val/worst"] == [40]
