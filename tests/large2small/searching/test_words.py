"""What the search types is what the commands take."""

from dataclasses import replace

import pytest

from distill.run.options import TrainOptions
from large2small.searching import words
from large2small.searching.candidates import Candidate
from large2small.searching.words import Engine
from runtime.cli import front_door

TRAINING = TrainOptions(
    data="digits",
    teacher_ckpt="t.pth",
    teacher_fit="none",
    mean=(0.5, 0.5, 0.5),
    lr=0.003,
    amp=True,
    hflip=0.0,
    losses=("nkd:temperature=1",),
    model_ema=True,
    warmup_epochs=0.5,
)
CANDIDATE = Candidate("resnet20", ("width=0.5", "x=[1, 2]"), 24)


def read(line):
    """The options that a command makes of these words."""
    name = " ".join(line[:2]) if line[0] in ("export", "bench") else line[0]
    return front_door.options_of(*front_door.chosen(name, line), line[len(name.split()) :])


def test_a_training_has_the_candidate_the_answers_and_all_settings(tmp_path):
    asked = words.training(TRAINING, CANDIDATE, 3, tmp_path / "labels", tmp_path / "run")
    found = read(words.train(asked))
    assert (found.student, found.student_args, found.img_size) == ("resnet20", ("width=0.5", "x=[1, 2]"), 24)
    assert found.teacher_labels == str(tmp_path / "labels") and found.teacher_ckpt == ""
    assert (found.epochs, found.teacher_fit, found.json) == (3, "head", True)
    kept = ("mean", "lr", "amp", "hflip", "losses", "model_ema", "warmup_epochs", "data")
    assert [getattr(found, name) for name in kept] == [getattr(TRAINING, name) for name in kept]


def test_a_folder_with_a_part_of_a_run_is_gone_on_with_and_one_with_less_is_replaced(tmp_path):
    asked = replace(words.training(TRAINING, CANDIDATE, 3, None, tmp_path / "run"), report=False)
    assert not {"--overwrite", "--resume"} & set(words.train(asked))
    (tmp_path / "run").mkdir()
    assert read(words.train(asked)).overwrite
    (tmp_path / "run" / "last.pth").write_text("")
    assert words.train(asked) == ["train", "--resume", str(tmp_path / "run"), "--no-report", "--json"]


def test_answers_are_made_for_the_same_images_by_the_teacher(tmp_path):
    found = read(words.labels(TRAINING, 24, 3, 5, tmp_path))
    assert (found.teacher_ckpt, found.teacher_fit, found.img_size) == ("t.pth", "none", 24)
    assert (found.epochs, found.top, found.output) == (3, 5, str(tmp_path))
    assert found.mean == TRAINING.mean and found.hflip == 0.0


@pytest.mark.parametrize("engine", [Engine(None, None, False), Engine("openvino", 2, True)])
def test_exports_and_times_have_the_engine(engine, tmp_path):
    exported = read(words.export(tmp_path / "best.pth", tmp_path / "a.onnx", engine))
    assert exported.int8 == engine.int8 and exported.overwrite
    (tmp_path / "a.onnx").write_bytes(b"")
    timed = read(words.timing(tmp_path / "a.onnx", tmp_path / "a.json", engine))
    assert (timed.engine_backend, timed.threads, timed.batch) == (engine.backend, engine.threads, 1)
    assert timed.boundary == "compute" and timed.duration == words.SECONDS


@pytest.mark.parametrize(
    ("settings", "has", "stores"),
    [
        ({}, True, True),
        ({"teacher_ckpt": "", "teacher": "auto"}, False, False),
        ({"teacher_ckpt": "", "teacher": "none"}, False, False),
        ({"teacher_ckpt": "", "teacher": "resnet18.a1_in1k"}, True, True),
        ({"losses": (), "feature_loss": "at"}, True, False),
        ({"losses": ("kl", "fd:weight=0.5")}, True, False),
    ],
)
def test_answers_are_stored_unless_feature_maps_are_needed(settings, has, stores):
    recipe = replace(TRAINING, **settings)
    assert (words.has_teacher(recipe), words.stores_labels(recipe)) == (has, stores)
