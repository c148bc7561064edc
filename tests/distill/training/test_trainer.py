"""The trainer: one step is the step of a plain torch loop, and a run stopped anywhere ends with the bits of
one that was not.
"""

import csv
import json
import math
import random
import signal

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from distill import checkpoint as checkpoints
from distill import models
from distill.commands import train
from distill.commands.train import parse
from distill.data import TrainLoader
from distill.training import trainer as trainers
from distill.training.state import random_state, set_random_state
from runtime.errors import ArtifactError, DataError, GateError, Interrupted, UsageError

TIMINGS = {"train_images_per_s", "teacher_share_of_step", "train_seconds"}


def weights(trainer):
    return {key: value.clone() for key, value in trainer.model.state_dict().items()}


def without_timings(history):
    return [
        {key: value for key, value in record.to_dict().items() if key not in TIMINGS} for record in history
    ]


# one step


@pytest.mark.parametrize(
    ("grad_accum", "clip", "smoothing"), [(1, None, 0.0), (2, None, 0.1), (1, 0.1, 0.0), (2, 0.05, 0.0)]
)
def test_three_steps_equal_a_hand_written_loop(trainer, teacher, images, grad_accum, clip, smoothing):
    """KL at T = 4 with weight 0.9 and cross-entropy with 0.1; SGD with Nesterov momentum, decay on matrices
    only, cosine rate.
    """
    lr, decay, epochs = 0.01, 0.01, 2
    mine = trainer(
        teacher=teacher(),
        grad_accum=grad_accum,
        clip_grad=clip,
        smoothing=smoothing,
        lr=lr,
        weight_decay=decay,
        epochs=epochs,
        distill_loss_weight=0.9,
        task_loss_weight=0.1,
        train=images(48),
        min_lr=0.001,
    )
    student, frozen = models.build("resnet20", 4, {"width": 0.25}), teacher().model
    student.load_state_dict(weights(mine))
    student.to(memory_format=torch.channels_last).train()
    batches = list(mine.train_loader.epoch(0))
    velocity = {}
    for step in range(3):
        group = batches[step * grad_accum : (step + 1) * grad_accum]
        mine.step(group)

        student.zero_grad()
        for batch in group:
            with torch.no_grad():
                p = (frozen(batch.images) / 4).softmax(1)
            logits = student(batch.images.contiguous(memory_format=torch.channels_last))
            log_q = (logits / 4).log_softmax(1)
            kl = 16 * (p * (p.log() - log_q)).sum(1).mean()
            one_hot = F.one_hot(batch.labels, 4) * (1 - smoothing) + smoothing / 4
            cross_entropy = -(one_hot * logits.log_softmax(1)).sum(1).mean()
            ((0.9 * kl + 0.1 * cross_entropy) / grad_accum).backward()
        norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in student.parameters()))
        shrink = min(1.0, clip / norm) if clip else 1.0
        assert not clip or norm > clip  # else the clipping is not seen
        rate = 0.001 + (lr - 0.001) * (1 + math.cos(math.pi * step / (epochs * (6 // grad_accum)))) / 2
        with torch.no_grad():
            for name, p in student.named_parameters():
                grad = p.grad * shrink + (decay * p if p.ndim > 1 else 0)
                velocity[name] = grad if step == 0 else 0.9 * velocity[name] + grad
                p -= rate * (grad + 0.9 * velocity[name])
    for (name, ours), (_, by_hand) in zip(
        mine.model.named_parameters(), student.named_parameters(), strict=True
    ):
        assert torch.allclose(ours, by_hand, atol=2e-6), name
    assert mine.updates == 3


def test_without_a_teacher_the_loss_is_the_cross_entropy_whatever_its_weight(trainer):
    mine = trainer(task_loss_weight=0.25)
    batch = next(mine.train_loader.epoch(0))
    mine.forward.train()
    total, distill, task, *_ = mine.losses(batch.images, batch.labels)
    assert total is task
    assert distill.item() == 0


def test_mixed_labels_are_not_smoothed_twice(trainer, teacher):
    mine = trainer(teacher=teacher(), mixup=0.8, cutmix=1.0, smoothing=0.1)
    batch = next(mine.train_loader.epoch(0))
    images, labels = mine.mixup(batch.images, batch.labels)
    assert labels.shape == (8, 4)
    assert torch.allclose(labels.sum(1), torch.ones(8))
    mine.model.eval()
    total, distill, task, *_ = mine.losses(images, labels)
    with torch.no_grad():
        by_hand = (
            -(labels * mine.model(images.contiguous(memory_format=torch.channels_last)).log_softmax(1))
            .sum(1)
            .mean()
        )
    assert task.item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert total.item() == pytest.approx(distill.item() + task.item(), rel=1e-6)


def test_the_teacher_sees_the_students_mixed_images(trainer, teacher):
    mine = trainer(teacher=teacher(), mixup=0.8)
    fed = {}
    mine.teacher.model.register_forward_pre_hook(lambda m, inputs: fed.update(teacher=inputs[0].clone()))
    mine.model.register_forward_pre_hook(lambda m, inputs: fed.update(student=inputs[0].clone()))
    mine.step([next(mine.train_loader.epoch(0))])
    assert torch.equal(fed["teacher"], fed["student"])


def test_the_warm_up_rises_in_a_straight_line(trainer, images):
    mine = trainer(warmup_epochs=1.0, warmup_lr=0.01, lr=0.05, epochs=2, train=images(32))
    rates = [mine.optimizer.param_groups[0]["lr"]]
    for batch in list(mine.train_loader.epoch(0)):
        mine.step([batch])
        rates.append(mine.optimizer.param_groups[0]["lr"])
    assert rates[:4] == pytest.approx([0.01, 0.02, 0.03, 0.04])


def test_layer_decay_gives_earlier_layers_a_lower_rate(tmp_path, trainer):
    mine = trainer(
        student="convnext_atto",
        student_args=("depths=[1,1,1,1]", "dims=[8,8,8,8]"),
        img_size=32,
        layer_decay=0.5,
    )
    rate = {id(p): group["lr"] for group in mine.optimizer.param_groups for p in group["params"]}
    parameters = dict(mine.model.named_parameters())
    assert rate[id(parameters["head.fc.weight"])] == pytest.approx(0.05)
    assert rate[id(parameters["stem.0.weight"])] < 0.05 / 2


def test_half_precision_keeps_weights_in_float32_and_learns(trainer):
    mine = trainer(amp=True, amp_dtype="bf16", epochs=1)
    before = weights(mine)
    mine.fit()
    assert all(p.dtype == torch.float32 for p in mine.model.parameters())
    assert not torch.equal(before["linear.weight"], mine.model.state_dict()["linear.weight"])
    assert mine.history[0].train_loss > 0


def test_dropout_and_drop_path_reach_the_network(trainer):
    mine = trainer(drop=0.3, drop_path=0.2)
    assert mine.model.drop_rate == 0.3
    assert mine.model.layer3[2].drop_path.drop_prob == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"opt": "adamww"}, "optimizer 'adamww'"),
        ({"sched": "cosin"}, "schedule 'cosin'"),
        ({"student": "resnt20"}, "did you mean"),
    ],
)
def test_what_timm_does_not_know_is_named(trainer, settings, words):
    with pytest.raises(UsageError, match=words):
        trainer(**settings)


