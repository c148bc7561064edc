"""Gradients that are averaged over the processes while they are computed: torch's DistributedDataParallel.

In:  the networks that train, and the function that makes a loss of them.
Out: the same function as a module, whose backward pass averages the gradients.
Elsewhere: the step (distill.training.trainer).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel


class _Step(nn.Module):
    """Networks whose forward pass is the losses of a batch."""

    def __init__(self, networks: Sequence[nn.Module], losses: Callable[..., Any]) -> None:
        super().__init__()
        self.networks, self.losses = nn.ModuleList(networks), losses

    def forward(self, *given: Any) -> Any:
        return self.losses(*given)


def averaged(
    networks: Sequence[nn.Module], losses: Callable[..., Any], *, compress: str, all_used: bool
) -> DistributedDataParallel:
    """networks: all that has gradients; losses: called with what the result is called with; compress: none or
    bf16, in which gradients travel; all_used: whether every parameter has a part in the loss.
    """
    step = DistributedDataParallel(
        _Step(networks, losses), gradient_as_bucket_view=True, find_unused_parameters=not all_used
    )
    if compress == "bf16":
        step.register_comm_hook(None, default_hooks.bf16_compress_hook)
    return step


@contextlib.contextmanager
def without_averaging(step: DistributedDataParallel | None, whether: bool) -> Iterator[None]:
    """Only add gradients up inside, for a batch that is not the last one of its step."""
    if step is None or not whether:
        yield
        return
    with step.no_sync():
        yield


def leaves_out(networks: Sequence[nn.Module], loss: Callable[[], Tensor]) -> bool:
    """Does a weight of the networks have no part in the loss? Statistics and generators are as they were, and
    there are no gradients.
    """
    buffers = [buffer for network in networks for buffer in network.buffers()]
    before = [buffer.clone() for buffer in buffers]
    weights = [each for network in networks for each in network.parameters() if each.requires_grad]
    devices = {each.device for each in weights if each.device.type == "cuda"}
    with torch.random.fork_rng(list(devices)):
        loss().backward()
    found = any(weight.grad is None for weight in weights)
    for weight in weights:
        weight.grad = None
    with torch.no_grad():
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
    return found
