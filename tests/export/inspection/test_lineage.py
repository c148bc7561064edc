"""export.inspection.lineage: recorded hashes against ancestors that are there, changed, renamed, given by
flag or gone.
"""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.checks import samples
from export.inspection import lineage
from export.inspection.lineage import ABSENT, DIFFERS, MATCHES, Given
from runtime.errors import DataError, UsageError
from runtime.images import FolderSet, open_images


def sha(content):
    return hashlib.sha256(content).hexdigest()


def status(found):
    return {ancestor.what: ancestor.status for ancestor in found}


@pytest.fixture
def family(tmp_path):
    """An artifact's folder with checkpoint, teacher and fp32 file beside it, and what the artifact recorded
    about them.
    """
    for name in ("best.pth", "teacher.pth", "best.onnx", "best.int8.onnx"):
        (tmp_path / name).write_bytes(name.encode())
    return {
        "checkpoint": {"file": "best.pth", "sha256": sha(b"best.pth")},
        "teacher": {"model": "resnet56", "file": "/home/ann/runs/teacher.pth", "sha256": sha(b"teacher.pth")},
        "fp32_onnx": {"sha256": sha(b"best.onnx")},
    }


@pytest.fixture
def check(tmp_path):
    def run(recorded, quantization=None, **given):
        return lineage.check(recorded, quantization, tmp_path / "best.int8.onnx", Given(**given))

    return run


def test_ancestors_beside_the_file_are_hashed_again(family, check):
    found = check(family)
    assert status(found) == {"checkpoint": MATCHES, "teacher": MATCHES, "fp32 ONNX": MATCHES}
    assert [Path(ancestor.looked_at).name for ancestor in found] == ["best.pth", "teacher.pth", "best.onnx"]


@pytest.mark.parametrize(("name", "what"), [("best.pth", "checkpoint"), ("teacher.pth", "teacher")])
def test_one_changed_byte_in_an_ancestor_is_found(family, check, tmp_path, name, what):
    (tmp_path / name).write_bytes(name.replace("b", "d").replace("e", "c").encode())
    assert status(check(family)) == {"checkpoint": MATCHES, "teacher": MATCHES, "fp32 ONNX": MATCHES} | {
        what: DIFFERS
    }


def test_a_file_elsewhere_is_only_looked_at_where_it_is_asked_for(
    family, check, tmp_path, tmp_path_factory, monkeypatch
):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    (elsewhere / "best.pth").write_bytes(b"another training")
    assert status(check(family))["checkpoint"] == MATCHES  # what is beside the artifact
    (tmp_path / "best.pth").unlink()
    (elsewhere / "best.pth").write_bytes(b"best.pth")
    assert status(check(family))["checkpoint"] == ABSENT
    assert status(check(family, follow=True))["checkpoint"] == MATCHES
    (elsewhere / "best.pth").write_bytes(b"another training")
    found = next(ancestor for ancestor in check(family, follow=True) if ancestor.what == "checkpoint")
    assert found.status == ABSENT and found.note == "best.pth in the working folder is another one"


def test_a_link_beside_the_file_does_not_lead_elsewhere(family, check, tmp_path, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (tmp_path / "best.pth").rename(elsewhere / "best.pth")
    (tmp_path / "best.pth").symlink_to(elsewhere / "best.pth")
    assert status(check(family))["checkpoint"] == ABSENT
    assert status(check(family, follow=True))["checkpoint"] == MATCHES


def test_ancestors_that_are_gone_are_not_at_hand(family, check, tmp_path):
    for name in ("best.pth", "teacher.pth", "best.onnx"):
        (tmp_path / name).unlink()
    assert set(status(check(family)).values()) == {ABSENT}


def test_an_fp32_file_beside_may_be_another_one_unless_it_was_named(family, check, tmp_path):
    """Its name is not recorded: an export with other checks has the same name, which does
    not contradict.
    """
    (tmp_path / "best.onnx").write_bytes(b"exported again")
    (found,) = [ancestor for ancestor in check(family) if ancestor.what == "fp32 ONNX"]
    assert (found.status, found.looked_at) == (
        ABSENT,
        None,
    ) and "best.onnx beside it is another one" in found.note
    assert status(check(family, fp32=tmp_path / "best.onnx"))["fp32 ONNX"] == DIFFERS


def test_a_named_ancestor_is_taken_in_place_of_the_one_beside(family, check, tmp_path):
    (tmp_path / "moved.pth").write_bytes(b"best.pth")
    (tmp_path / "best.pth").write_bytes(b"of another run")
    assert status(check(family, checkpoint=tmp_path / "moved.pth"))["checkpoint"] == MATCHES
    assert status(check(family))["checkpoint"] == DIFFERS
    with pytest.raises(UsageError, match=r"gone\.pth: no such file \(given as the teacher\)"):
        check(family, teacher=tmp_path / "gone.pth")


def test_what_recorded_nothing_has_no_ancestors(check):
    assert (
        check({}) == []
        and check({"teacher": None, "data": None, "checkpoint": {"file": "a", "sha256": None}}) == []
    )


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (8, 8), (40 * i, 90, 7 if name == "cat" else 200)).save(folder / f"{i}.png")
    return root


