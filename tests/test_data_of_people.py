"""Data as people have it, from the command line: what each command makes of a folder that is not as expected.

Each situation is tried with `check` and `train`, and where it matters with `eval`, `bench accuracy` and
`export onnx`. The rules themselves are tested where they are written (tests/runtime/images).
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.cli import front_door

pytestmark = pytest.mark.usefixtures("exports_once")

TRAIN = [
    "train",
    "--student",
    "resnet20",
    "--student-args",
    "width=0.25",
    "--teacher",
    "none",
    "--img-size",
    "16",
]
TRAIN += ["--batch", "8", "--epochs", "1", "--warmup-epochs", "0", "--device", "cpu", "--no-report"]
linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems store names as Unicode")


def cases(names, values):
    """Cases of one situation that each train: the first on every day, the others with the slow tests."""
    several = isinstance(names, tuple)
    first, *more = values
    marked = [pytest.param(*(each if several else (each,)), marks=pytest.mark.slow) for each in more]
    return pytest.mark.parametrize(names, [first, *marked])


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def distill(capsys):
    """distill(*words, code=0) -> (stdout, stderr), after that exit code."""

    def run(*words, code=0):
        capsys.readouterr()
        found = front_door.main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert found == code, err
        if code == 2:
            assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1, err
        return out, err

    return run


@pytest.fixture
def both(distill):
    """both(data, *words) -> (what check says as JSON, RUN/header.json after a training into r)."""

    def run(data, *words):
        checked = json.loads(distill("check", data, *words, "--json")[0])
        distill(*TRAIN, "--data", data, *words, "--output", "r", "--overwrite")
        return checked, json.loads(Path("r/header.json").read_text())

    return run


@pytest.fixture
def refuse(distill):
    """refuse(words, data, *more): check and train end with exit code 2 and these words; nothing is left."""

    def run(words, data, *more):
        for command in (["check"], [*TRAIN, "--output", "r", "--data"]):
            err = distill(*command, data, *more, code=2)[1]
            for each in [words] if isinstance(words, str) else words:
                assert each in err, err
        assert not Path("r").exists()

    return run


def paint(path, number=0, **more):
    """One image of 16 x 16 pixels, another one for each number."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(path, **more)


def photos(root="photos", splits=("train", "val"), names=("ant", "bee"), per_class=8):
    """A folder of class folders in each split; no image twice."""
    number = 0
    for split in splits:
        for name in names:
            for count in range(per_class):
                number += 1
                paint(Path(root, split, name, f"{count}.png"), number)
    return Path(root)


def classes(checked):
    return checked["sets"]["train"]["summary"]["class_names"]


def left_out(checked):
    return {each["reason"]: each["count"] for each in checked["sets"]["train"]["summary"]["left_out"]}


@cases(
    "names",
    [
        [".ipynb_checkpoints/x.png"],
        ["@eaDir/x.png", "@eaDir/y.png"],
        ["__MACOSX/ant/._0.png", "ant/._0.png", "ant/.DS_Store"],
        ["$RECYCLE.BIN/x.png", "bee/Thumbs.db", "System Volume Information/x.png"],
    ],
)
def test_hidden_folders_and_files_of_systems_are_not_classes(place, both, names):
    photos()
    for number, name in enumerate(names):
        paint(f"photos/train/{name}", number, format="PNG")
    checked, header = both("photos")
    assert classes(checked) == ["ant", "bee"] and header["classes"] == 2 and header["train_images"] == 16
    assert left_out(checked) == {"hidden or system files": len(names)}
    assert f"{len(names)} hidden or system files left out" in header["left_out"][0]


@pytest.mark.parametrize(
    "names",
    [
        ["ant/monday", "ant/tuesday", "bee/monday"],
        ["2024/ant", "2025/ant", "2025/bee"],
        ["ant/raw", "bee/raw", "bee/cropped"],
        ["2024/06/ant", "2025/06/ant", "2025/06/bee"],
    ],
)
def test_one_name_under_two_folders_is_refused_with_both(place, refuse, names):
    for number, name in enumerate(names):
        paint(f"photos/train/{name}/{number}.png", number)
        paint(f"photos/val/{name}/{number}.png", number + 9)
    shared = [name for name in names if sum(Path(name).name == Path(each).name for each in names) > 1]
    refuse([f"photos/train/{name}" for name in shared[:2]], "photos")


