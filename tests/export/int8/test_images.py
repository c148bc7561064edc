"""export.int8.images: which images calibrate and which choose, apart from each other and from evaluation."""

import dataclasses

import numpy as np
import pytest

from export.int8 import images
from export.options import Int8Options
from runtime.errors import UsageError
from runtime.images import open_images
from runtime.records import Quantization

OPTIONS = Int8Options(calib_size=48, calib_cache="none")


@pytest.fixture(scope="module")
def calibration(preprocess):
    return images.choose(
        OPTIONS, open_images("digits", "train"), preprocess, open_images("digits", "val"), seed=0
    )


def test_calibration_images_and_selection_images_are_apart_and_named_with_hashes(calibration):
    assert len(calibration.used) == 48 and len(calibration.selection) == 512
    assert not set(calibration.used) & set(calibration.selection)
    record = calibration.to_record()
    digits = open_images("digits", "train")
    assert [sha for _, sha in record.images] == [digits.item_sha256(int(i)) for i in calibration.used]
    assert record.selection == 512 and not record.not_for_accuracy


def test_noise_is_reproducible_and_marked(preprocess):
    noise = images.choose(OPTIONS, None, preprocess, open_images("digits", "val"), seed=3)
    first, again = list(noise.batches()), list(noise.batches())
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True)) and first[0].shape == (
        4,
        3,
        32,
        32,
    )
    assert noise.to_record() == Quantization(images=[], data="random", not_for_accuracy=True, seed=3)


def test_images_that_are_evaluated_are_refused_as_selection_images_too(preprocess):
    digits = open_images("digits", "val")
    with pytest.raises(UsageError, match="also in --data"):
        images.choose(dataclasses.replace(OPTIONS, calib_size=4), digits, preprocess, digits, seed=0)
