"""Lists of images: a path and a label in each row, in the forms people write."""

import pytest
from PIL import Image

from runtime import DataError
from runtime.images import has_own_split, open_images
from runtime.images.lists import with_columns


@pytest.fixture
def place(tmp_path):
    """A folder with img/1.png to img/4.png, for lists beside it."""
    (tmp_path / "img").mkdir()
    for number in range(1, 5):
        Image.new("RGB", (2, 2), (number, 0, 0)).save(tmp_path / "img" / f"{number}.png")
    return tmp_path


def write(place, name, text):
    (place / name).write_text(text)
    return str(place / name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "path,label\nimg/1.png,ant\nimg/2.png,bee\n"),
        ("a.csv", "img/1.png,ant\nimg/2.png,bee\n"),
        ("a.csv", "\ufefflabel;filename\nant;img/1.png\nbee;img/2.png\n"),
        ("a.tsv", "image\tid\tclass\nimg/1.png\t7\tant\nimg/2.png\t8\tbee\n"),
        ("a.txt", "img/1.png ant\nimg/2.png bee\n\n"),
    ],
)
def test_the_usual_forms_are_read(place, name, text):
    images = open_images(write(place, name, text), "train")
    assert (images.class_names, images.labels.tolist()) == (["ant", "bee"], [0, 1])
    assert [images.item_name(i) for i in range(2)] == [str(place / "img" / f"{n}.png") for n in (1, 2)]


def test_columns_can_be_named(place):
    spec = write(place, "a.csv", "where,what,label\nimg/1.png,ant,7\nimg/2.png,bee,7\n")
    images = open_images(with_columns(spec, "where", "what"), "train")
    assert images.class_names == ["ant", "bee"]
    with pytest.raises(DataError, match="no column 'wo'"):
        open_images(with_columns(spec, "wo", ""), "train")


def test_a_column_of_splits_is_used(place):
    rows = "img/1.png,ant,train\nimg/2.png,bee,train\nimg/3.png,ant,Test\nimg/4.png,bee,test\n"
    spec = write(place, "a.csv", "path,label,split\n" + rows)
    assert has_own_split(spec, "val")
    train, val = (open_images(spec, split) for split in ("train", "val"))
    assert [train.item_name(0)[-5:], val.item_name(0)[-5:]] == ["1.png", "3.png"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "an empty list"),
        ("path,label\n", "a header and no images"),
        ("path,label\nimg/1.png,ant\nimg/2.png,\n", "line 3: expected a path and a label"),
        ("path,label\nimg/1.png,ant\nimg/9.png,bee\n", r"1 of 2 images are not there.*9\.png"),
        ("path,label\nimg/1.png,ant\nimg/1.png,bee\n", "has two labels, 'ant' and 'bee'"),
        ("a,b,c\nimg/1.png,ant,x\n", "--csv-image COLUMN --csv-label COLUMN"),
        ("path,label\nhttp://x/1.png,ant\n", "not from a URL"),
        ("path,label\nimg/1.png,ant\nimg/2.png,ant\n", "one class"),
    ],
)
def test_a_list_that_cannot_be_used_says_why(place, text, words):
    with pytest.raises(DataError, match=words):
        open_images(write(place, "a.csv", text), "train")


def test_a_missing_list_is_named(place):
    with pytest.raises(DataError, match=r"none\.csv: no such list"):
        open_images(str(place / "none.csv"), "train")
