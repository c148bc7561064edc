"""Which epoch is the best, and when a training ends: on records worked out by hand, and in whole runs."""

import json
import math

import pytest
import torch

from distill import checkpoint as checkpoints
from distill.evaluate import Evaluation
from distill.training.records import EpochRecord
from distill.training.selection import Selection


def record(epoch, top1=50.0, balanced=50.0, loss=1.0):
    return EpochRecord(
        epoch, epoch, 0.1, 1.0, None, 1.0, {}, top1, 100.0, loss, 4, None, 1.0, None, 1.0, 0, balanced
    )


def chosen(measure, records, patience=0):
    """(the best epoch, the epoch after which it is over, or None)."""
    selection, best, history = Selection(measure, patience), None, []
    for each in records:
        history.append(each)
        if selection.is_better(each, best):
            best = each
        if selection.is_over(history, best):
            return best.epoch, each.epoch
    return best.epoch, None


EPOCHS = [
    record(1, 95, 50, 1.0),
    record(2, 94, 60, 0.5),
    record(3, 96, 55, 0.7),
    record(4, 96, 60, 0.4),
    record(5, 90, 40, 0.4),
    record(6, 96, 61, 0.9),
]


@pytest.mark.parametrize(("measure", "best"), [("top1", 3), ("balanced", 6), ("loss", 4)])
def test_the_first_epoch_with_the_best_value_is_chosen(measure, best):
    assert chosen(measure, EPOCHS) == (best, None)


@pytest.mark.parametrize(
    ("measure", "patience", "expected"),
    [
        ("top1", 2, (3, 5)),
        ("top1", 3, (3, 6)),
        ("top1", 4, (3, None)),
        ("balanced", 3, (2, 5)),
        ("balanced", 4, (6, None)),
        ("loss", 1, (2, 3)),
        ("loss", 2, (4, 6)),
    ],
)
def test_it_ends_after_so_many_epochs_without_a_better_one(measure, patience, expected):
    assert chosen(measure, EPOCHS, patience) == expected


def test_nan_is_never_better_and_any_number_is_better_than_nan():
    records = [
        record(1, loss=math.nan),
        record(2, loss=math.nan),
        record(3, loss=9.0),
        record(4, loss=math.nan),
    ]
    assert chosen("loss", records) == (3, None)
    assert chosen("balanced", [record(1, balanced=None), record(2, balanced=1.0)]) == (2, None)


def scripted(run, scores):
    """Let the validations of `run` find (top-1, right of 4 images, loss) one after the other."""
    labels = torch.tensor([0, 0, 0, 1])
    values = iter(scores)

    def validate():
        top1, right, loss = next(values)
        return Evaluation(
            top1, 100.0, loss, 4, 0, torch.zeros(4), torch.tensor(right, dtype=torch.bool), labels
        )

    run.validate = validate
    return run


A, B, C = (75.0, [1, 1, 1, 0], 0.5), (50.0, [1, 0, 0, 1], 0.9), (25.0, [1, 0, 0, 0], 0.1)


@pytest.mark.parametrize(("select", "epoch"), [("top1", 1), ("balanced", 2), ("loss", 3)])
def test_best_pth_is_of_the_selected_epoch_and_says_what_chose_it(trainer, select, epoch, capsys):
    run = scripted(trainer(epochs=3, select=select), [A, B, C])
    assert run.fit().epoch == epoch
    said = capsys.readouterr().err.splitlines()[-1]
    best = {"top1": "75.00 %", "balanced": "balanced 66.67 %", "loss": "val loss 0.1000"}
    assert f"(best {best[select]})" in said
    metrics = checkpoints.load(run.task.folder / "best.pth").metrics
    assert (metrics["epoch"], metrics["select"]) == (epoch, select)
    assert metrics["balanced"] == pytest.approx([50.0, 200 / 3, 50 / 3][epoch - 1])


def test_the_records_hold_balanced_accuracy_and_each_class(trainer):
    run = scripted(trainer(epochs=2), [A, B])
    run.fit()
    lines = [json.loads(line) for line in (run.task.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["val_balanced_percent"] for line in lines] == pytest.approx([50.0, 200 / 3])
    assert lines[1]["val_class_percent"] == {
        "ant": pytest.approx(100 / 3),
        "bee": 100.0,
        "cat": None,
        "dog": None,
    }
    header, *rows = (run.task.folder / "summary.csv").read_text().splitlines()
    assert header.endswith(",val_balanced_percent") and rows[0].endswith(",50.0")


def test_a_run_that_stops_early_says_so_and_keeps_its_schedule(trainer, capsys):
    run = scripted(trainer(epochs=9, early_stop=2, lr=0.1, min_lr=0.0), [A, B, C])
    run.fit()
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "student: stopped after epoch 3 of 9: no better top-1 in 2 epochs (--early-stop 2)"
    rate = 0.1 * (1 + math.cos(math.pi * 3 / 9)) / 2
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(rate)


def test_a_resumed_run_goes_on_counting_and_does_not_train_again_once_it_ended(trainer):
    scores = [A, B, B, C]
    run = scripted(trainer(epochs=9, early_stop=3), scores)
    plain = run._end_epoch

    def once(display):
        plain(display)
        if run.epoch == 2:
            raise KeyboardInterrupt

    run._end_epoch = once
    with pytest.raises(KeyboardInterrupt):
        run.fit()
    again = scripted(trainer(epochs=9, early_stop=3), scores[2:])
    again.resume(run.task.folder / "last.pth")
    assert again.fit().epoch == 1 and again.epoch == 4
    third = scripted(trainer(epochs=9, early_stop=3), [])
    third.resume(run.task.folder / "last.pth")
    assert third.is_over and third.fit().epoch == 1
    assert "stopped after epoch 4 of 9" in third.early_end


def test_an_ended_run_goes_on_when_it_is_told_to(trainer):
    run = scripted(trainer(epochs=4, early_stop=1), [A, B])
    run.fit()
    again = scripted(trainer(epochs=4, early_stop=0), [B, C])
    again.resume(run.task.folder / "last.pth")
    again.fit()
    assert again.epoch == 4 and not again.early_end


def test_unequal_validation_classes_show_balanced_accuracy_each_epoch(trainer, images, capsys):
    import numpy as np

    from runtime.images.sets import Subset

    uneven = Subset(images(16, seed=1), np.array([0, 4, 8, 12, 1, 2, 3]))
    trainer("a", epochs=2, val=uneven).fit()
    trainer("b", epochs=2).fit()
    lines = [
        line for line in capsys.readouterr().err.splitlines() if "student: epoch" in line and "top-1" in line
    ]
    assert ["  balanced " in line for line in lines] == [True, True, False, False]
