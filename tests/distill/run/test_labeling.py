"""Labels are for the images that training sees, bit for bit, and teach as the teacher itself does."""

import json
import multiprocessing
import os
import random
import signal
import time

import pytest
import torch

from distill import models
from distill.commands import label as command
from distill.commands import train as train_command
from distill.data import TrainLoader
from distill.data.augment import PIXELS
from distill.data.labels.store import Labels, Writer
from distill.data.mixing import Place, mixed, mixing
from distill.run import labeling
from distill.run.labels import header_for, open_labels
from distill.teacher import Origin
from distill.training.task import Task
from distill.training.trainer import Trainer
from runtime.errors import ArtifactError, DataError, UsageError

MIXED = {
    "aa": "rand-m9-mstd0.5-inc1",
    "reprob": 0.5,
    "mixup": 0.8,
    "cutmix": 1.0,
    "color_jitter": 0.3,
    "epochs": 2,
}
"""Every kind of chance that training draws from."""


@pytest.fixture
def labeled(tmp_path, images, recipe, teacher):
    """labeled(folder, top, **settings) -> (Labels, recipe, train images, Preprocess)."""

    def do(folder="L", top=0, **settings):
        mine, train = recipe(**settings), images(36)
        spec = models.preprocess_of(mine.student, mine.img_size)
        header = header_for(mine, train, spec, Origin("resnet20"), top=top)
        with Writer(tmp_path / folder, header) as writer:
            labeling.label(writer, writer.header, mine, train, spec, teacher())
        return Labels(tmp_path / folder), mine, train, spec

    return do


@pytest.fixture
def trainer_from(tmp_path, images):
    """trainer_from(labels, recipe, train, spec, teacher, folder) -> a Trainer."""

    def do(labels, mine, train, spec, teacher=None, folder="run"):
        (tmp_path / folder).mkdir(exist_ok=True)
        task = Task(
            "student",
            mine,
            tmp_path / folder,
            train,
            images(16, seed=1),
            spec,
            torch.device("cpu"),
            teacher=teacher,
            labels=labels,
        )
        return Trainer(task)

    return do


@pytest.mark.parametrize(
    "workers", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
def test_every_image_of_training_is_the_one_that_was_labeled(labeled, trainer_from, workers, recipe):
    """The replay check compares all of them, in both epochs and in the two that replay these."""
    labels, _, train, spec = labeled(**MIXED)
    mine = recipe(**MIXED | {"workers": workers, "epochs": 4, "verify_labels": 10**6})
    trainer = trainer_from(labels, mine, train, spec)
    trainer.fit()
    assert trainer._verified == 4 * 32


def test_what_is_labeled_is_the_augmented_and_mixed_image(labeled, teacher):
    """Worked out again from the loader, timm's mixing and the teacher."""
    labels, mine, train, spec = labeled(**MIXED)
    loader, asked = TrainLoader(train, mine, spec, torch.device("cpu")), teacher()
    for epoch in range(2):
        for number, batch in enumerate(loader.epoch(epoch)):
            x, _ = mixed(mixing(mine, 4), batch.images, batch.labels, mine.seed, Place(epoch, number))
            expected = asked(x).logits
            rounding = expected.log_softmax(1).abs() * 2**-11 + 1e-4
            assert ((labels.logits(epoch, number) - expected).abs() <= rounding).all()


def test_mixing_is_drawn_from_seed_epoch_and_batch_alone(recipe):
    mine = recipe(mixup=0.8, cutmix=1.0)
    x, y = torch.rand(8, 3, 16, 16), torch.arange(8) % 4

    def draw(seed, *place):
        return mixed(mixing(mine, 4), x.clone(), y, seed, Place(*place))

    first = draw(0, 1, 2)
    torch.rand(5), random.random()
    again = draw(0, 1, 2)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    for other in (draw(1, 1, 2), draw(0, 2, 2), draw(0, 1, 3)):
        assert not torch.equal(first[0], other[0])


class Rounded:
    """A teacher whose answers are rounded to fp16 log-probabilities, as stored ones are."""

    def __init__(self, teacher):
        self.teacher = teacher

    def __getattr__(self, name):
        return getattr(self.teacher, name)

    def __call__(self, *given, **settings):
        answer = self.teacher(*given, **settings)
        return answer._replace(logits=answer.logits.log_softmax(1).half().float())


def test_a_training_from_all_classes_is_the_one_with_the_teacher(labeled, trainer_from, teacher):
    """It differs by nothing but the rounding of stored answers: not at all from a training whose teacher
    rounds, and in its losses by as little as the rounding makes from one whose teacher does not.
    """
    labels, mine, train, spec = labeled(**MIXED | {"lr": 0.002})
    stored = trainer_from(labels, mine, train, spec)
    live = trainer_from(None, mine, train, spec, teacher(), "live")
    rounded = trainer_from(None, mine, train, spec, Rounded(teacher()), "rounded")
    stored.fit(), live.fit(), rounded.fit()
    for one, other in zip(stored.history, live.history, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-3)
        assert one.train_distill_loss == pytest.approx(other.train_distill_loss, rel=1e-3)
    theirs = rounded.model.state_dict()
    for key, value in stored.model.state_dict().items():
        if value.is_floating_point():
            assert (value - theirs[key]).abs().max() <= 1e-5 * (theirs[key].abs().max() + 1e-6), key


def test_it_is_resumed_bit_for_bit(labeled, trainer_from, same_weights):
    labels, mine, train, spec = labeled(**MIXED)
    whole = trainer_from(labels, mine, train, spec, folder="whole")
    whole.fit()
    first = trainer_from(labels, mine, train, spec, folder="parts")
    for batch in list(first.train_loader.epoch(0))[:3]:
        first.step([batch])
        first.step_in_epoch += 1
    first.save()
    second = trainer_from(labels, mine, train, spec, folder="parts")
    second.resume(first.task.folder / "last.pth")
    second.fit()
    same_weights(second.model.state_dict(), whole.model.state_dict())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 3}, "--seed: 0, and 3 here"),
        ({"mixup": 0.2}, "--mixup: 0.8, and 0.2 here"),
        ({"aa": ""}, "--aa: rand-m9-mstd0.5-inc1, and nothing here"),
        ({"batch": 4}, "batches an epoch: 4, and 9 here"),
        ({"scale": (0.2, 1.0)}, "--scale: 0.5, 1.0, and 0.2, 1.0 here"),
    ],
)
def test_another_training_is_refused_with_the_first_difference(labeled, recipe, change, words):
    labels, _, train, spec = labeled(**MIXED)
    other = recipe(**MIXED | {"teacher_labels": str(labels.folder)} | change)
    with pytest.raises(UsageError, match="made for another training") as caught:
        open_labels(other, train, spec)
    assert words in str(caught.value)