# the run


def test_learns_what_can_be_learned(trainer, images):
    mine = trainer(
        train=images(64),
        val=images(32, seed=1),
        epochs=4,
        lr=0.1,
        hflip=0.0,
        scale=(1.0, 1.0),
        ratio=(1.0, 1.0),
    )
    assert mine.fit().val_top1_percent > 60  # four classes: chance is 25 %


def test_the_same_seed_gives_the_same_run_and_another_seed_another(trainer, same_weights):
    one, two, other = trainer("a", epochs=1), trainer("b", epochs=1), trainer("c", epochs=1, seed=1)
    for each in (one, two, other):
        each.fit()
    same_weights(weights(one), weights(two))
    assert not torch.equal(weights(one)["conv1.weight"], weights(other)["conv1.weight"])


def test_every_epoch_has_one_line_in_both_records(trainer, teacher):
    mine = trainer(teacher=teacher(), epochs=2)
    best = mine.fit()
    lines = [json.loads(line) for line in (mine.task.folder / "metrics.jsonl").read_text().splitlines()]
    with open(mine.task.folder / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [line["epoch"] for line in lines] == [1, 2] == [int(row["epoch"]) for row in rows]
    assert [line["step"] for line in lines] == [4, 8]
    assert best.to_dict() in lines
    for line in lines:
        assert 0 < line["teacher_share_of_step"] < 1
        assert line["train_loss"] == pytest.approx(line["train_distill_loss"] + line["train_task_loss"])
        assert line["val_images"] == 16 and line["bad_images"] == 0
    assert [float(row["train_loss"]) for row in rows] == [line["train_loss"] for line in lines]


def test_the_mean_loss_of_an_epoch_is_over_all_its_batches(trainer):
    mine = trainer(grad_accum=2)
    seen, plain = [], mine.losses

    def watched(images, labels):
        found = plain(images, labels)
        seen.append(found[0].item())
        return found

    mine.losses = watched
    mine.fit()
    assert mine.history[0].train_loss == pytest.approx(sum(seen) / len(seen))


def test_best_is_the_first_epoch_with_the_highest_accuracy(trainer, same_weights, monkeypatch):
    from distill.evaluate import Evaluation

    mine = trainer(epochs=4)
    scores, kept = iter([50.0, 75.0, 75.0, 25.0]), []

    def validate():
        kept.append(weights(mine))
        return Evaluation(next(scores), 100.0, 1.0, 16, 0, torch.zeros(16), torch.ones(16, dtype=torch.bool))

    mine.validate = validate
    assert mine.fit().epoch == 2
    best = checkpoints.load(mine.task.folder / "best.pth")
    same_weights(best.state_dict, kept[1])
    assert (best.metrics["top1"], best.metrics["epoch"]) == (75.0, 2)
    same_weights(checkpoints.load(mine.task.folder / "last.pth").state_dict, kept[3])


def test_the_average_of_the_weights_is_validated_and_saved_as_best(trainer, images, same_weights):
    """Decay 0.5 from the second step on; the first copies (timm's ModelEmaV3)."""
    val = images(16, seed=1)
    mine = trainer(model_ema=True, model_ema_decay=0.5, model_ema_warmup=False, val=val)
    average, plain = {}, mine.step

    def step(batches):
        plain(batches)
        for name, p in mine.model.named_parameters():
            value = p.detach().clone()
            average[name] = value if mine.updates == 1 else 0.5 * average[name] + 0.5 * value

    mine.step = step
    mine.fit()
    best = checkpoints.load(mine.task.folder / "best.pth")
    assert best.metrics["weights"] == "ema"
    for name, value in average.items():
        assert torch.allclose(best.state_dict[name], value, atol=1e-6), name
    assert not torch.equal(best.state_dict["conv1.weight"], weights(mine)["conv1.weight"])
    same_weights(checkpoints.load(mine.task.folder / "last.pth").state_dict, weights(mine))
    model = models.build("resnet20", 4, {"width": 0.25})
    checkpoints.load_weights(model, best)
    logits = model.eval()(torch.from_numpy(best.preprocess.batch(list(val.x))))
    assert best.metrics["top1"] == pytest.approx(100 * (logits.argmax(1).numpy() == val.labels).mean())


def test_best_holds_what_is_needed_to_use_it(trainer):
    mine = trainer()
    mine.fit()
    best = checkpoints.load(mine.task.folder / "best.pth")
    assert best.class_names == ["ant", "bee", "cat", "dog"]
    assert best.model == "resnet20" and best.model_args == {"width": 0.25}
    assert best.preprocess == models.preprocess_of("resnet20", 16)
    assert best.state is None


def test_weights_to_start_from_are_taken(trainer, same_weights):
    first = trainer("a")
    first.fit()
    same_weights(weights(trainer("b", student_ckpt=str(first.task.folder / "last.pth"))), weights(first))


# a loss that is not a number


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(trainer, bad):
    mine = trainer(epochs=2, grad_accum=2, checkpoint_minutes=0.0)
    plain, calls = mine.losses, []

    def poisoned(images, labels):
        calls.append(1)
        found = plain(images, labels)
        return (
            found._replace(total=found.total * bad) if len(calls) == 6 else found
        )  # the sixth batch is in the third step

    mine.losses = poisoned
    with pytest.raises(GateError, match=rf"loss is {bad} at step 3 \(epoch 2"):
        mine.fit()
    last = checkpoints.load(mine.task.folder / "last.pth")
    assert last.state["updates"] == 2
    assert all(torch.isfinite(value).all() for value in last.state_dict.values())


def test_the_step_is_named_even_when_losses_are_looked_at_later(trainer):
    mine = trainer()
    batches = list(mine.train_loader.epoch(0))
    for number, batch in enumerate(batches, start=1):
        if number == 3:
            batch = batch._replace(images=batch.images * math.nan)
        mine.step([batch])
    with pytest.raises(GateError, match="at step 3 "):
        mine.flush()


def poison(parameter, value):
    with torch.no_grad():
        parameter.fill_(value)


def test_a_student_that_grew_too_large_is_named(trainer):
    mine = trainer(epochs=2)
    poison(mine.model.linear.weight, math.inf)
    with pytest.raises(
        GateError, match=r"loss is nan at step 1 .*: the student's logits are NaN .* a lower --lr"
    ):
        mine.fit()


def test_a_teacher_whose_logits_are_nan_is_named(trainer, teacher):
    taught = teacher()
    poison(taught.model.linear.bias, math.nan)
    with pytest.raises(
        GateError, match=r"loss is nan at step 1 .*: the teacher's logits are NaN .*--teacher-mean"
    ):
        trainer(teacher=taught).fit()


@pytest.mark.parametrize(("dtype", "advice"), [(torch.float16, "--teacher-dtype fp32, or --amp-dtype bf16")])
def test_a_teacher_that_fits_fp32_and_not_fp16_is_told_as_its_precision(trainer, teacher, dtype, advice):
    """Logits of 1e6 are beyond 65504, the largest number of fp16."""
    taught = teacher()
    poison(taught.model.linear.bias, 1e6)
    assert torch.isfinite(taught(torch.zeros(2, 3, 16, 16)).logits).all()
    taught.dtype = dtype
    mine = trainer(teacher=taught, grad_accum=2, epochs=2)
    mine.epoch, mine.updates = 1, mine.steps_per_epoch  # the images are those of the second epoch
    words = (
        r"at step \d+ \(epoch 2\), .*: the teacher's logits are NaN or infinite in fp16 and finite in fp32"
    )
    with pytest.raises(GateError, match=f"{words}.*no learning rate helps. Give {advice}"):
        mine.fit()


def test_a_student_that_does_not_fit_fp16_is_told_as_its_precision(trainer):
    mine = trainer(amp=True, amp_dtype="fp16")
    poison(mine.model.linear.bias, 1e6)
    with pytest.raises(GateError, match=r"student's logits .* in fp16 and finite in fp32.* --amp-dtype bf16"):
        mine.fit()


@pytest.mark.parametrize("term", [0, 1])
def test_each_loss_is_named_by_itself(trainer, teacher, term):
    mine = trainer(teacher=teacher(), losses=("kl:weight=0.5", "nkd"))
    plain = mine.objective.losses[term]
    mine.objective.losses[term] = lambda *given: plain(*given) * math.nan
    name = ("kl", "nkd")[term]
    with pytest.raises(
        GateError, match=f"at step 1 .*: {name} is NaN or infinite, from logits that are finite"
    ):
        mine.fit()


@pytest.mark.parametrize("clip", [None, 1.0])
def test_gradients_that_are_nan_are_named_at_their_step_and_not_at_the_next(trainer, clip):
    mine = trainer(clip_grad=clip)
    turn = iter([1.0, math.inf, 1.0, 1.0])
    mine.model.linear.bias.register_hook(lambda gradient: gradient * next(turn))
    with pytest.raises(
        GateError, match=r"gradients are too large, NaN or infinite at step 2 \(epoch 1\); the loss is \d"
    ):
        mine.fit()


def test_gradients_that_are_finite_and_too_large_for_their_norm_are_said_to_be_too_large(trainer):
    """The sum of four squares of 1e20 is 4e40, and float32 ends at 3.4e38."""
    mine = trainer()
    mine.model.linear.bias.register_hook(lambda gradient: torch.full_like(gradient, 1e20))
    with pytest.raises(GateError, match="gradients are too large, NaN or infinite at step 1 "):
        mine.fit()


def test_fp16_in_which_no_step_teaches_ends(trainer):
    """The scaler leaves out every step whose gradients overflow, so the loss never becomes NaN."""
    mine = trainer(amp=True, amp_dtype="fp16", epochs=30)
    mine.model.linear.bias.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(
        GateError, match=r"gradients are NaN or infinite in fp16 at every step up to step 41 "
    ):
        mine.fit()


@pytest.mark.parametrize("ema", [False, True])
def test_an_update_that_destroys_the_weights_is_named_at_the_end_of_its_epoch(trainer, images, ema):
    """The loss of every step is finite: it is that of the weights before the update."""
    mine = trainer(train=images(8), model_ema=ema)  # one step an epoch
    plain = mine.optimizer.step

    def destroying(*given, **more):
        plain(*given, **more)
        poison(mine.model.linear.weight, math.nan)

    mine.optimizer.step = destroying
    words = r"after step 1 \(epoch 1\) of the student: its weight linear\.weight is NaN or infinite"
    with pytest.raises(GateError, match=words):
        mine.fit()
    assert list(mine.task.folder.iterdir()) == []


def test_weights_too_large_for_validation_are_named(trainer, images):
    """Weights of 1e30 are numbers; their logits are not."""
    mine = trainer(train=images(8), opt="sgd", lr=1e30, warmup_epochs=0.0)
    with pytest.raises(GateError, match=r"validation loss is (nan|inf) after step 1 .*--lr"):
        mine.fit()


def test_no_step_waits_for_the_device(trainer, teacher):
    """What brings a number to the host (`aten._local_scalar_dense`) would make a step wait for the GPU."""
    mine = trainer(teacher=teacher(), opt="sgd", clip_grad=1.0)
    waited = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._local_scalar_dense.default:
                waited.append(function)
            return function(*args, **(kwargs or {}))

    batches = list(mine.train_loader.epoch(0))
    mine.step(batches[:1])
    with Seen():
        torch.ones(1).item()
        assert len(waited) == 1  # it sees them
        mine.step(batches[1:2])
    assert len(waited) == 1


# resuming


def stop_after(trainer, step):
    """Make the trainer believe that SIGTERM arrived during optimizer step `step`."""
    plain = trainer.step

    def watched(batches):
        plain(batches)
        if trainer.updates == step:
            trainer.stop.received = signal.SIGTERM

    trainer.step = watched


EVERYTHING = {
    "epochs": 3,
    "grad_accum": 2,
    "batch": 4,
    "mixup": 0.8,
    "cutmix": 1.0,
    "smoothing": 0.1,
    "drop_path": 0.2,
    "drop": 0.1,
    "reprob": 0.5,
    "aa": "rand-m9-mstd0.5-inc1",
    "train_interpolation": "random",
    "model_ema": True,
    "model_ema_decay": 0.9,
    "opt": "adamw",
    "lr": 3e-3,
    "weight_decay": 0.05,
    "clip_grad": 1.0,
    "warmup_epochs": 1.0,
}
"""Every setting that draws random numbers or keeps something between steps."""


@pytest.fixture
def whole(trainer, teacher):
    """An uninterrupted run with everything on: 12 steps in 3 epochs."""
    run = trainer("whole", teacher=teacher(), **EVERYTHING)
    run.fit()
    return run


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_stopped_at_random_steps_ends_with_the_same_bits(
    trainer, teacher, whole, same_weights, workers
):
    folder = "stopped"
    for step in sorted(random.Random(workers).sample(range(1, 12), 3)):
        run = trainer(folder, teacher=teacher(), **EVERYTHING)
        if (run.task.folder / "last.pth").exists():
            run.resume(run.task.folder / "last.pth")
        stop_after(run, step)
        with pytest.raises(
            Interrupted, match=rf"SIGTERM after step {step}\. Continue: distill train --resume"
        ):
            run.fit()
        assert checkpoints.load(run.task.folder / "last.pth").state["updates"] == step
        random.random(), np.random.rand(3), torch.rand(5)  # a new process would not have these states either
    run = trainer(folder, teacher=teacher(), **EVERYTHING | {"workers": workers, "checkpoint_minutes": 0.0})
    run.resume(run.task.folder / "last.pth")
    best = run.fit()
    same_weights(weights(run), weights(whole))
    same_weights(run.ema.module.state_dict(), whole.ema.module.state_dict())
    same_weights(
        checkpoints.load(run.task.folder / "best.pth").state_dict,
        checkpoints.load(whole.task.folder / "best.pth").state_dict,
    )
    assert without_timings(run.history) == without_timings(whole.history)
    assert without_timings([best]) == without_timings([whole.best])
    ours, theirs = run.optimizer.state_dict(), whole.optimizer.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    for index, state in theirs["state"].items():
        assert all(torch.equal(state[key], ours["state"][index][key]) for key in state)
    assert len((run.task.folder / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_run_stopped_during_validation_ends_with_the_same_bits(trainer, teacher, whole, same_weights):
    run = trainer("stopped", teacher=teacher(), **EVERYTHING)
    plain = run.validate

    def validate():
        run.stop.received = signal.SIGINT
        return plain()

    run.validate = validate
    with pytest.raises(Interrupted, match="SIGINT after step 4"):
        run.fit()
    again = trainer("stopped", teacher=teacher(), **EVERYTHING)
    again.resume(run.task.folder / "last.pth")
    assert (again.epoch, again.step_in_epoch, again.history) == (0, 4, [])
    again.fit()
    same_weights(weights(again), weights(whole))
    assert without_timings(again.history) == without_timings(whole.history)


def test_a_finished_run_resumes_to_its_end(trainer, same_weights):
    run = trainer()
    best = run.fit()
    again = trainer()
    again.resume(run.task.folder / "last.pth")
    assert again.fit() == best
    same_weights(weights(again), weights(run))


def test_the_state_is_saved_after_every_step_with_0_minutes(trainer):
    mine = trainer(checkpoint_minutes=0.0)
    saved, plain = [], mine.save

    def save():
        plain()
        saved.append(checkpoints.load(mine.task.folder / "last.pth").state["updates"])

    mine.save = save
    mine.fit()
    assert saved[:4] == [1, 2, 3, 4]


def test_between_the_epochs_nothing_is_saved_before_its_time(trainer):
    mine = trainer(checkpoint_minutes=5.0)
    saved, plain = [], mine.save
    mine.save = lambda: (plain(), saved.append(mine.updates))
    mine.fit()
    assert saved == [4]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("lr", 0.04),
        ("batch", 16),
        ("seed", 1),
        ("opt", "adamw"),
        ("kd_loss", "nkd"),
        ("epochs", 3),
        ("model_ema", True),
    ],
)
def test_a_changed_recipe_is_refused_by_name(trainer, setting, value):
    run = trainer()
    run.save()
    with pytest.raises(
        UsageError, match=f"--{setting.replace('_', '-')} is {value!r}, the run to resume has"
    ):
        trainer(**{setting: value}).resume(run.task.folder / "last.pth")


def test_settings_that_change_no_weight_may_change(trainer):
    run = trainer()
    run.save()
    trainer(eval_batch=4, checkpoint_minutes=1.0, tensorboard=True).resume(run.task.folder / "last.pth")


DAMAGED = {
    "an epoch of text": (("epoch",), "x", "epoch is not a number of steps"),
    "an epoch before the first": (("epoch",), -1, "epoch is not a number of steps"),
    "steps without end": (("updates",), 10**400, "updates is not a number of steps"),
    "a history that is text": (("history",), "x", "history is a str"),
    "a record that is text": (("history",), ["x"], "AttributeError"),
    "a figure that is text": (("best", "val_top1_percent"), "x", "best: val_top1_percent is not a number"),
    "a sum that is text": (("tally", "loss"), "x", "tally: loss is not a number"),
    "numbers for names": (("unreadable", "train"), [3], "unreadable: 'train' is not a list of names"),
    "text for what is right": (("best_right",), "x", "best_right is not a tensor of true and false"),
    "a position outside": (("random", "numpy", 2), 10**6, "the position of NumPy's generator"),
    "no generator": (("random", "numpy"), [], "IndexError"),
    "Python's generator without end": (("random", "python"), (3, (10**400,) * 625, None), "OverflowError"),
    "a tensor in the recipe": (("recipe", "lr"), torch.ones(2), "recipe.lr is a Tensor"),
    "no optimizer": (("optimizer",), {"state": {}, "param_groups": []}, "ValueError"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_state_is_refused_in_one_line(trainer, case):
    where, value, words = DAMAGED[case]
    run = trainer()
    run.fit()
    path = run.task.folder / "last.pth"
    values = torch.load(path, weights_only=True)
    inside = values["state"]
    for part in where[:-1]:
        inside = inside[part]
    inside[where[-1]] = value
    torch.save(values, path)
    with pytest.raises(ArtifactError) as caught:
        trainer().resume(path)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_weights_alone_cannot_be_resumed(trainer):
    run = trainer()
    run.fit()
    with pytest.raises(UsageError, match=r"holds weights only\. Resume from the run's last\.pth"):
        trainer().resume(run.task.folder / "best.pth")


@pytest.mark.parametrize(
    ("key", "words"), [("train_sha256", "training images"), ("val_sha256", "validation images")]
)
def test_other_images_under_the_same_name_are_not_resumed(trainer, images, key, words):
    """The fingerprint in the lineage tells them apart: the weights, or what is called the best of them, would
    be of neither.
    """
    run = trainer()
    run.lineage = {"data": {key: "a" * 64}}
    run.save()
    again = trainer()
    again.lineage = {"data": {key: "b" * 64}}
    with pytest.raises(UsageError, match=words):
        again.resume(run.task.folder / "last.pth")


def test_random_states_come_back_through_a_file(tmp_path):
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    np.random.randn(1)  # leaves a second Gaussian in the cache
    torch.save(random_state(torch.device("cpu")), tmp_path / "r.pth")
    expected = random.random(), random.gauss(0, 1), np.random.randn(2).tolist(), torch.rand(2).tolist()
    random.seed(9), np.random.seed(9), torch.manual_seed(9)
    set_random_state(torch.load(tmp_path / "r.pth", weights_only=True), torch.device("cpu"))
    assert expected == (
        random.random(),
        random.gauss(0, 1),
        np.random.randn(2).tolist(),
        torch.rand(2).tolist(),
    )


# bad images


def test_an_unreadable_image_stops_the_run_which_can_go_on_once_it_is_repaired(
    trainer, broken, tree, same_weights
):
    from runtime.images import open_images

    root, file = broken
    settings = {
        "train": open_images(str(root), "train"),
        "val": open_images(str(root), "val"),
        "epochs": 2,
        "batch": 2,
        "seed": 1,
    }  # with which it comes in the sixth step
    run = trainer("run", **settings)
    with pytest.raises(DataError, match=r"bee/3\.png: not a readable image.*--skip-bad-images"):
        run.fit()
    good = tree(per_class=8, folder="good")
    file.write_bytes((good / "train" / "bee" / "3.png").read_bytes())
    again = trainer("run", **settings)
    again.resume(run.task.folder / "last.pth")
    assert again.updates == 5
    again.fit()
    never = trainer("never", **settings)
    never.fit()
    same_weights(weights(again), weights(never))


def test_skipped_images_are_counted_every_epoch(trainer, broken):
    from runtime.images import open_images

    root, _ = broken
    run = trainer(
        train=open_images(str(root), "train"),
        val=open_images(str(root), "val"),
        epochs=2,
        skip_bad_images=True,
    )
    run.fit()
    assert [record.bad_images for record in run.history] == [1, 1]
    assert run.updates == 4


# the control


def test_the_control_starts_from_the_same_weights_and_sees_the_same_batches(
    tmp_path, npz, monkeypatch, capsys
):
    made = {}

    class Watched(trainers.Trainer):
        def __init__(self, *args):
            super().__init__(*args)
            made[self.task.role] = {"start": weights(self), "seen": [], "teacher": self.teacher}

        def losses(self, images, labels):
            made[self.task.role]["seen"].append((images.clone(), labels.clone()))
            return super().losses(images, labels)

    teacher = models.build("resnet20", 4, {"width": 0.25})
    saved = checkpoints.Checkpoint(
        "resnet20",
        {"width": 0.25},
        teacher.state_dict(),
        models.preprocess_of("resnet20", 16),
        ["ant", "bee", "cat", "dog"],
    )
    checkpoints.save(saved, tmp_path / "teacher.pth")
    monkeypatch.setattr(trainers, "Trainer", Watched)
    train.run(
        parse(
            [
                "--data",
                npz(),
                "--student",
                "resnet20",
                "--student-args",
                "width=0.25",
                "--img-size",
                "16",
                "--teacher-ckpt",
                str(tmp_path / "teacher.pth"),
                "--control",
                "--epochs",
                "2",
                "--batch",
                "8",
                "--mixup",
                "0.5",
                "--drop-path",
                "0.1",
                "--output",
                str(tmp_path / "run"),
            ]
        )
    )
    student, control = made["student"], made["control"]
    assert student["teacher"] is not None and control["teacher"] is None
    assert all(torch.equal(student["start"][key], control["start"][key]) for key in student["start"])
    assert len(student["seen"]) == len(control["seen"]) == 8
    for (images, labels), (same_images, same_labels) in zip(student["seen"], control["seen"], strict=True):
        assert torch.equal(images, same_images) and torch.equal(labels, same_labels)


def test_loader_and_trainer_agree_on_the_steps_of_an_epoch(trainer, images, recipe):
    mine = trainer(train=images(44), grad_accum=2)
    assert len(TrainLoader(images(44), recipe(), mine.task.preprocess, mine.device)) == 5
    assert mine.steps_per_epoch == 2
    mine.fit()
    assert mine.updates == 2
