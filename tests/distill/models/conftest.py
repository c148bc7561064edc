"""What the tests of the families share. Helpers are fixtures giving functions."""

import pytest
import torch


@pytest.fixture(scope="session")
def noise():
    """noise(*shape, seed=0): normal numbers, float32."""
    return lambda *shape, seed=0: torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def stirred():
    """stirred(network, seed=0): every weight and statistic at random, in eval mode; fresh norms and layer
    scale hide errors.
    """

    def stir(network, seed=0):
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                low, high = (0.5, 2.0) if name.endswith("running_var") else (-1.0, 1.0)
                scale = tensor[0].numel() ** -0.5 if tensor.dim() > 1 else 1.0
                tensor.copy_((torch.rand(tensor.shape, generator=generator) * (high - low) + low) * scale)
        return network.eval()

    return stir


@pytest.fixture(scope="session")
def share():
    """share(found, expected): the largest difference as a share of the largest value."""
    return lambda found, expected: ((found - expected).abs().max() / expected.abs().max()).item()