@pytest.mark.parametrize("written", [None, 1])
def test_labels_of_images_as_they_were_augmented_before_are_refused(labeled, recipe, written):
    """Files of before do not name the version of the augmentation, which was 1."""
    labels, _, train, spec = labeled()
    file = labels.folder / "labels.json"
    header = json.loads(file.read_text())
    assert header.pop("pixels") == PIXELS == 2
    file.write_text(json.dumps(header if written is None else header | {"pixels": written}))
    with pytest.raises(UsageError, match="made for another training") as caught:
        open_labels(recipe(teacher_labels=str(labels.folder)), train, spec)
    assert "version of the augmentation: 1, and 2 here" in str(caught.value)


def test_other_images_and_another_size_are_refused(labeled, recipe, images):
    labels, _, train, spec = labeled()
    mine = recipe(teacher_labels=str(labels.folder))
    assert open_labels(mine, train, spec).header == labels.header
    with pytest.raises(UsageError, match="fingerprint of the training images"):
        open_labels(mine, images(36, seed=9), spec)
    with pytest.raises(UsageError, match="input size: 3, 16, 16, and 3, 32, 32 here"):
        open_labels(mine, train, models.preprocess_of("resnet20", 32))


def test_pixels_that_changed_stop_the_training_at_its_first_step(labeled, trainer_from, monkeypatch):
    labels, mine, train, spec = labeled(**MIXED)
    trainer = trainer_from(labels, mine, train, spec)
    real = trainer._on_device
    monkeypatch.setattr(trainer, "_on_device", lambda *given: (real(*given)[0] + 1e-7, real(*given)[1]))
    with pytest.raises(DataError, match="are not the ones that the teacher labeled, bit for bit"):
        trainer.fit()
    assert trainer.updates == 0


def test_losses_that_need_more_than_is_stored_are_refused(labeled, trainer_from, recipe):
    labels, _, train, spec = labeled(top=2)
    with pytest.raises(UsageError, match=r"lskd needs the logits of all 4 classes, and .* the 2 largest"):
        trainer_from(labels, recipe(kd_loss="lskd"), train, spec)
    with pytest.raises(UsageError, match="fd compares feature maps"):
        trainer_from(labels, recipe(kd_loss="none", feature_loss="fd"), train, spec)
    whole, *_ = labeled("all")
    trainer_from(whole, recipe(kd_loss="lskd"), train, spec, folder="lskd").fit()


