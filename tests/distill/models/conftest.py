"""What the tests of the families share. Helpers are fixtures giving functions."""

import pytest
import torch
from stirring import stirred_all


@pytest.fixture(scope="session")
def noise():
    """noise(*shape, seed=0): normal numbers, float32."""
    return lambda *shape, seed=0: torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def stirred():
    """stirred(network, seed=0): every weight and statistic at random, in eval mode."""
    return stirred_all


@pytest.fixture(scope="session")
def share():
    """share(found, expected): the largest difference as a share of the largest value."""
    return lambda found, expected: ((found - expected).abs().max() / expected.abs().max()).item()
