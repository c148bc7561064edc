"""distill.run.report.predictions: the numbers of `distill eval`, kept and made again when they must be."""

import numpy as np
import pytest
import torch

from distill import checkpoint as checkpoints
from distill import models
from distill.data import eval_loader
from distill.evaluate import evaluate
from distill.run.report import collect, predictions
from runtime.errors import ArtifactError, DataError
from runtime.images import open_images


@pytest.fixture
def run(finished):
    return collect.read_run(finished)


@pytest.fixture
def images(photos):
    return open_images(str(photos), "val")


def test_they_are_what_eval_finds(run, images):
    found = predictions.of_run(run, images)
    model = models.build("resnet20", 3, {"width": 0.25})
    checkpoints.load_weights(model, run.checkpoint)
    cpu = torch.device("cpu")
    other = evaluate(model, eval_loader(images, run.checkpoint.preprocess, 4, 0, cpu), cpu)
    assert found.predicted.tolist() == other.classes.tolist()
    assert found.loss.mean() == pytest.approx(other.loss, abs=1e-5)
    assert 100 * found.right.mean() == pytest.approx(other.top1)
    assert found.label.tolist() == images.labels.tolist() and found.index.tolist() == list(range(15))


def test_an_unreadable_image_is_left_out_and_the_others_keep_their_places(run, images, photos):
    (photos / "val" / "blue" / "1.png").write_bytes(b"x")
    assert predictions.of_run(run, images).index.tolist() == [0, *range(2, 15)]


def test_they_are_computed_once(run, images, monkeypatch):
    first = predictions.of_run(run, images)
    monkeypatch.setattr(predictions, "compute", None)
    again = predictions.of_run(run, images)
    assert all(np.array_equal(getattr(first, name), getattr(again, name)) for name in predictions.ARRAYS)


def test_other_weights_or_other_images_are_looked_at_anew(run, images, photos, monkeypatch):
    first = predictions.of_run(run, images)
    asked = []
    monkeypatch.setattr(predictions, "compute", lambda *given: asked.append(given) or first)
    predictions.of_run(collect.Run(**{**vars(run), "sha256": "0" * 64}), images)
    assert len(asked) == 1
    (photos / "val" / "blue" / "0.png").unlink()
    predictions.of_run(run, open_images(str(photos), "val"))
    assert len(asked) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"label": np.array([9] * 15)},
        {"predicted": np.array([-1] * 15)},
        {"loss": np.zeros(14)},
        {"confidence": np.array(["x"] * 15)},
        {"index": np.zeros((15, 1), int)},
        {"loss": np.array([None] * 15, object)},
    ],
)
def test_a_stored_file_of_another_kind_is_not_believed(run, images, change):
    found = predictions.of_run(run, images)
    arrays = {name: getattr(found, name) for name in predictions.ARRAYS} | change
    path = run.folder / predictions.FILE
    assert predictions.stored(path, 3) is not None
    np.savez(path, of=np.array(found.of), **arrays)
    assert predictions.stored(path, 3) is None
    path.write_bytes(b"junk")
    assert predictions.stored(path, 3) is None
    np.savez_compressed(path, of=np.array(found.of), **{name: getattr(found, name) for name in arrays})
    content = bytearray(path.read_bytes())
    for place in range(40, len(content) // 2):
        content[place] ^= 255
    path.write_bytes(content)  # what zlib makes of it is not an OSError
    assert predictions.stored(path, 3) is None
    assert len(predictions.of_run(run, images).label) == 15  # made again


def test_confusion_by_hand():
    found = predictions.Predictions(
        index=np.arange(4),
        label=np.array([0, 0, 1, 2]),
        predicted=np.array([0, 2, 1, 1]),
        confidence=np.ones(4),
        loss=np.ones(4),
        of="",
    )
    assert found.confusion(3).tolist() == [[1, 0, 1], [0, 1, 0], [0, 1, 0]]
    assert found.right.tolist() == [True, False, True, False]


def test_images_of_other_classes_or_none_that_can_be_read_are_refused(run, images, photos):
    for path in (photos / "val").rglob("*.png"):
        path.write_bytes(b"x")
    with pytest.raises(DataError, match="none of its images can be read"):
        predictions.of_run(run, images)
    (photos / "val" / "red").rename(photos / "val" / "rose")
    with pytest.raises(ArtifactError, match="classes differ"):
        predictions.of_run(run, open_images(str(photos), "val"))


def test_of_very_many_images_some_are_looked_at_evenly(run, images, monkeypatch):
    monkeypatch.setattr(predictions, "MOST_IMAGES", 5)
    assert predictions.of_run(run, images).index.tolist() == [0, 3, 6, 9, 12]
