"""Classes of a set beside those of a network: matched by name, and what does not fit is named."""

import re
import unicodedata

import numpy as np
import pytest
from PIL import Image

from runtime import ArtifactError, DataError
from runtime.images import ArraySet, FolderSet, open_images
from runtime.images.classes import differences, in_order_of, require_readable_classes


def of(names, labels):
    x = np.arange(len(labels) * 12, dtype=np.uint8).reshape(-1, 2, 2, 3)
    return ArraySet("photos", x, np.array(labels), names)


def refused(kind, known, images, words):
    with pytest.raises(kind, match=re.escape(words)):
        in_order_of(known, "m.onnx", images, "val")


def test_another_order_of_the_same_names_is_brought_into_the_order_of_the_network():
    images = in_order_of(["cow", "ant", "bee"], "m.onnx", of(["ant", "bee", "cow"], [0, 1, 2, 2]), "val")
    assert images.class_names == ["cow", "ant", "bee"]
    assert images.labels.tolist() == [1, 2, 0, 0]
    assert np.asarray(images.image(3)).tolist() == np.arange(36, 48).reshape(2, 2, 3).tolist()


def test_a_class_that_the_images_lack_is_named_with_their_number():
    refused(DataError, ["ant", "bee", "cow"], of(["ant", "cow"], [0, 1]), "val has no image of bee (2 of 3")


def test_a_class_that_the_network_does_not_know_is_named():
    words = "photos: has images of dog, a class that m.onnx does not know. It knows ant, bee"
    refused(DataError, ["ant", "bee"], of(["ant", "bee", "dog"], [0, 1, 2]), words)


def test_both_at_once_is_another_data_set():
    words = "classes differ: bee only in m.onnx, bug only in photos"
    refused(ArtifactError, ["ant", "bee"], of(["ant", "bug"], [0, 1]), words)


def test_names_that_only_differ_in_how_accents_are_stored_are_the_same():
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    images = in_order_of(["ant", composed], "m.onnx", of(["ant", apart], [0, 1]), "val")
    assert images.class_names == ["ant", composed] and images.labels.tolist() == [0, 1]


def test_unknown_classes_are_compared_with_nothing():
    images = of(["x", "y"], [0, 1])
    assert in_order_of(None, "m.onnx", images, "val") is images


def test_a_class_of_a_list_without_a_row_in_the_split_is_missing(tmp_path):
    for number in range(4):
        Image.new("RGB", (2, 2), (number, 0, 0)).save(tmp_path / f"{number}.png")
    rows = "0.png,ant,train\n1.png,bee,train\n2.png,cow,train\n3.png,ant,val\n"
    (tmp_path / "a.csv").write_text("path,label,split\n" + rows)
    val = open_images(str(tmp_path / "a.csv"), "val")
    assert differences(["ant", "bee", "cow"], val) == (["bee", "cow"], [])


@pytest.mark.parametrize("known", [["ant", "bee"], ["bee", "ant"]])
def test_a_class_of_a_list_that_only_the_other_split_has_need_not_be_known(tmp_path, known):
    for number in range(4):
        Image.new("RGB", (2, 2), (number, 0, 0)).save(tmp_path / f"{number}.png")
    rows = "0.png,ant,val\n1.png,bee,val\n2.png,aardvark,train\n3.png,bee,val\n"
    (tmp_path / "a.csv").write_text("path,label,split\n" + rows)
    val = in_order_of(known, "m.onnx", open_images(str(tmp_path / "a.csv"), "val"), "val")
    assert val.class_names == known
    assert [known[label] for label in val.labels] == ["ant", "bee", "bee"]


def test_a_class_of_which_nothing_can_be_read_is_named(tmp_path):
    for name in ("ant", "bee", "cow"):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("RGB", (2, 2), (number, 0, 0)).save(tmp_path / name / f"{number}.png")
    (tmp_path / "ant" / "0.png").write_bytes(b"x")
    images = FolderSet(tmp_path)
    require_readable_classes(images, "train")
    for number in range(3):
        (tmp_path / "cow" / f"{number}.png").write_bytes(b"x")
    with pytest.raises(DataError, match=re.escape("no image of 'cow' (3) in train can be read")):
        require_readable_classes(images, "train")