@pytest.mark.parametrize(
    "loss", ["kl", "nkd", "dkd", "dist", "mlkd", "ofa", "binary_kl", "deit_soft", "deit_hard"]
)
def test_the_other_losses_of_logits_train_from_the_largest(labeled, trainer_from, recipe, loss):
    labels, _, train, spec = labeled(top=2)
    trainer_from(labels, recipe(kd_loss=loss), train, spec).fit()


def test_a_teacher_of_nan_stops_with_the_batch(tmp_path, images, recipe, teacher):
    mine, train = recipe(), images(16)
    spec, broken = models.preprocess_of(mine.student, mine.img_size), teacher()
    with torch.no_grad():
        next(broken.model.parameters()).fill_(torch.nan)
    with (
        Writer(tmp_path / "L", header_for(mine, train, spec, Origin("resnet20"))) as writer,
        pytest.raises(ArtifactError, match="logits hold NaN or inf in epoch 1, batch 1"),
    ):
        labeling.label(writer, writer.header, mine, train, spec, broken)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_ten_kills_end_with_the_bytes_of_an_uninterrupted_call(tmp_path, images, recipe, teacher):
    mine, train = recipe(**MIXED | {"epochs": 4}), images(200)
    spec, asked = models.preprocess_of(mine.student, mine.img_size), teacher()
    header = header_for(mine, train, spec, Origin("resnet20"), top=2)

    def label(folder):
        with Writer(folder, header) as writer:
            labeling.label(writer, writer.header, mine, train, spec, asked)

    began = time.monotonic()
    label(tmp_path / "whole")
    whole, dice, kills, runs = time.monotonic() - began, random.Random(0), 0, 0
    while kills < 10:
        folder, runs = tmp_path / f"killed{runs}", runs + 1
        for _ in range(3):
            child = multiprocessing.get_context("fork").Process(target=label, args=(folder,))
            child.start()
            time.sleep(dice.uniform(0, whole / 2))
            os.kill(child.pid, signal.SIGKILL)
            child.join()
            kills += child.exitcode == -signal.SIGKILL
        label(folder)
        theirs = {file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir()}
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == theirs


def test_the_commands(npz, tmp_path, trainer, capsys):
    """Teacher, labels, training from them, resumed; the run says who taught."""
    trainer(folder="teacher", role="plain").fit()
    tiny = ["--data", npz(), "--student", "resnet20", "--student-args", "width=0.25", "--img-size", "16"]
    tiny += ["--batch", "8", "--epochs", "2", "--device", "cpu", "--mixup", "0.5"]
    teacher = ["--teacher-ckpt", str(tmp_path / "teacher" / "best.pth")]
    words = [*tiny, *teacher, "--output", str(tmp_path / "L")]
    made = command.do(command.parse(words))
    assert made.to_dict()["images_per_epoch"] == 32 and made.header.teacher["model"] == "resnet20"
    assert "from here" in capsys.readouterr().err
    again = command.do(command.parse(words))
    assert again.header == made.header and "all are there already" in capsys.readouterr().err
    run = ["--teacher-labels", str(tmp_path / "L"), "--output", str(tmp_path / "run"), "--control", "--erf"]
    result = train_command.do(train_command.parse([*tiny, *run, "--no-report"]))
    assert result.teacher.origin.model == "resnet20" and result.control is not None
    said = capsys.readouterr().err
    assert "through stored answers (all 4 classes, 2 epochs)" in said
    assert "erf: the teacher resnet20 is left out, because only its stored answers are here" in said
    assert [network.label for network in result.erf] == ["control", "student"]
    resumed = train_command.do(train_command.parse(["--resume", str(tmp_path / "run"), "--no-report"]))
    assert resumed.best.top1_percent == result.best.top1_percent
    with pytest.raises(UsageError, match="no teacher given"):
        command.do(command.parse([*tiny, "--output", str(tmp_path / "M")]))
    with pytest.raises(UsageError, match="what this command makes"):
        command.parse([*tiny, "--teacher-labels", "L", "--output", "M"])
    with pytest.raises(UsageError, match=r"teacher-fit 'all': .*--teacher-ckpt RUN/teacher/best\.pth"):
        command.parse([*tiny, *teacher, "--teacher-fit", "all", "--output", str(tmp_path / "M")])
    assert not (tmp_path / "M").exists()
