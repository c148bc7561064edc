"""Batch norm whose statistics are those of the images of all processes.

In:  a network.
Out: the same with synchronized batch norms: torch's on GPUs, and on CPUs, where torch has none, the same
     formula over gloo.
Elsewhere: the flag (distill.recipe.groups), the step (distill.training.trainer).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.layers.norm_act import SyncBatchNormAct, convert_sync_batchnorm
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import together


def synchronized(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with its batch norms replaced; weights and the names in its state dict stay."""
    found: nn.Module = convert_sync_batchnorm(network)
    if device.type != "cuda":
        for each in found.modules():
            if isinstance(each, nn.SyncBatchNorm):
                cast(Any, each).__class__ = _ActOnCpu if isinstance(each, SyncBatchNormAct) else _OnCpu
    return found


class _Summed(torch.autograd.Function):
    """The sum over the processes, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total


def _summed(values: Tensor) -> Tensor:
    return cast(Tensor, _Summed.apply(values))


class _OnCpu(_BatchNorm):
    """Like torch's SyncBatchNorm, and not of its class, which DistributedDataParallel refuses on CPUs."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any shape with channels, as torch's."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or together.size() == 1:
            return super().forward(x)
        axes, shape = [0, *range(2, x.ndim)], (1, -1, *[1] * (x.ndim - 2))
        images = x.new_full((1,), x.numel() // x.shape[1])
        total, count = _summed(torch.cat([x.sum(axes), images])).split([x.shape[1], 1])
        mean = total / count
        centered = x - mean.view(shape)
        variance = _summed(centered.square().sum(axes)) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1).clamp_min(1))
        normalized = centered * (variance + self.eps).rsqrt().view(shape)
        if self.weight is None:
            return normalized
        return normalized * self.weight.view(shape) + self.bias.view(shape)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """Put a batch into the running statistics."""
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1 / max(int(self.num_batches_tracked or 0), 1)
        if self.running_mean is not None and self.running_var is not None:
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
            self.running_var.lerp_(variance.to(self.running_var.dtype), share)


class _ActOnCpu(_OnCpu):
    """The same with the activation that timm's layer has behind its norm."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        for name in ("drop", "act"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x
