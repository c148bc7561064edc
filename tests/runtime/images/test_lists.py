"""Lists of images: a path and a label in each row, in the forms people write."""

import numpy as np
import pytest
from PIL import Image

from runtime import DataError, files
from runtime.images import FolderSet, has_own_split, open_images, split
from runtime.images.lists import with_columns


@pytest.fixture
def place(tmp_path):
    """A folder with img/1.png to img/4.png, for lists beside it."""
    (tmp_path / "img").mkdir()
    for number in range(1, 5):
        Image.new("RGB", (2, 2), (number, 0, 0)).save(tmp_path / "img" / f"{number}.png")
    return tmp_path


def image(path, red):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2), (red, 0, 0)).save(path)


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
        ("a.csv", "ant,img/1.png\nbee,img/2.png\n"),
        ("a.csv", "where,what\nimg/1.png,ant\nimg/2.png,bee\n"),
        ("a.csv", "label;path;note\nant;img/1.png;big, red\nbee;img/2.png;\n"),
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


@pytest.mark.parametrize("label", ["7" * 5000, "id" + "0" * 5000 + "7"])
def test_a_label_of_thousands_of_digits_is_a_name(place, label):
    """Python reads no number of more than 4,300."""
    spec = write(place, "a.csv", f"path,label\nimg/1.png,{label}\nimg/2.png,ant\n")
    assert set(open_images(spec, "train").class_names) == {label, "ant"}


@pytest.mark.parametrize("number", ["7" * 5000, "99999999999999999999", "100000000", "3"])
def test_numbers_of_classes_that_are_not_the_next_are_refused(place, number):
    rows = f"img/1.png,ant,0\nimg/2.png,bee,{number}\n"
    with pytest.raises(DataError, match="class_index must number the classes from 0 on"):
        open_images(write(place, "a.csv", "path,label,class_index\n" + rows), "train")


@pytest.mark.parametrize("number", ["9" * 18, "9" * 30, "9" * 5000])
def test_an_image_that_an_npz_file_does_not_have_is_refused(place, number):
    np.savez(place / "d.npz", x=np.zeros((2, 4, 4, 3), np.uint8), y=np.arange(2))
    rows = f"npz:{place}/d.npz[0],0\nnpz:{place}/d.npz[{number}],1\n"
    with pytest.raises(DataError, match=r"does not belong to npz:|npz and image files"):
        open_images(write(place, "a.csv", "path,label\n" + rows), "train")


@pytest.mark.parametrize("name", ["a\nb", "a\r\nb", "a\x85b", "a\u2028b", "caf\udce9", 'say "hi", you'])
def test_a_split_of_any_names_is_read_again(place, name):
    """Written as --val-split writes it."""
    for label in (name, "ant"):
        for number in range(4):
            image(place / "set" / label / f"{name}{number}.png", number + 10 * (label == name))
    images = FolderSet(place / "set")
    files.write_text(place / "list.csv", split.to_list(images, split.choose(images, 0.5, 0)))
    for part in ("train", "val"):
        found = open_images(str(place / "list.csv"), part)
        assert found.class_names == images.class_names
        labels = [found.class_names[label] for label in found.labels]
        assert [file.parent.name for file in found.files] == labels
        assert len(found) == 4


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


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train.csv", "val.csv"),
        ("train.txt", "valid.txt"),
        ("Training.tsv", "test.tsv"),
        ("train.csv", "validation.txt"),
    ],
)
def test_a_folder_of_two_lists_is_one_data_set_with_both_splits(place, train, val):
    def rows(name, *found):
        blank = {"v": ",", "t": " ", "s": "\t"}[
            name[-1] if name[-2:] != "sv" else {"c": "v", "t": "s"}[name[-3]]
        ]
        return "".join(f"img/{number}.png{blank}{label}\n" for number, label in found)

    write(place, train, rows(train, (1, "ant"), (2, "bee")))
    write(place, val, rows(val, (3, "bee"), (4, "ant")))
    assert has_own_split(str(place), "val")
    ours, theirs = (open_images(str(place), split) for split in ("train", "val"))
    assert ours.class_names == theirs.class_names == ["ant", "bee"]
    assert [each.item_name(0)[-5:] for each in (ours, theirs)] == ["1.png", "3.png"]
    assert theirs.labels.tolist() == [1, 0]


@pytest.mark.parametrize("inside", ["img", "train", "train_images", "a # b"])
def test_paths_may_start_from_a_folder_beside_the_list(place, inside):
    (place / "img").rename(place / inside)
    (place / "other").mkdir()
    for name in ("train.csv", "val.csv"):
        write(place, name, "image_id,label\n1.png,ant\n2.png,bee\n")
    images = open_images(str(place), "train")
    assert images.item_name(1) == str(place / inside / "2.png")


def test_paths_may_start_from_the_folder_above(place):
    (place / "lists").mkdir()
    spec = write(place / "lists", "a.csv", "img/1.png,ant\nimg/2.png,bee\n")
    assert open_images(spec, "train").item_name(0) == str(place / "img" / "1.png")