@pytest.mark.parametrize("inner", ["augmented", "2024", "bee", "a/b"])
def test_images_in_a_class_and_in_a_folder_below_it_are_refused_with_both(place, refuse, inner):
    photos()
    paint(f"photos/train/ant/{inner}/0.png", 99)
    refuse([f"photos/train/ant/{inner}/0.png", "two depths", "photos/train/ant/0.png"], "photos")


@cases(
    ("link", "target"),
    [("ant/up", ".."), ("ant/self", "."), ("all", "."), ("bee/home", "/")],
)
def test_a_link_back_up_does_not_count_images_again(place, both, link, target):
    photos()
    Path(f"photos/train/{link}").symlink_to(target)
    checked, header = both("photos")
    assert header["train_images"] == 16 and classes(checked) == ["ant", "bee"]
    assert left_out(checked) == {"links to a folder above them": 1}


@pytest.mark.parametrize(("link", "target"), [("cow", "bee"), ("ant/more", "../bee"), ("cow", "../val/ant")])
def test_a_link_to_another_class_is_refused_or_said(place, distill, link, target):
    photos()
    Path(f"photos/train/{link}").symlink_to(target)
    if target == "../val/ant":
        paint("photos/val/cow/0.png", 98)
        out = distill("check", "photos")[0]
        assert "8 validation images are training images as well" in out
    else:
        assert "are one folder (a link)" in distill("check", "photos", code=2)[1]


@cases(
    ("suffix", "reason"),
    [
        (".tif", ".tif files (convert them to .png)"),
        (".gif", ".gif files (convert them to .png)"),
        (".heic", ".heic files (convert them to .png)"),
        (".txt", ".txt files"),
    ],
)
def test_files_that_are_not_read_are_counted_before_a_training(place, both, suffix, reason):
    for file in list(photos().glob("train/*/[0-3].png")):
        file.rename(file.with_suffix(suffix))
    checked, header = both("photos")
    assert header["train_images"] == 8 and left_out(checked) == {reason: 8}
    assert header["left_out"][0].startswith(f"8 {reason} left out, for example {place}/photos/train/")


