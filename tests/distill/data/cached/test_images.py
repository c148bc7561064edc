"""Images out of the cache are those of the set, and are decoded once."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill.data import TrainLoader, open_data
from distill.data.cached import cached, images
from runtime.errors import MissingError, UsageError
from runtime.preprocess import Preprocess

SPEC = Preprocess((3, 16, 16), "bilinear", 1.0)


@pytest.fixture
def photos(tmp_path):
    """A folder of six JPEGs in two classes, three of which are turned by their EXIF."""
    for number in range(6):
        place = tmp_path / "photos" / "train" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (60 + number, 80, 3), np.uint8)
        exif = Image.Exif()
        exif[274] = 1 + number
        Image.fromarray(pixels).save(place / f"{number}.jpg", exif=exif)
    return tmp_path / "photos"


@pytest.fixture(params=["ram", "disk"])
def mine(request, recipe, tmp_path):
    """mine(**settings) -> a recipe with this cache."""
    place = {"cache": request.param, "cache_folder": str(tmp_path / "kept")}
    return lambda **settings: recipe(**place | {"batch": 2, "scale": (0.3, 1.0)} | settings)


@pytest.fixture
def decoded(monkeypatch):
    """The number of images that were decoded so far, as a list that grows."""
    from runtime.images import folder

    seen, real = [], folder.open_rgb
    monkeypatch.setattr(folder, "open_rgb", lambda path: seen.append(path) or real(path))
    return seen


def epochs(found, recipe, count=3, spec=SPEC):
    loader = TrainLoader(found, recipe, spec, torch.device("cpu"))
    return [batch.images for epoch in range(count) for batch in loader.epoch(epoch)]


@pytest.mark.parametrize("exif", ["ignore", "apply"])
def test_batches_are_those_without_it_and_each_image_is_decoded_once(photos, mine, recipe, decoded, exif):
    spec, plain = Preprocess((3, 16, 16), "bilinear", 1.0, exif=exif), open_data(str(photos), "train")
    expected = epochs(plain, recipe(batch=2, scale=(0.3, 1.0)), spec=spec)
    assert len(decoded) == 3 * 6
    del decoded[:]
    settings = mine()
    found = epochs(cached(plain, settings, spec), settings, spec=spec)
    assert all(map(torch.equal, found, expected)) and len(found) == len(expected) == 9
    assert len(decoded) == 6


def test_reading_processes_share_it(photos, mine):
    settings = mine(workers=2)
    found = cached(open_data(str(photos), "train"), settings, SPEC)
    first = epochs(found, settings)
    for path in photos.rglob("*.jpg"):
        stamp = os.stat(path)
        path.write_bytes(b"\0" * stamp.st_size)  # what is read now comes out of the cache
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert all(map(torch.equal, epochs(found, settings), first))


def test_an_image_that_changed_is_decoded_again(photos, mine, decoded):
    found = cached(open_data(str(photos), "train"), mine(), SPEC)
    before = np.asarray(found.image(0))
    Image.new("RGB", (70, 50), (9, 9, 9)).save(found.item_name(0))
    after = np.asarray(found.image(0))
    assert before.shape == (60, 80, 3) and after.shape == (50, 70, 3)
    assert np.array_equal(np.asarray(found.image(0)), after) and len(decoded) == 2


def test_what_does_not_fit_is_decoded_each_time(photos, mine, recipe, decoded):
    plain = open_data(str(photos), "train")
    settings = mine(cache_limit=9_000 / 1e9)
    found = epochs(cached(plain, settings, SPEC), settings)
    assert len(decoded) == 3 * 6 - 2 * 2
    assert all(map(torch.equal, found, epochs(plain, recipe(batch=2, scale=(0.3, 1.0)))))


def test_the_disk_keeps_them_for_the_next_training_and_not_for_another_size(
    photos, recipe, tmp_path, decoded
):
    settings = recipe(cache="disk", cache_folder=str(tmp_path / "kept"), batch=2)
    plain = open_data(str(photos), "train")
    for spec, count in ((SPEC, 6), (SPEC, 6), (Preprocess((3, 8, 8), "bilinear", 1.0), 12)):
        epochs(cached(plain, settings, spec), settings, 1, spec)
        assert len(decoded) == count
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_memory_is_given_back_by_the_process_that_took_it(photos, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "SHARED_MEMORY", tmp_path / "memory")
    (tmp_path / "memory").mkdir()
    found = cached(open_data(str(photos), "train"), recipe(cache="ram"), SPEC)
    child = os.fork()
    if not child:
        del found
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert len(list((tmp_path / "memory").iterdir())) == 1
    del found
    assert list((tmp_path / "memory").iterdir()) == []


def test_the_set_is_the_same_in_everything_else(photos, mine):
    plain = open_data(str(photos), "train")
    found = pickle.loads(pickle.dumps(cached(plain, mine(cache="disk"), SPEC)))
    assert found.fingerprint() == plain.fingerprint() and found.item_name(4) == plain.item_name(4)
    assert found.item_sha256(4) == plain.item_sha256(4) and found.place(4) == plain.place(4)
    assert found.orientation(4) == plain.orientation(4) == 4
    assert found.summary() == plain.summary() and len(found) == 6


def test_images_in_memory_are_not_kept_twice(images, recipe):
    held = images(8)
    assert cached(held, recipe(cache="ram"), SPEC) is held


def test_what_cannot_be_kept_is_said(recipe, tmp_path, monkeypatch, photos):
    with pytest.raises(UsageError, match=r"not files of their own.*--cache ram"):
        monkeypatch.setattr("runtime.images.folder.FileSet.stamp", lambda *_: None)
        cached(open_data(str(photos), "train"), recipe(cache="disk"), SPEC)
    monkeypatch.setattr(images, "SHARED_MEMORY", Path("/nowhere"))
    with pytest.raises(MissingError, match=r"this system lacks\. Give --cache disk"):
        cached(open_data(str(photos), "train"), recipe(cache="ram"), SPEC)
