"""Memory formats: of one tensor, and of a whole network.

In:  a tensor; a network, the device it computes on, and the format that the user asks for.
Out: torch.contiguous_format or torch.channels_last.
Elsewhere: the rule for one layer (rule.py).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import rule


def format_of(x: Tensor) -> torch.memory_format:
    """Channels-last for maps that are that and not contiguous too, else contiguous."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


def network_format(network: nn.Module, device: torch.device, channels_last: bool) -> torch.memory_format:
    """The format for a network's weights and images: channels-last where that is asked for, unless the
    network has large depthwise kernels and computes on CUDA, where contiguous maps are faster for it.
    """
    kernels = [
        (layer.weight.shape[2], layer.weight.shape[3])
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1
    ]
    contiguous = not channels_last or rule.wants_contiguous(device.type, kernels)
    return torch.contiguous_format if contiguous else torch.channels_last
