"""export.checks.samples: which images are looked at."""

import hashlib

import numpy as np
import pytest

from export.checks import samples
from runtime.errors import DataError, UsageError
from runtime.images import ArraySet, open_images
from runtime.preprocess import Preprocess


def image_set(name, pixels, labels):
    return ArraySet(
        name, np.stack([np.full((8, 8, 3), p, np.uint8) for p in pixels]), np.array(labels), ["a", "b"]
    )


def test_choice_takes_as_many_of_each_class_and_fills_up_from_the_larger():
    labels = np.array([0] * 50 + [1] * 50 + [2] * 3)
    counts = np.bincount(labels[samples.choose(labels, 23, seed=0)])
    assert counts.tolist() == [10, 10, 3]


def test_choice_is_reproducible_and_depends_on_the_seed():
    labels = np.arange(200) % 4
    first, again, other = (samples.choose(labels, 20, seed).tolist() for seed in (1, 1, 2))
    assert first == again != other
    assert len(set(first)) == 20


def test_choice_of_more_than_there_are_takes_all():
    assert samples.choose(np.array([0, 1, 1]), 512, seed=0).tolist() == [0, 1, 2]


def test_a_split_uses_what_a_choice_takes_and_holds_back_others():
    labels = np.arange(1000) % 5
    used, selection = samples.split(labels, 100, 200, seed=3)
    assert used.tolist() == samples.choose(labels, 100, seed=3).tolist()
    assert len(selection) == 200 and not set(used) & set(selection)
    assert np.bincount(labels[selection]).tolist() == [40] * 5


def test_a_small_pool_is_split_in_three_quarters_and_one():
    used, selection = samples.split(np.arange(80) % 4, 512, 256, seed=0)
    assert (len(used), len(selection)) == (60, 20) and not set(used) & set(selection)
    assert [len(part) for part in samples.split(np.arange(80) % 4, 40, 0, seed=0)] == [40, 0]


@pytest.mark.parametrize(
    ("pool", "size", "expected"), [(100, 8, [8, 92]), (127, 1, [1, 126]), (300, 200, [200, 100])]
)
def test_a_split_never_uses_more_than_was_asked_for(pool, size, expected):
    assert [len(part) for part in samples.split(np.arange(pool) % 4, size, 512, seed=0)] == expected


def test_batches_stream_images_and_labels_in_order():
    images = image_set("set", [0, 51, 102, 153, 204], [0, 1, 0, 1, 0])
    spec = Preprocess(input_size=(3, 8, 8), crop_pct=1.0, mean=(0, 0, 0), std=(1, 1, 1))
    parts = list(samples.batches(images, [4, 1, 0], spec, size=2))
    assert [batch.shape for batch, _ in parts] == [(2, 3, 8, 8), (1, 3, 8, 8)]
    assert [float(image[0, 0, 0]) for batch, _ in parts for image in batch] == pytest.approx([0.8, 0.2, 0.0])
    assert [label for _, labels in parts for label in labels] == [0, 1, 0]


def test_listing_has_content_hashes_and_no_path_of_this_disk():
    images = image_set("npz:/home/me/train.npz", [7, 9], [0, 1])
    expected = hashlib.sha256(bytes([9]) * (8 * 8 * 3)).hexdigest()
    assert samples.listing(images, [1]) == [["train.npz[1]", expected]]


def test_an_image_in_calibration_and_evaluation_is_refused_by_name():
    calibration, held_out = image_set("train", [1, 2, 3], [0, 1, 0]), image_set("val", [8, 3], [0, 1])
    with pytest.raises(UsageError, match=r"train\[2\].*val\[1\]"):
        samples.require_apart(calibration, [0, 2], held_out)
    samples.require_apart(calibration, [0, 1], held_out)


def test_an_unreadable_image_is_named(tmp_path):
    from PIL import Image

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "good.png")
    (tmp_path / "b" / "broken.png").write_bytes(b"\x89PNG not really")
    with pytest.raises(DataError, match=r"broken\.png"):
        list(samples.batches(open_images(str(tmp_path), "train"), range(3), Preprocess(input_size=(3, 8, 8))))
