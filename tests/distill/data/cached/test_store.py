"""What comes out of the store is what was put in, or nothing."""

import multiprocessing
import os
import pickle

import numpy as np
import pytest

from distill.data.cached.store import RECORD, Store
from runtime.errors import UsageError

STAMP = (1234, 5678)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path, 50, 10**6)


def pixels(number, height=5, width=7):
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)


def test_an_image_is_there_once_it_was_put_in(store):
    assert store.read(3, STAMP) is None
    store.write(3, pixels(3), 6, STAMP)
    store.write(0, pixels(0, 9, 2), 1, None)
    found = store.read(3, STAMP)
    assert np.array_equal(found.pixels, pixels(3)) and found.orientation == 6
    assert np.array_equal(store.read(0, None).pixels, pixels(0, 9, 2))
    assert store.read(1, STAMP) is None


def test_a_file_that_changed_is_not_there(store):
    store.write(3, pixels(3), 1, STAMP)
    assert store.read(3, (1234, 5679)) is None and store.read(3, (1235, 5678)) is None
    store.write(3, pixels(4), 1, (1235, 5678))
    assert np.array_equal(store.read(3, (1235, 5678)).pixels, pixels(4))


def test_no_image_goes_beyond_the_limit(tmp_path):
    store = Store(tmp_path, 50, 3 * 105 + 104)
    for number in range(5):
        store.write(number, pixels(number), 1, None)
    assert [store.read(number, None) is not None for number in range(5)] == [True, True, True, False, False]
    assert store.is_full and (tmp_path / "pixels").stat().st_size == 3 * 105


def test_damage_is_found_at_every_byte(store, tmp_path):
    store.write(3, pixels(3), 1, STAMP)
    for name, places in (("pixels", range(105)), ("index", range(3 * RECORD.size, 4 * RECORD.size))):
        for place in places:
            file = tmp_path / name
            content = bytearray(file.read_bytes())
            content[place] ^= 0x10
            file.write_bytes(content)
            assert store.read(3, STAMP) is None, (name, place)
            content[place] ^= 0x10
            file.write_bytes(content)
    assert store.read(3, STAMP) is not None


def test_pixels_that_were_cut_off_are_not_there(store, tmp_path):
    store.write(3, pixels(3), 1, STAMP)
    os.truncate(tmp_path / "pixels", 104)
    assert store.read(3, STAMP) is None


def _fill(store, start):
    for number in range(start, 50, 2):
        store.write(number, pixels(number, 40 + number, 30), 1, None)


def test_processes_fill_it_together(tmp_path):
    """Two write odd and even images, at the same time; nobody's pixels are another's."""
    store = Store(tmp_path, 50, 10**8)
    store.write(0, pixels(0), 1, None)  # its files are open here when it is forked
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_fill, args=(store, start)) for start in (0, 1)]
    for each in both:
        each.start()
    for each in both:
        each.join()
        assert each.exitcode == 0
    for number in range(50):
        assert np.array_equal(store.read(number, None).pixels, pixels(number, 40 + number, 30))


def test_it_is_opened_again_with_what_is_in_it(store, tmp_path):
    store.write(3, pixels(3), 1, None)
    for again in (Store(tmp_path, 50, 10**6), pickle.loads(pickle.dumps(store))):
        assert np.array_equal(again.read(3, None).pixels, pixels(3))


def test_a_full_disk_ends_the_filling_and_nothing_else(store, monkeypatch):
    store.write(3, pixels(3), 1, None)
    monkeypatch.setattr(os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    store.write(4, pixels(4), 1, None)
    assert store.is_full and store.read(4, None) is None and store.read(3, None) is not None


def test_a_link_in_the_folder_is_not_followed(tmp_path):
    target = tmp_path / "precious"
    target.write_bytes(b"content")
    (tmp_path / "index").symlink_to(target)
    with pytest.raises(UsageError, match=r"--cache-folder .* cannot be used"):
        Store(tmp_path, 50, 10**6)
    assert target.read_bytes() == b"content"