@pytest.fixture
def recorded(photos):
    """Lineage and quantization as training and export write them."""
    train, val = FolderSet(photos / "train"), FolderSet(photos / "val")
    return (
        {
            "data": {
                "train_spec": "photos",
                "val_spec": "photos",
                "train_sha256": train.fingerprint(),
                "val_sha256": val.fingerprint(),
                "evaluation": {"spec": "val", "images": 6, "sha256": val.fingerprint()},
            }
        },
        {"images": samples.listing(train, [0, 2, 5]), "data_sha256": train.fingerprint()},
    )


def test_data_beside_the_file_and_data_given_are_compared(recorded, check, photos, tmp_path):
    found = status(check(*recorded))  # photos is beside the artifact; "val" does not
    assert found == {
        "training images": MATCHES,
        "validation images": MATCHES,
        "evaluation images": ABSENT,
        "calibration set": MATCHES,
        "3 calibration images": MATCHES,
    }
    photos.rename(tmp_path / "elsewhere")
    assert set(status(check(*recorded)).values()) == {ABSENT}
    place = str(tmp_path / "elsewhere")
    assert set(status(check(*recorded, data=place, calib=place)).values()) == {MATCHES}


def test_a_changed_byte_in_a_calibration_image_is_found_by_name(recorded, check, photos):
    image = photos / "train" / "cat" / "2.png"
    content = bytearray(image.read_bytes())
    content[-1] ^= 1
    image.write_bytes(content)
    (found,) = [ancestor for ancestor in check(*recorded) if ancestor.what == "3 calibration images"]
    assert found.status == DIFFERS and found.note == "train/cat/2.png has another content"
    image.unlink()
    found = {ancestor.what: ancestor for ancestor in check(*recorded)}
    assert found["3 calibration images"].note == "train/cat/2.png is not there"
    assert found["training images"].status == found["calibration set"].status == DIFFERS


def test_an_image_that_did_not_calibrate_may_change_its_bytes_but_not_its_class(recorded, check, photos):
    Image.new("RGB", (8, 8)).save(photos / "train" / "cat" / "1.png")
    assert (
        DIFFERS not in status(check(*recorded)).values()
    )  # a folder's fingerprint is of names and labels, and says so
    (note,) = {ancestor.note for ancestor in check(*recorded) if ancestor.what == "training images"}
    assert note == "classes, file names and labels"
    (photos / "val" / "cat" / "1.png").rename(photos / "val" / "dog" / "9.png")
    assert status(check(*recorded))["validation images"] == DIFFERS


def test_a_set_need_not_be_both_validation_and_evaluation(recorded, check, tmp_path, photos):
    about, how = recorded
    about["data"]["evaluation"]["sha256"] = "00" * 32
    found = {ancestor.what: ancestor for ancestor in check(about, how, data=str(photos))}
    assert found["validation images"].status == MATCHES
    assert found["evaluation images"].status == ABSENT and "is another one" in found["evaluation images"].note


def test_arrays_are_compared_by_their_pixels(check, tmp_path):
    digits = open_images("digits", "train")
    np.savez(
        tmp_path / "train.npz", x=digits.x[:50], y=digits.labels[:50], class_names=np.arange(10).astype(str)
    )
    images = open_images(f"npz:{tmp_path / 'train.npz'}", "train")
    about = {"data": {"train_spec": "npz:train.npz", "train_sha256": images.fingerprint()}}
    how = {"images": samples.listing(images, [3, 49])}
    assert how["images"][0][0] == "train.npz[3]"
    assert status(check(about, how)) == {"training images": MATCHES, "2 calibration images": MATCHES}
    x = digits.x[:50].copy()
    x[49, 5, 5, 0] ^= 1
    np.savez(tmp_path / "train.npz", x=x, y=digits.labels[:50], class_names=np.arange(10).astype(str))
    assert status(check(about, how)) == {"training images": DIFFERS, "2 calibration images": DIFFERS}


def test_the_bundled_digits_are_always_at_hand(check):
    train, val = open_images("digits", "train"), open_images("digits", "val")
    about = {
        "data": {
            "train_spec": "digits",
            "train_sha256": train.fingerprint(),
            "evaluation": {"spec": val.name, "sha256": val.fingerprint()},
        }
    }
    assert status(check(about, {"images": samples.listing(train, [1])})) == {
        "training images": MATCHES,
        "evaluation images": MATCHES,
        "1 calibration images": MATCHES,
    }


def test_given_data_that_cannot_be_opened_is_an_error_and_recorded_data_is_not(
    recorded, check, photos, tmp_path
):
    with pytest.raises(DataError, match="no such folder"):
        check(*recorded, data=str(tmp_path / "gone"))
    for image in photos.rglob("*.png"):
        image.unlink()
    assert set(status(check(*recorded)).values()) == {ABSENT}


def test_a_changed_byte_in_an_image_it_was_judged_on_is_found(recorded, check, photos):
    about, how = recorded
    val = FolderSet(photos / "val")
    digest = samples.content(val, samples.choose(val.labels, 4, 3))
    about["data"]["evaluation"]["judged_on"] = {"images": 4, "seed": 3, "sha256": digest}
    assert status(check(about, how))["4 evaluated images"] == ABSENT
    place = str(photos)
    assert status(check(about, how, data=place))["4 evaluated images"] == MATCHES
    chosen = set(samples.choose(val.labels, 4, 3).tolist())
    for index in range(6):
        path, before = val.files[index], val.files[index].read_bytes()
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        assert (status(check(about, how, data=place))["4 evaluated images"] == DIFFERS) == (index in chosen)
        path.write_bytes(before)