def test_two_folders_that_a_path_may_start_from_are_both_named(place):
    (place / "more").mkdir()
    Image.new("RGB", (2, 2)).save(place / "more" / "1.png")
    with pytest.raises(DataError, match=r"its images are in .*img and in .*more"):
        open_images(write(place, "a.csv", "1.png,ant\n2.png,bee\n"), "train")


def test_class_folders_of_a_split_come_before_its_list(place):
    for number, name in ((1, "ant"), (2, "bee")):
        (place / "train" / name).mkdir(parents=True)
        (place / "img" / f"{number}.png").rename(place / "train" / name / "x.png")
    write(place, "train.csv", "img/3.png,x\nimg/4.png,y\n")
    write(place, "val.csv", "img/3.png,ant\nimg/4.png,bee\n")
    assert [open_images(str(place), split).class_names for split in ("train", "val")] == [["ant", "bee"]] * 2


def test_a_list_of_one_split_alone_leaves_the_other_to_be_set_apart(place):
    write(place, "train.csv", "id,label\n1.png,ant\n2.png,bee\n")
    assert len(open_images(with_columns(str(place), "id", ""), "train")) == 2
    (place / "test").mkdir()
    write(place, "train.csv", "image_id,label\n1.png,ant\n2.png,bee\n")
    assert not has_own_split(str(place), "val")
    with pytest.raises(DataError, match=r"none for val. Expected one of val\.csv"):
        open_images(str(place), "val")


def test_columns_of_the_lists_in_a_folder_can_be_named(place):
    for name in ("train.csv", "test.csv"):
        write(place, name, "where,what,label\nimg/1.png,ant,7\nimg/2.png,bee,7\n")
    spec = with_columns(str(place), "where", "what")
    assert has_own_split(spec, "val")
    assert open_images(spec, "val").class_names == ["ant", "bee"]


NOTE, CAMERAS = "Photos taken in May\n", "camera,iso,place\nNikon,100,garden\nCanon,200,wood\n"


@pytest.mark.parametrize(
    "files",
    [
        {"train.txt": NOTE},
        {"train.txt": "ant bee\n"},
        {"val.csv": CAMERAS},
        {"train.csv": CAMERAS, "val.csv": CAMERAS},
        {"train.txt": NOTE, "val.csv": CAMERAS},
        {"train.tsv": "taken\tby\nMay\tJo\n", "test.txt": "all of them\n"},
    ],
    ids=lambda files: " ".join(files),
)
def test_text_files_that_name_no_image_leave_class_folders_what_they_are(place, files):
    for name in ("ant", "bee"):
        image(place / "photos" / name / "1.png", 0)
    for name, text in files.items():
        write(place / "photos", name, text)
    images = open_images(str(place / "photos"), "train")
    assert (images.class_names, len(images)) == (["ant", "bee"], 2)
    assert not has_own_split(str(place / "photos"), "val")


@pytest.mark.parametrize("folders", [("images",), ("train_images", "test_images"), ()])
def test_lists_of_nothing_are_still_named_where_there_are_no_class_folders(place, folders):
    (place / "photos").mkdir()
    for name in folders:
        image(place / "photos" / name / "1.png", 0)
    for name in ("train.csv", "val.csv"):
        write(place / "photos", name, CAMERAS)
    with pytest.raises(DataError, match="which columns hold path and label is not clear"):
        open_images(str(place / "photos"), "train")


def test_lists_beside_class_folders_that_name_images_count(place):
    for name in ("ant", "bee"):
        for number in range(2):
            image(place / "photos" / name / f"{number}.png", number)
    write(place / "photos", "train.csv", "ant/0.png,one\nbee/0.png,two\n")
    write(place / "photos", "val.csv", "ant/1.png,one\nbee/1.png,two\n")
    assert open_images(str(place / "photos"), "train").class_names == ["one", "two"]


def test_files_beside_class_folders_that_are_not_lists_stay_what_they_were(place):
    for number, name in ((1, "ant"), (2, "bee")):
        (place / name).mkdir()
        (place / "img" / f"{number}.png").rename(place / name / "x.png")
    for number in (3, 4):
        (place / "img" / f"{number}.png").unlink()
    (place / "img").rmdir()
    write(place, "train.txt", "ant/x.png\nbee/x.png\n")  # paths without labels
    write(place, "train.csv", "camera,lens,day\na,b,c\n")
    images = open_images(str(place), "train")
    assert images.class_names == ["ant", "bee"]
    assert {each.reason for each in images.left_out} == {".txt files", ".csv files"}


def test_two_lists_of_one_split_are_refused(place):
    for name in ("train.csv", "train.txt", "val.csv"):
        write(place, name, "img/1.png,ant\nimg/2.png,bee\n")
    with pytest.raises(DataError, match=r"train\.csv and .*train\.txt: two lists for train"):
        open_images(str(place), "train")
