"""runtime.images.named: which files a word on the command line means."""

import pytest

from runtime.errors import UsageError
from runtime.images.named import image_files


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for name in (
        "a/img10.png",
        "a/img2.JPG",
        "a/deep/x.webp",
        "a/notes.txt",
        "a/.hidden.png",
        "a/._img2.JPG",
        "a/@eaDir/t.png",
        "a/.cache/t.png",
        "b[1].png",
        "photo",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a" / "deep" / "up").symlink_to(tmp_path / "a")  # a loop
    monkeypatch.chdir(tmp_path)


def test_a_folder_is_its_images_in_natural_order_without_hidden_ones(tree):
    assert image_files(["a"]) == ["a/deep/x.webp", "a/img2.JPG", "a/img10.png"]


def test_a_file_is_taken_whatever_it_is_called(tree):
    assert image_files(["photo", "a/notes.txt", "b[1].png"]) == ["photo", "a/notes.txt", "b[1].png"]


def test_a_pattern_means_what_a_shell_means_by_it(tree):
    assert image_files(["a/img*"]) == ["a/img2.JPG", "a/img10.png"]
    assert image_files(["**/*.webp"]) == ["a/deep/x.webp"]


def test_folders_in_one_another_may_be_many(deep):
    assert image_files([deep]) == [deep + "/a" * 400 + "/1.png"]
    with pytest.raises(UsageError, match=r"too many for \*\*|matches no image"):
        image_files([f"{deep}/**/*.jpg"])


def test_an_image_named_twice_is_given_once(tree):
    assert image_files(["a/img2.JPG", "a"]) == ["a/img2.JPG", "a/deep/x.webp", "a/img10.png"]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("gone.png", "no such file or folder"),
        ("*.jpeg", "matches no image"),
        ("empty", "no images in this folder"),
        ("https://example.org/a.png", "not from a URL. Download it first"),
        ("s3://bucket/*.png", "not from a URL"),
    ],
)
def test_a_word_that_names_no_image_is_refused_with_the_reason(tree, word, said):
    with pytest.raises(UsageError, match=said):
        image_files(["a", word])
