"""Folders of classes: nothing becomes a class that a person would not call one, or the folder is refused."""

import os
import random
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from runtime import DataError
from runtime.images import FolderSet, open_images
from runtime.images.lists import list_in
from runtime.images.order import natural_key, ordered_classes
from runtime.images.scan import files_below, scan


@pytest.fixture(scope="module")
def png(tmp_path_factory):
    path = tmp_path_factory.mktemp("png") / "1.png"
    Image.new("RGB", (2, 2)).save(path)
    return path.read_bytes()


@pytest.fixture
def made(tmp_path, png):
    """made(*names) -> a folder with those files."""

    def make(*names):
        for name in names:
            path = tmp_path / "set" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png)
        return tmp_path / "set"

    return make


def left_out(images):
    return {each.reason: each.count for each in images.left_out}


def test_hidden_and_system_files_are_left_out_and_counted(made):
    root = made(
        *("ant/1.png", "bee/1.png", "ant/.ipynb_checkpoints/x.png", "ant/._1.png", "@eaDir/ant/1.png"),
        *("__MACOSX/ant/._1.png", "bee/Thumbs.db", ".git/1.png", "bee/desktop.ini"),
    )
    images = FolderSet(root)
    assert (images.class_names, len(images)) == (["ant", "bee"], 2)
    assert left_out(images) == {"hidden or system files": 7}


def test_what_is_not_read_is_counted_by_suffix(made):
    images = FolderSet(made("ant/1.png", "bee/1.png", "ant/2.tif", "ant/3.TIF", "bee/notes.txt"))
    assert left_out(images) == {".tif files (convert them to .png)": 2, ".txt files": 1}
    lines = images.summary().lines()
    assert lines[0] == "2 images of 2 classes, ant 1 to ant 1"
    assert "2.tif" in lines[1] or "3.TIF" in lines[1]


def test_a_class_in_an_archive_is_not_passed_over(made):
    with pytest.raises(DataError, match=r"cow: holds images that are not read \(1 \.zip\).*unpack"):
        FolderSet(made("ant/1.png", "bee/1.png", "cow/all.zip"))


def test_a_folder_of_arrays_names_the_form_that_reads_them(made):
    with pytest.raises(DataError, match=r"no images found.*For its arrays give npz:.*set"):
        open_images(str(made("train.npz", "val.npz")), "train")


def test_a_class_whose_images_are_all_of_another_format_is_not_passed_over(made):
    with pytest.raises(DataError, match=r"cow: holds images that are not read \(2 \.tif\)"):
        FolderSet(made("ant/1.png", "bee/1.png", "cow/1.tif", "cow/2.tif"))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("dog/1.png", "dog/augmented/2.png", "ant/1.png"), (r"dog/augmented/2\.png", "two depths")),
        (("ant/monday/1.png", "ant/tuesday/1.png", "bee/monday/1.png"), ("ant/monday", "bee/monday")),
        (("2024/ant/1.png", "2024/bee/1.png", "2025/ant/1.png"), ("2024/ant", "2025/ant", r"FILE\.csv")),
        (("photos/ant/1.png", "photos/bee/1.png"), (r"one class \('photos'\)", "set/photos")),
    ],
)
def test_a_tree_that_can_be_read_in_two_ways_is_refused_with_both(made, names, words):
    with pytest.raises(DataError) as refused:
        open_images(str(made(*names)), "train")
    for word in words:
        assert re.search(word, str(refused.value))


def test_the_first_level_is_the_class_where_all_hold_one_folder_of_one_name(made):
    assert FolderSet(made("ant/images/1.png", "bee/images/1.png")).class_names == ["ant", "bee"]


def test_a_link_back_up_is_left_out_and_named(made):
    root = made("ant/1.png", "bee/1.png")
    (root / "ant" / "up").symlink_to("..")
    (root / "bee" / "root").symlink_to("/")
    images = FolderSet(root)
    assert len(images) == 2
    assert left_out(images) == {"links to a folder above them": 2}


def test_one_folder_by_two_names_is_refused(made):
    root = made("ant/1.png", "bee/1.png")
    (root / "cow").symlink_to("bee")
    with pytest.raises(DataError, match=r"are one folder \(a link\)"):
        FolderSet(root)


def test_links_to_elsewhere_are_read_and_broken_ones_named(made, tmp_path):
    root = made("ant/1.png", "bee/1.png")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "1.png").write_bytes((root / "ant" / "1.png").read_bytes())
    (root / "cow").symlink_to(elsewhere)
    (root / "ant" / "gone.png").symlink_to("nowhere")
    (root / "ant" / "self.png").symlink_to("self.png")
    images = FolderSet(root)
    assert images.class_names == ["ant", "bee", "cow"]
    assert left_out(images) == {"broken links": 2}


def test_the_order_of_classes_is_the_same_in_every_process():
    names = ["Cat", "cat", "CAT", "1", "01", "001"]
    code = f"from runtime.images.order import ordered_classes; print(ordered_classes({names}, ''))"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(3)
    }
    assert found == {"['001', '01', '1', 'CAT', 'Cat', 'cat']\n"}


