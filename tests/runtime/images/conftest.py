import inspect
import shutil
import sys

import pytest
from PIL import Image


@pytest.fixture(scope="session")
def nested(tmp_path_factory):
    place = tmp_path_factory.mktemp("nested")
    inside = place / ("a/" * 400)
    inside.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(inside / "1.png")
    yield str(place)
    shutil.rmtree(place)


@pytest.fixture
def deep(nested):
    """A folder of 400 folders in one another, with an image in the last one, where a function that calls
    itself for each of them ends: Python's own limit of 1,000 calls is lower meanwhile.
    """
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 250)
    yield nested
    sys.setrecursionlimit(before)
