"""What the tests of several processes share: processes that are forked together, a place for their runs."""

import os

import pytest
from forked import forking
from small_runs import Place
from tiny_training import write_noise
from torch.distributed import TCPStore


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """start(size, *argvs) -> a `Group` whose processes run these commands one after the other."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    with forking(tmp_path_factory.mktemp("logs")) as start:
        yield start


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A `Place` with 100 training images: 12 steps in two epochs."""
    root = tmp_path_factory.mktemp("processes")
    write_noise(root / "set", train=100, val=21)
    return Place(root)


@pytest.fixture
def connect():
    """Opens a connection to a store."""
    kept = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    return lambda: TCPStore("127.0.0.1", kept.port, is_master=False)
