"""export.int8.cache: statistics are kept, and never trusted by name."""

import shutil

import numpy as np
import pytest

from export.int8 import cache, ranges
from export.int8.histogram import Histogram

KEY = "ab" * 32


@pytest.fixture
def histograms():
    random = np.random.default_rng(0)
    made = {name: Histogram() for name in ("images", "layer1/Add", "dead")}
    made["images"].update(random.normal(size=9000).astype(np.float32))
    made["layer1/Add"].update(np.abs(random.normal(size=700)).astype(np.float32))
    made["dead"].update(np.zeros(7, np.float32))
    return made


@pytest.fixture
def said():
    return []


def same(a, b):
    return (a.low, a.high, a.limit) == (b.low, b.high, b.limit) and np.array_equal(a.counts, b.counts)


def test_what_was_written_is_read_back_and_can_be_counted_on(tmp_path, histograms, said):
    cache.write(tmp_path / "new" / "folder", KEY, histograms, said.append)
    found = cache.read(tmp_path / "new" / "folder", KEY, said.append)
    assert list(found) == list(histograms) and said == []
    assert all(same(found[name], histograms[name]) for name in histograms)
    for method in ranges.METHODS:
        assert ranges.find(found["images"], method) == ranges.find(histograms["images"], method)
    more = np.full(5, 99.0, np.float32)
    found["images"].update(more)
    histograms["images"].update(more)
    assert same(found["images"], histograms["images"])


def test_nothing_there_says_nothing(tmp_path, said):
    assert cache.read(tmp_path / "nowhere", KEY, said.append) is None and said == []


def test_a_file_under_the_name_of_another_is_not_used(tmp_path, histograms, said):
    cache.write(tmp_path, KEY, histograms)
    other = "cd" * 32
    shutil.copy(cache.file_of(tmp_path, KEY), cache.file_of(tmp_path, other))
    assert cache.read(tmp_path, other, said.append) is None
    assert len(said) == 1 and "written for something else" in said[0] and other in said[0]


def test_contents_that_were_changed_are_not_used(tmp_path, histograms, said):
    cache.write(tmp_path, KEY, histograms)
    path = cache.file_of(tmp_path, KEY)
    with np.load(path) as file:
        stored = dict(file)
    stored["highs"] = stored["highs"] * 2  # a well-formed file with the right key, but other statistics
    np.savez_compressed(path, **stored)
    assert cache.read(tmp_path, KEY, said.append) is None and "checksum" in said[0]


def test_no_flipped_bit_and_no_cut_gets_through(tmp_path, histograms, said):
    cache.write(tmp_path, KEY, histograms)
    path = cache.file_of(tmp_path, KEY)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for place in [*range(0, 40), *random.integers(0, len(whole), 60)]:
        path.write_bytes(
            whole[:place] + bytes([whole[place] ^ 1 << int(random.integers(8))]) + whole[place + 1 :]
        )
        found = cache.read(tmp_path, KEY, said.append)
        assert found is None or all(
            same(found[name], histograms[name]) for name in histograms
        )  # a date inside the zip, say
    refused = len(said)
    assert refused > 50
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert cache.read(tmp_path, KEY, said.append) is None
    assert len(said) == refused + 5


def test_a_pickle_is_not_opened(tmp_path, said):
    opened = tmp_path / "opened"

    class Trap:
        def __reduce__(self):
            return opened.touch, ()

    np.savez(
        cache.file_of(tmp_path, KEY), **{name: np.array([Trap()], dtype=object) for name in cache.ARRAYS}
    )
    assert cache.read(tmp_path, KEY, said.append) is None and len(said) == 1
    assert not opened.exists()


def test_the_key_changes_with_all_that_the_statistics_depend_on(monkeypatch):
    given = {
        "model": b"weights",
        "tensors": ["a", "b"],
        "images": ["11", "22"],
        "preprocess": {"mean": [0.5], "size": 32},
    }
    keys = [
        cache.key(**given | change)
        for change in (
            {},
            {"model": b"Weights"},
            {"tensors": ["a"]},
            {"images": ["22", "11"]},
            {"images": ["11"]},
            {"images": ["1122"]},
            {"preprocess": {"mean": [0.4], "size": 32}},
        )
    ]
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    keys.append(cache.key(**given))
    assert len(set(keys)) == len(keys) and all(len(each) == 64 for each in keys)


def test_the_key_does_not_change_with_what_does_not_matter():
    assert cache.key(b"w", ["b", "a"], ["11"], {"x": 1, "y": 2}) == cache.key(
        b"w", ["a", "b", "a"], ("11",), {"y": 2, "x": 1}
    )


def test_only_the_newest_files_are_kept_and_no_file_of_another_is_touched(tmp_path, histograms, monkeypatch):
    import os

    monkeypatch.setattr(cache, "KEPT", 2)
    (tmp_path / "photographs.npz").write_bytes(b"not ours")
    for age, key in enumerate(["0" * 64, "1" * 64, "2" * 64]):
        cache.write(tmp_path, key, histograms)
        os.utime(cache.file_of(tmp_path, key), (1000 + age, 1000 + age))
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        f"{'1' * 64}.npz",
        f"{'2' * 64}.npz",
        "photographs.npz",
    ]


def test_a_folder_that_cannot_be_written_is_a_note_not_an_error(tmp_path, histograms, said):
    (tmp_path / "file").write_text("in the way")
    cache.write(tmp_path / "file", KEY, histograms, said.append)
    assert len(said) == 1 and "not kept" in said[0]


@pytest.mark.parametrize(
    ("given", "expected"), [("/elsewhere", "/elsewhere"), (None, "HOME/.cache"), ("relative", "HOME/.cache")]
)
def test_the_default_folder_follows_the_standard(monkeypatch, tmp_path, given, expected):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if given is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", given)
    assert str(cache.default_folder()) == expected.replace("HOME", str(tmp_path)) + "/large2small/calibration"
