"""Labeled images by name: folders in timm's order, npz files, the digits, and every way they can
be wrong.
"""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from runtime import DataError, MissingError
from runtime.images import SPLIT_FOLDERS, has_own_split, npz, open_images


def touch(path, color=(1, 2, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), color).save(path)


@pytest.fixture
def tree(tmp_path):
    """Names whose order is easy to get wrong: numbers, upper case, other files."""
    root = tmp_path / "tree"
    for name in (
        "class10/b.png",
        "class2/a10.png",
        "class2/a9.png",
        "Class1/x.JPG",
        "class1b/y.jpeg",
        "class1b/z.png",
        "zebra/1.png",
    ):
        touch(root / name)
    (root / "class2" / "notes.txt").write_text("no image")
    return root


def test_a_folder_is_read_in_timms_order(tree):
    pytest.importorskip("timm")
    from timm.data.readers.reader_image_folder import ReaderImageFolder

    reader, images = ReaderImageFolder(str(tree)), open_images(str(tree), "val")
    assert [images.item_name(i) for i in range(len(images))] == [path for path, _ in reader.samples]
    assert images.labels.tolist() == [label for _, label in reader.samples]
    assert images.class_names == list(reader.class_to_idx)


def test_webp_and_bmp_are_read_too(tmp_path):
    for name in ("a/1.webp", "b/2.bmp"):
        touch(tmp_path / name)
    images = open_images(str(tmp_path), "val")
    assert [images.image(i).size for i in range(2)] == [(4, 4), (4, 4)]


def test_numbers_in_class_names_sort_as_numbers(tmp_path):
    for name in ("1", "10", "11", "2", "100"):
        touch(tmp_path / name / "x.png")
    assert open_images(str(tmp_path), "val").class_names == ["1", "2", "10", "11", "100"]


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_sub_folder_of_a_split_is_used_where_there_is_one(tmp_path, split):
    for name in SPLIT_FOLDERS[split]:
        root = tmp_path / f"root of {name}"
        touch(root / name / "a" / "1.png")
        touch(root / name / "b" / "1.png")
        touch(root / "other" / "c" / "1.png")
        assert open_images(str(root), split).class_names == ["a", "b"]
        assert has_own_split(str(root), split)
        assert not has_own_split(str(root / name), split)
        assert open_images(str(root / name), split).class_names == ["a", "b"]


def test_the_fingerprint_changes_when_an_image_is_added_renamed_or_relabeled(tree):
    before = open_images(str(tree), "val").fingerprint()
    assert open_images(str(tree), "val").fingerprint() == before
    touch(tree / "zebra" / "2.png")
    added = open_images(str(tree), "val").fingerprint()
    (tree / "zebra" / "2.png").rename(tree / "zebra" / "3.png")
    renamed = open_images(str(tree), "val").fingerprint()
    (tree / "zebra" / "3.png").rename(tree / "class10" / "3.png")
    assert len({before, added, renamed, open_images(str(tree), "val").fingerprint()}) == 4


def test_the_hash_of_an_item_is_the_hash_of_its_file(tree):
    import hashlib

    images = open_images(str(tree), "val")
    file = tree / "zebra" / "1.png"
    index = [images.item_name(i) for i in range(len(images))].index(str(file))
    assert images.item_sha256(index) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_an_unreadable_image_is_named_when_it_is_read_not_before(tree):
    (tree / "zebra" / "1.png").write_bytes(b"junk")
    images = open_images(str(tree), "val")
    with pytest.raises(DataError, match=r"zebra.1\.png: not a readable image"):
        images.image(len(images) - 1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: None, "no such folder"),
        (lambda root: root.mkdir(), "no images found"),
        (lambda root: root.write_bytes(b""), "not a folder"),
        (lambda root: touch(root / "only" / "1.png"), r"one class \('only'\)"),
        (lambda root: touch(root / "loose.png"), r"loose\.png: is not in a class folder"),
        (lambda root: touch(root / "train" / "ant" / "1.png"), "none for val"),
    ],
    ids=["missing", "empty", "a file", "one class", "no class folder", "only the other split"],
)
def test_a_folder_that_cannot_be_used_says_why(tmp_path, make, words):
    make(tmp_path / "data")
    with pytest.raises(DataError, match=words):
        open_images(str(tmp_path / "data"), "val")


def save(path, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return path


X = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), np.uint8)
Y = np.array([0, 2, 1, 2])


def test_npz_gives_pixels_labels_and_names(tmp_path):
    images = open_images(
        f"npz:{save(tmp_path / 'd.npz', x=X, y=Y, class_names=np.array(['a', 'b', 'c']))}", "val"
    )
    assert (images.class_names, images.labels.tolist()) == (["a", "b", "c"], [0, 2, 1, 2])
    np.testing.assert_array_equal(np.asarray(images.image(1)), X[1])


def test_npz_without_names_counts_its_classes(tmp_path):
    assert open_images(f"npz:{save(tmp_path / 'd.npz', x=X[..., 0], y=Y)}", "val").class_names == [
        "0",
        "1",
        "2",
    ]


