"""export.int8.pipeline: who judges an int8 graph, and that nothing is ranked on images that are not there."""

from types import SimpleNamespace

import pytest

from export.int8 import pipeline
from export.int8.images import CalibrationImages
from runtime.errors import UsageError


def test_ranking_without_labeled_images_says_what_to_give(preprocess):
    noise = CalibrationImages(preprocess)
    with pytest.raises(UsageError, match="--calib DIR"):
        _ = pipeline.Judge(SimpleNamespace(), noise, SimpleNamespace(), bytes).labels
