"""For all tests: nothing is kept in the home of whoever runs them."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory):
    """$XDG_CACHE_HOME, also of the processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def exports_once():
    """Within a module that asks for it, each network is exported to ONNX once."""
    from exports_once import remembering

    from export.graph import from_torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(from_torch, "to_onnx", remembering(from_torch.to_onnx))
        yield
