"""distill.run.report.gallery: which images are shown, and how they get into the page."""

import base64
import io

import numpy as np
import pytest
import turned
from PIL import Image

from distill.run.report import gallery
from distill.run.report.predictions import Predictions
from runtime.images import open_images
from runtime.preprocess import Preprocess


def found(loss, index=None):
    count = len(loss)
    zeros = np.zeros(count, int)
    places = np.arange(count) if index is None else np.array(index)
    return Predictions(places, zeros, zeros + 1, np.full(count, 0.25), np.array(loss, float), "")


def test_the_worst_are_those_of_highest_loss_and_at_most_24():
    assert gallery.worst(found([0.1, 3.0, 2.0])).tolist() == [1, 2, 0]
    assert gallery.worst(found(range(100))).tolist() == list(range(99, 75, -1))


def test_chance_takes_each_image_at_most_once_and_the_same_ones_again():
    shown = gallery.by_chance(found(range(100))).tolist()
    assert len(set(shown)) == 24 and shown == gallery.by_chance(found(range(100))).tolist()
    assert sorted(gallery.by_chance(found(range(5))).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("size", "kind", "shown"), [((16, 9), "png", (16, 9)), ((400, 200), "jpeg", (128, 64))]
)
def test_a_thumbnail_is_the_image_in_few_pixels(size, kind, shown):
    source = gallery.thumbnail(Image.new("RGB", size, (200, 10, 10)))
    head, _, content = source.partition(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert head == f"data:image/{kind}" and image.size == shown
    assert np.abs(np.asarray(image.convert("RGB")).mean((0, 1)) - (200, 10, 10)).max() < 3


def test_a_picture_says_label_prediction_and_confidence_and_where_it_cannot_be_read(photos):
    (photos / "val" / "blue" / "1.png").write_bytes(b"x")
    images = open_images(str(photos), "val")
    names = ["blue", "green", "red"]
    one, two = gallery.pictures(images, found([0.5, 0.5], index=[0, 1]), [0, 1], names, Preprocess())
    assert (one.label, one.predicted, one.confidence, one.is_right) == ("blue", "green", 25.0, False)
    assert one.name == "0.png" and one.source.startswith("data:image/png") and one.is_small
    assert two.source == "" and two.name == "1.png"


def test_pictures_stand_upright_where_the_student_saw_them_so(tmp_path):
    for label in ("ant", "bee"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "1.png").write_bytes(turned.png(turned.STORED, turned.tiff(6)))
    images = open_images(str(tmp_path), "val")
    for spec, shown in ((Preprocess(exif="apply"), turned.UPRIGHT[6]), (Preprocess(), turned.STORED)):
        (picture,) = gallery.pictures(images, found([0.5]), [0], images.class_names, spec)
        content = base64.b64decode(picture.source.partition(",")[2])
        np.testing.assert_array_equal(Image.open(io.BytesIO(content)), shown)