@cases("names", [("Cat", "cat", "CAT"), ("1", "01", "001"), ("a1", "A01", "a01"), ("②", "2", "٢")])
def test_names_that_a_sort_takes_for_equal_have_one_order(place, both, names, distill):
    photos(names=names, per_class=4)
    checked, _ = both("photos")
    found = {
        subprocess.run(
            [
                sys.executable,
                "-c",
                "from runtime.images import FolderSet; print(FolderSet('photos/val').class_names)",
            ],
            env=os.environ | {"PYTHONHASHSEED": str(seed), "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(2)
    }
    assert found == {f"{classes(checked)}\n"} and set(classes(checked)) == set(names)
    distill("eval", "r/best.pth")


@linux
@cases("name", [b"caf\xe9", "①②③".encode(), b"\xff", "日本".encode("shift_jis")])
def test_names_in_any_bytes_work_as_files_and_as_classes(place, both, distill, name):
    photos()
    paint("photos/x.png", 97)
    for folder in (b"photos/train/ant/", b"photos/train/" + name + b"/", b"photos/val/" + name + b"/"):
        os.makedirs(folder, exist_ok=True)
        shutil.copy(b"photos/x.png", folder + name + b".png")
    os.remove("photos/x.png")
    checked, header = both("photos")
    assert header["classes"] == 3 and os.fsdecode(name) in classes(checked)
    assert "top-1" in distill("eval", "r/best.pth")[0]


@pytest.mark.parametrize("form", ["train", "val"])
@cases("name", ["café", "über", "Ångström"])
def test_accents_stored_in_two_ways_are_one_class(place, both, distill, form, name):
    composed, apart = (unicodedata.normalize(each, name) for each in ("NFC", "NFD"))
    ours, theirs = (composed, apart) if form == "train" else (apart, composed)
    photos(splits=("train",), names=("ant", ours))
    photos(splits=("val",), names=("ant", theirs))
    checked, header = both("photos")
    assert header["classes"] == 2 and checked["problems"] == []
    assert "n=16 val images" in distill("eval", "r/best.pth")[0]


def lacking_val(kind):
    """A trained run with ant, bee, cow, dog, and a validation set without bee: its spec."""
    names = ("ant", "bee", "cow", "dog")
    photos(names=names)
    if kind == "folder":
        shutil.rmtree("photos/val/bee")
        return "photos"
    if kind == "empty folder":
        shutil.rmtree("photos/val/bee")
        Path("photos/val/bee").mkdir()
        return "photos"
    rows = [f"{file},{file.parent.name}" for file in sorted(Path("photos/val").rglob("*.png"))]
    if kind == "list":
        Path("val.csv").write_text("\n".join(row for row in rows if not row.endswith(",bee")) + "\n")
        return "val.csv"
    x = np.zeros((9, 16, 16, 3), np.uint8)
    kept = np.array(["ant", "cow", "dog"])
    np.savez("val.npz", x=x, y=np.arange(9) % 3, class_names=kept)
    return "npz:val.npz"


@cases("kind", ["folder", "empty folder", "list", "npz"])
def test_a_class_without_validation_images_is_named_as_that(place, distill, kind):
    photos("whole", names=("ant", "bee", "cow", "dog"))
    distill(*TRAIN, "--data", "whole", "--output", "r")
    spec = lacking_val(kind)
    said = "val has no image of bee (3 of 4 classes)"
    assert said in distill(*TRAIN, "--data", "photos/train", "--val-data", spec, "--output", "n", code=2)[1]
    assert not Path("n").exists()
    assert said in distill("eval", "r/best.pth", "--data", spec, code=2)[1]
    assert "val has no image of bee" in distill("check", "photos/train", "--val-data", spec, code=1)[0]
    assert said in distill("export", "onnx", "r/best.pth", "--data", spec, code=2)[1]


def test_a_class_that_the_network_does_not_know_is_named(place, distill):
    photos("whole")
    distill(*TRAIN, "--data", "whole", "--output", "r")
    photos(names=("ant", "bee", "cow"))
    assert (
        "has images of cow, a class that r/best.pth does not know"
        in distill("eval", "r/best.pth", "--data", "photos", code=2)[1]
    )


def test_classes_in_another_order_are_matched_by_name(place, distill):
    photos("whole", names=("ant", "bee", "cow"))
    distill(*TRAIN, "--data", "whole", "--output", "r")
    files = sorted(Path("whole/val").rglob("*.png"))
    order = ["cow", "ant", "bee"]
    x = np.stack([np.asarray(Image.open(file)) for file in files])
    y = np.array([order.index(file.parent.name) for file in files])
    np.savez("other.npz", x=x, y=y, class_names=np.array(order))
    one, two = (
        json.loads(distill("eval", "r/best.pth", "--data", data, "--json")[0])
        for data in ("whole", "npz:other.npz")
    )
    assert one["loss_nats"] == pytest.approx(two["loss_nats"], abs=1e-6)


@cases("kind", ["same folder", "one file", "renamed", "a list"])
def test_images_in_both_sets_are_counted_and_named(place, distill, kind):
    photos()
    words, count = ("--val-data", "photos/train"), 16
    if kind == "a list":
        rows = [f"{file},{file.parent.name}" for file in sorted(Path("photos/train").rglob("*.png"))]
        Path("val.csv").write_text("\n".join(rows) + "\n")
        words = ("--val-data", "val.csv")
    if kind in ("one file", "renamed"):
        shutil.copy("photos/train/ant/3.png", f"photos/val/ant/{'3' if kind == 'one file' else 'new'}.png")
        words, count = ("--val-data", "photos/val"), 1
    said = f"{count} validation images are training images as well"
    assert f"warning: {said}" in distill("check", "photos/train", *words)[0]
    err = distill(*TRAIN, "--data", "photos/train", *words, "--output", "r")[1]
    assert f"warning: {said}" in err and "photos/train/ant/" in err


def spoil(*files):
    for file in files:
        Path(file).write_bytes(b"not an image")


@cases("workers", [0, 2])
def test_skipped_images_are_counted_once_and_listed(place, distill, workers):
    photos()
    bad = [f"photos/train/ant/{number}.png" for number in range(6)]
    spoil(*bad, "photos/val/bee/1.png")
    words = ("--skip-bad-images", "--epochs", "3", "--workers", str(workers))
    out, err = distill(*TRAIN, "--data", "photos", *words, "--output", "r")
    result = json.loads(Path("r/result.json").read_text())
    listed = Path("r/unreadable-images.txt").read_text().splitlines()
    assert result["best"]["unreadable_images"]["val"] == 1
    assert {line.split(": ")[1].removeprefix(f"{place}/") for line in listed} == {
        *bad,
        "photos/val/bee/1.png",
    }
    assert "6 for training, 1 for validation; they are listed in r/unreadable-images.txt" in out
    assert "7 unreadable images left out" in err
    out = distill("eval", "r/best.pth", "--skip-bad-images")[0]
    assert "n=15 val images" in out and "1 unreadable images skipped" in out


@pytest.mark.parametrize("split", ["train", "val"])
@cases("count", [1, 8])
def test_a_class_that_lost_all_images_is_named(place, distill, split, count):
    photos(names=("ant", "bee"))
    for number in range(count):
        paint(f"photos/train/cow/{number}.png", 50 + number)
        paint(f"photos/val/cow/{number}.png", 70 + number)
    spoil(*(f"photos/{split}/cow/{number}.png" for number in range(count)))
    err = distill(*TRAIN, "--data", "photos", "--skip-bad-images", "--output", "r", code=2)[1]
    assert f"no image of 'cow' ({count}) in {split} can be read" in err
    assert not Path("r").exists()
    assert f"problem: {split}: no image of cow can be read" in distill("check", "photos", code=1)[0]


def test_a_run_with_skipped_images_that_is_resumed_still_counts_them_once(place, distill):
    photos()
    spoil("photos/train/ant/0.png", "photos/train/bee/1.png")
    distill(*TRAIN, "--data", "photos", "--skip-bad-images", "--epochs", "2", "--output", "r")
    first = Path("r/unreadable-images.txt").read_text()
    assert first.count("\n") == 2
    assert "2 for training, 0 for validation" in distill("train", "--resume", "r", "--no-report")[0]
    assert Path("r/unreadable-images.txt").read_text() == first


@cases("kind", ["folder", "folder of train/ alone", "list", "npz"])
def test_data_without_validation_images_names_the_flag(place, distill, kind):
    photos(splits=("train",))
    data = {"folder": "photos/train", "list": "a.csv", "npz": "npz:a.npz"}.get(kind, "photos")
    rows = [f"{file},{file.parent.name}" for file in sorted(Path("photos").rglob("*.png"))]
    Path("a.csv").write_text("\n".join(rows) + "\n")
    x = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), np.uint8)
    np.savez("a.npz", x=x, y=np.arange(16) % 2)
    assert "--val-split 0.2" in distill(*TRAIN, "--data", data, "--output", "r", code=2)[1]
    assert "--val-split 0.2" in distill("check", data, code=1)[0]
    distill(*TRAIN, "--data", data, "--val-split", "0.25", "--output", "r")
    assert json.loads(Path("r/header.json").read_text())["val_images"] == 4