@pytest.mark.parametrize("name", ["②", "²", "1²", "٣", "1½"])
def test_digits_that_are_not_decimal_are_letters(name, made):
    assert natural_key(name)
    assert FolderSet(made(f"{name}/1.png", "ant/1.png")).class_names == sorted(["ant", name], key=natural_key)


def test_accents_have_one_place_however_they_are_stored(made):
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    others = ["cafz", "cafa"]
    positions = [ordered_classes([*others, name], "").index(name) for name in (composed, apart)]
    assert positions[0] == positions[1]
    with pytest.raises(DataError, match="two classes are called 'café'"):
        FolderSet(made(f"{composed}/1.png", f"{apart}/1.png"))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems store names as Unicode")
def test_names_that_are_not_utf_8_work(made, png):
    root = made("ant/1.png", "bee/1.png")
    os.mkdir(os.fsencode(root) + b"/caf\xe9")
    with open(os.fsencode(root) + b"/caf\xe9/\xe9.png", "wb") as file:
        file.write(png)
    images = FolderSet(root)
    assert len(images.fingerprint()) == 64
    assert images.class_names == ["ant", "bee", "caf\udce9"]
    assert images.item_sha256(2) == images.item_sha256(0)


@pytest.mark.parametrize("words", [("Training", "Validation"), ("TRAIN", "test"), ("train", "Testing")])
def test_split_folders_are_found_in_any_case(made, words):
    root = made(*(f"{word}/{name}/1.png" for word in words for name in ("ant", "bee")))
    for split in ("train", "val"):
        assert open_images(str(root), split).class_names == ["ant", "bee"]


def test_a_class_called_train_is_a_class(made):
    root = made("train/1.png", "bus/1.png", "car/1.png")
    assert open_images(str(root), "train").class_names == ["bus", "car", "train"]


NAMES = ["ant", "Bee", "1", "01", "café", "②", "red panda", "train", "n01440764", "cat"]
RUBBISH = [".x.png", "._1.png", "Thumbs.db", "notes.txt", "2.tif", ".cache/1.png", "@eaDir/1.png"]


def grown(seed):
    """(files, classes a person would name or None where the tree has two readings)."""
    chance = random.Random(seed)
    classes = chance.sample(NAMES, chance.randint(2, 5))
    kind = chance.choice(["flat", "flat", "inner", "years", "mixed", "wrapped", "loose"])
    files = []
    for name in classes:
        for number in range(chance.randint(1, 3)):
            place = {"inner": f"{name}/images", "years": f"{2020 + number}/{name}", "wrapped": f"all/{name}"}
            files.append(f"{place.get(kind, name)}/{number}.png")
        rubbish = chance.sample(RUBBISH, chance.randint(0, 3))
        files += [f"{files[-1].rsplit('/', 1)[0]}/{each}" for each in rubbish]
    if kind == "mixed":
        files.append(f"{classes[0]}/augmented/1.png")
    if kind == "loose":
        files.append("1.png")
    return files, classes if kind in ("flat", "inner") else None, kind


@pytest.mark.parametrize("part", range(4))
def test_no_tree_gives_a_class_that_a_person_would_not_name(tmp_path, png, part):
    answers = {"read": 0, "refused": 0}
    for seed in range(part * 100, part * 100 + 100):
        files, classes, kind = grown(seed)
        root = tmp_path / str(seed)
        for file in files:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_bytes(png)
        try:
            images = open_images(str(root), "train")
        except DataError as refused:
            assert str(root) in str(refused)
            assert classes is None or "train" in classes, (seed, kind, refused)
            answers["refused"] += 1
            continue
        answers["read"] += 1
        assert set(images.class_names) == set(classes or ()), (seed, kind)
        for index in range(len(images)):
            assert f"/{images.class_names[images.labels[index]]}/" in images.item_name(index)
    assert min(answers.values()) > 20


def test_folders_in_one_another_may_be_many(deep, tmp_path):
    assert [path for _, path in scan(deep).images] == ["a/" * 400 + "1.png"]
    hidden = tmp_path / ".hidden"
    os.rename(f"{deep}/a", hidden)
    try:
        with pytest.raises(DataError, match="1 hidden or system files left out"):
            scan(tmp_path)
    finally:
        os.rename(hidden, f"{deep}/a")


def test_a_list_beside_folders_in_one_another_is_read(deep):
    Path(deep, "train.csv").write_text("image,label\n" + "a/" * 400 + "1.png,ant\n")
    assert list_in(Path(deep), "train") is not None
    Path(deep, "train.csv").unlink()


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="the system's folders on Linux")
def test_folders_of_the_system_are_not_looked_into(made):
    for folder in ("/proc", "/proc/self/task", "/sys", "/dev"):
        with pytest.raises(DataError, match=rf"{folder}: a folder of the system"):
            scan(folder)
        assert list(files_below(folder)) == []
    root = made("ant/1.png", "bee/1.png")
    (root / "tasks").symlink_to("/proc/self/task")
    assert left_out(FolderSet(root)) == {"folders of the system": 1}