def test_npz_splits_are_files_of_a_folder_or_a_pattern(tmp_path):
    save(tmp_path / "train.npz", x=X, y=Y)
    save(tmp_path / "test.npz", x=X[:3], y=Y[:3])
    for spec in (f"npz:{tmp_path}", f"npz:{tmp_path}/{{split}}.npz"):
        assert (len(open_images(spec, "train")), len(open_images(spec, "val"))) == (4, 3)
        assert has_own_split(spec, "val")
    assert not has_own_split(f"npz:{tmp_path / 'train.npz'}", "val")
    (tmp_path / "test.npz").unlink()
    with pytest.raises(DataError, match="no val split"):
        open_images(f"npz:{tmp_path}", "val")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": X}, r"has arrays \['x'\]"),
        ({"x": X.astype(np.float32), "y": Y}, "x is float32"),
        ({"x": X, "y": Y[:3]}, r"y is int64 \(3,\)"),
        ({"x": X, "y": Y.astype(np.float32)}, "y is float32"),
        ({"x": X[:0], "y": Y[:0]}, "holds no images"),
        ({"x": X, "y": Y, "class_names": np.array(["a", "b"])}, "labels run from 0 to 2, class_names has 2"),
        ({"x": X, "y": Y - 1}, "labels run from -1"),
        ({"x": X, "y": Y * 0}, "one class"),
        ({"x": X, "y": np.array([0, 1, None, 1], dtype=object)}, "y is object"),
        ({"x": X, "y": Y + 10**8}, "has a label 100000002; .* at most 100,000"),
        ({"x": X, "y": np.array([0, 1, 2, 2**64 - 1], np.uint64)}, "has a label 18446744073709551615"),
        ({"x": X, "y": Y, "class_names": np.zeros((100_001, 0), "U1")}, "class_names is <U1"),
        ({"x": X, "y": Y, "class_names": np.arange(100_001)}, "class_names is int64 .*at most 100,000"),
        ({"x": np.zeros((4, 0, 5, 3), np.uint8), "y": Y}, "without a pixel"),
    ],
)
def test_npz_that_cannot_be_used_says_why(tmp_path, arrays, words):
    with pytest.raises(DataError, match=words):
        open_images(f"npz:{save(tmp_path / 'd.npz', **arrays)}", "val")


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 not a zip", b"junk"])
def test_npz_that_is_missing_or_damaged_says_so(tmp_path, content):
    if content is not None:
        (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"npz:.*d\.npz"):
        open_images(f"npz:{tmp_path / 'd.npz'}", "val")


def test_only_the_arrays_of_a_data_set_are_read_from_npz(tmp_path):
    """Another one may be anything: here it is nothing that can be read."""
    path = save(tmp_path / "d.npz", x=X, y=Y)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("notes.npy", b"a note")
    assert len(open_images(f"npz:{path}", "val")) == 4


def npz_of(path, x_header):
    """An npz file of a few kilobytes whose x promises something else."""
    np.savez(path, y=Y)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", x_header + bytes(100))
    return path


def header(shape, dtype="|u1"):
    text = io.BytesIO()
    np.lib.format.write_array_header_1_0(text, {"descr": dtype, "fortran_order": False, "shape": shape})
    return text.getvalue()


def test_an_npz_header_that_promises_more_than_is_there_is_refused(tmp_path):
    path = npz_of(tmp_path / "d.npz", header((4, 8000, 8000, 3)))
    with pytest.raises(DataError, match=r"x is cut: uint8 .* needs 768,000,000 bytes"):
        open_images(f"npz:{path}", "val")


def test_npz_that_unpacks_to_far_more_than_its_size_is_not_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "d.npz"
    np.savez_compressed(path, x=np.zeros((4, 100, 100, 3), np.uint8), y=Y)
    monkeypatch.setattr(npz, "MOST_UNPACKED", 120_000)
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: pytest.fail("unpacked"))
    with pytest.raises(DataError, match=r"bytes that unpack to 120,\d{3}, which images never do"):
        open_images(f"npz:{path}", "val")
    monkeypatch.undo()
    assert len(open_images(f"npz:{path}", "val")) == 4


def test_npz_truncated_in_the_middle_says_so(tmp_path):
    path = save(tmp_path / "d.npz", x=X, y=Y)
    path.write_bytes(path.read_bytes()[:-150])
    with pytest.raises(DataError, match="npz"):
        open_images(f"npz:{path}", "val")


def test_digits_are_split_without_overlap_and_every_class_is_in_both():
    pytest.importorskip("sklearn")
    train, val = open_images("digits", "train"), open_images("digits", "val")
    assert len(train) + len(val) == 1797
    assert not {train.item_sha256(i) for i in range(len(train))} & {
        val.item_sha256(i) for i in range(len(val))
    }
    assert set(train.labels) == set(val.labels) == set(range(10))
    assert train.image(0).size == (32, 32)
    assert 0.2 < len(val) / 1797 < 0.3


def test_digits_without_scikit_learn_names_the_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingError, match=r"large2small\[demo\]"):
        open_images("digits", "val")


@pytest.mark.parametrize(("shape", "words"), [((4, 3, 8, 8), "transpose"), ((4, 8, 8, 5), "channels last")])
def test_an_npz_file_with_other_channels_is_refused_when_it_is_opened(tmp_path, shape, words):
    np.savez(tmp_path / "x.npz", x=np.zeros(shape, np.uint8), y=np.array([0, 1, 0, 1]))
    with pytest.raises(DataError, match=rf"x\.npz: x is uint8 .*{words}"):
        open_images(f"npz:{tmp_path / 'x.npz'}", "train")
