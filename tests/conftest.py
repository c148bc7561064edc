"""For all tests: nothing is kept in the home of whoever runs them; networks are exported once where that is
not what is tested.
"""

import gc
import os
from collections import Counter

import exports_once as graphs
import pytest


def pytest_configure(config):
    """With several workers, files begin in the order below and not by their number of tests."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """The files with the most slow tests first, so that at the end no worker waits for one of them."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish():
    """What was imported by now stays: no collection of garbage looks at it again. With torch and all tests in
    memory one takes half a second otherwise, and each measurement begins with one.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory):
    """$XDG_CACHE_HOME, also of the processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def graphs_of_all_workers(tmp_path_factory):
    """The folder of tests/helpers/exports_once.py, one for all workers of this run."""
    base = tmp_path_factory.getbasetemp()
    graphs.folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "graphs"
    graphs.folder.mkdir(exist_ok=True)


@pytest.fixture(scope="module")
def exports_once():
    """Within a module that asks for it, each network is exported to ONNX once."""
    from export.graph import from_torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(from_torch, "to_onnx", graphs.remembering(from_torch.to_onnx))
        yield


@pytest.fixture
def with_report():
    """For a test of a trained run's page where `without_report` is asked for."""


@pytest.fixture
def without_report(request, monkeypatch):
    """Trainings end without their page: to draw it takes longer than the smallest trainings do."""
    if "with_report" not in request.fixturenames:
        from distill.run import job

        monkeypatch.setattr(job.page, "after_training", lambda *_: None)