@pytest.mark.parametrize("name", ["cifar100", "cifar10", "mnist"])
def test_a_data_set_of_torchvision_that_is_not_there_says_what_fetches_it(place, distill, name):
    err = distill(*TRAIN, "--data", f"torch/{name}:nowhere", "--output", "r", code=2)[1]
    assert re.search(rf"python -c .*{name.upper()}.*download=True", err)
    assert not Path("r").exists()


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((8, 3, 16, 16), "Save x.transpose(0, 2, 3, 1)"),
        ((8, 16, 16, 5), "expected channels last, uint8 (N, H, W, 3)"),
        ((8, 2, 16, 16), "expected channels last, uint8 (N, H, W, 3)"),
        ((8, 16, 16, 3, 1), "expected x uint8 (N, H, W, 3)"),
    ],
)
def test_arrays_of_another_shape_are_refused_when_they_are_opened(place, refuse, shape, words):
    np.savez("a.npz", x=np.zeros(shape, np.uint8), y=np.arange(8) % 2)
    refuse(["npz:", "a.npz", words], "npz:a.npz", "--val-split", "0.25")


@cases("kind", ["csv", "txt", "kaggle", "column of splits"])
def test_lists_in_every_usual_form_are_one_data_set(place, both, distill, kind):
    photos("pool", splits=("",))
    files = sorted(Path("pool").rglob("*.png"))
    for number, file in enumerate(files):
        blank = " " if kind == "txt" else ","
        split = "val" if number % 4 == 0 else "train"
        path = f"{file.parent.name}_{file.name}" if kind == "kaggle" else file.relative_to("pool")
        if kind == "kaggle":
            Path("pool/train_images").mkdir(exist_ok=True)
            file.rename(Path("pool/train_images") / path)
        name = {"csv": f"{split}.csv", "txt": f"{split}.txt", "kaggle": f"{split}.csv"}.get(kind, "a.csv")
        line = f"{path}{blank}{file.parent.name}" + (f",{split}" if kind == "column of splits" else "")
        header = {"kaggle": "image_id,label\n", "column of splits": "path,label,split\n"}.get(kind, "")
        with Path("pool", name).open("a") as listing:
            listing.write(("" if listing.tell() else header) + f"{line}\n")
    checked, header = both("pool/a.csv" if kind == "column of splits" else "pool")
    assert classes(checked) == ["ant", "bee"]
    assert (header["train_images"], header["val_images"]) == (12, 4)
    assert "n=4 val images" in distill("eval", "r/best.pth")[0]


