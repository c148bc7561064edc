"""Networks whose weights and statistics are random, in eval mode: fresh ones hide what merging, folding and
quantizing do.

In:  a network, a seed.
Out: the same network.
"""

import torch
from torch import nn


def stirred(network: nn.Module, seed: int = 0, weights: bool = False) -> nn.Module:
    """Batch norms and layer scale at random; with `weights` also kernels and matrices, in a size that keeps
    that of a layer's input, so that every weight matters.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(tensor, low, high):
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                random(module.running_mean, -0.2, 0.2)
                random(module.running_var, 0.5, 2.0)
                if module.affine:
                    random(module.weight, 0.5, 1.5)
                    random(module.bias, -0.2, 0.2)
        for name, p in network.named_parameters():
            if name.endswith(("gamma", "beta")):
                random(p, 0.2, 0.5)
            elif weights and p.dim() > 1:
                random(p, -((3 / p[0].numel()) ** 0.5), (3 / p[0].numel()) ** 0.5)
    return network.eval()


def stirred_all(network: nn.Module, seed: int = 0) -> nn.Module:
    """Every weight and statistic at random, biases and the scales of layer norms too."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            low, high = (0.5, 2.0) if name.endswith("running_var") else (-1.0, 1.0)
            scale = tensor[0].numel() ** -0.5 if tensor.dim() > 1 else 1.0
            tensor.copy_((torch.rand(tensor.shape, generator=generator) * (high - low) + low) * scale)
    return network.eval()
