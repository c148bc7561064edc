"""`photos`: images of three classes; `finished`: a run that was validated on them."""

import pytest
from finished_run import write_photos, write_run


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos")


@pytest.fixture
def finished(tmp_path, photos):
    return write_run(tmp_path / "run", photos)