def test_a_stream_says_what_is_known_of_it(place, distill):
    pytest.importorskip("webdataset")
    photos(splits=("train",))
    for split in ("train", "validation"):
        Path("shards").mkdir(exist_ok=True)
        with tarfile.open(f"shards/made-{split}-0000.tar", "w") as shard:
            for number, file in enumerate(sorted(Path("photos").rglob("*.png"))):
                shard.add(file, f"{number:04}.png")
                label = Path(f"{number}.cls")
                label.write_text(str(number % 2))
                shard.add(label, f"{number:04}.cls")
    shards = {
        split: {
            "name": split,
            "filenames": [f"made-{split}-0000.tar"],
            "shard_lengths": [16],
            "num_samples": 16,
        }
        for split in ("train", "validation")
    }
    Path("shards/_info.json").write_text(json.dumps({"splits": shards}))
    err = distill(*TRAIN, "--data", "wds/made:shards", "--num-classes", "2", "--output", "r")[1]
    assert "2 classes, images of each not known" in err and "(0)" not in err
    header = json.loads(Path("r/header.json").read_text())
    assert header["smallest_class"] is None and header["train_images"] == 16


@pytest.mark.slow
def test_exports_and_their_measurement_say_the_same(place, distill):
    photos("whole", names=("ant", "bee", "cow", "dog"))
    distill(*TRAIN, "--data", "whole", "--output", "r")
    words = ("--max-drop", "100", "--calib-size", "8", "--overwrite")
    distill("export", "onnx", "--int8", "r/best.pth", *words)
    engine = ("--engine", "r/best.int8.onnx")
    said = "val has no image of bee (3 of 4 classes)"
    for kind in ("folder", "list", "npz"):
        spec = lacking_val(kind)
        assert said in distill("bench", "accuracy", *engine, "--data", spec, code=2)[1]
        assert said in distill("export", "onnx", "--int8", "r/best.pth", "--data", spec, *words, code=2)[1]
        shutil.rmtree("photos")
    spoil(*(f"whole/val/cow/{number}.png" for number in range(8)))
    skip = ("--data", "whole", "--skip-bad-images")
    assert "no image of 'cow' (8) in val" in distill("bench", "accuracy", *engine, *skip, code=2)[1]
    paint("whole/val/cow/0.png", 500)
    assert json.loads(distill("bench", "accuracy", *engine, *skip, "--json")[0])["skipped"] == 7


@pytest.mark.slow
def test_a_run_that_moved_is_exported_as_int8_from_its_own_split(place, distill):
    photos("flat", splits=("",), per_class=16)
    distill(*TRAIN, "--data", "flat", "--val-split", "0.25", "--output", "r")
    shutil.move("r", "moved")
    words = ("--max-drop", "100", "--calib-size", "8", "--json")
    found = json.loads(distill("export", "onnx", "--int8", "moved", *words)[0])
    shutil.move("flat", "elsewhere")
    given = ("--data", "elsewhere", "--calib", "elsewhere", "--overwrite")
    again = json.loads(distill("export", "onnx", "--int8", "moved", *given, *words)[0])
    assert found["parity_images"] == again["parity_images"] == 8
    assert found["fp32_top1_percent"] == again["fp32_top1_percent"]
    measured = ("bench", "accuracy", "--engine", "moved/best.int8.onnx", "--data", "moved/val-split.csv")
    assert "none of its 8 images is there" in distill(*measured, code=2)[1]
    distill("train", "--resume", "moved", "--data", "elsewhere", "--no-report")
    assert "n=8 images" in distill(*measured)[0]
