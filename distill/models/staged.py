"""timm's interface for networks of stages, so that a family writes only its layers.

In:  what a family builds: stages, a norm, a head, and what is before every stage.
Out: forward, maps of the stages, pooling, another classifier, gradient checkpointing, as timm's own networks
have them.
Elsewhere: the families (slak.py, replknet.py, unireplknet.py); the large depthwise convolution
(depthwise.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers import trunc_normal_
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn import functional as F

from runtime.errors import UsageError

POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "avg": lambda x: x.mean((2, 3)),
    "max": lambda x: x.amax((2, 3)),
    "avgmax": lambda x: (x.mean((2, 3)) + x.amax((2, 3))) / 2,
    "": lambda x: x,
}
"""(N, C, H, W) -> (N, C); the empty name leaves the map as it is, for a network without classifier."""


class Stage(nn.Sequential):
    """Blocks in a row. With grad_checkpointing only what enters a block is kept for the backward pass; the
    rest is recomputed.
    """

    grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint_seq(self, x)
        return super().forward(x)


class StagedNet(nn.Module):
    """Stages, each behind `enter`, then pooling, norm and classifier (norm_first: norm, pooling, classifier).

    A subclass calls this constructor first and then sets, in the order of its published names, `stages` (a
    ModuleList whose modules end a stage), `norm` and `head`. stem_stride: pixels per position of the first
    stage's map; every later stage doubles it. Raises UsageError for an unknown global_pool.
    """

    norm_first = False
    stages: nn.ModuleList
    norm: nn.Module
    head: nn.Module

    def __init__(
        self,
        in_chans: int,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        channels: Sequence[int],
        stem_stride: int,
    ) -> None:
        super().__init__()
        self.in_chans, self.num_classes, self.drop_rate = in_chans, num_classes, drop_rate
        self.global_pool = _known_pool(global_pool, num_classes)
        self.num_features = self.head_hidden_size = channels[-1]
        self.feature_info = [
            {"num_chs": c, "reduction": stem_stride * 2**i, "module": f"stages.{i}"}
            for i, c in enumerate(channels)
        ]

    def enter(self, index: int, x: Tensor) -> Tensor:
        """What is between the stage before (or the image) and stage `index`."""
        raise NotImplementedError

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory in training: see Stage."""
        for module in self.modules():
            if isinstance(module, Stage):
                module.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head; num_classes 0 removes it. global_pool: one of POOLS, None keeps it."""
        self.global_pool = _known_pool(self.global_pool if global_pool is None else global_pool, num_classes)
        self.num_classes = num_classes
        self.head = classifier(self.num_features, num_classes).to(next(self.parameters()))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps of the stages in `indices` (an int: the last so many; None: all); unless intermediates_only,
        what `forward_features` gives comes first (with stop_early: the last map that was computed).

        norm: the last stage's map with the final norm, where that comes before pooling. Raises UsageError for
        another output_fmt than NCHW.
        """
        if output_fmt != "NCHW":
            raise UsageError(f"output_fmt {output_fmt!r}: {type(self).__name__} gives NCHW")
        taken, last = feature_take_indices(len(self.stages), indices)
        final, maps = len(self.stages) - 1, []
        for index in range(last + 1 if stop_early or intermediates_only else final + 1):
            x = self.stages[index](self.enter(index, x))
            normed = self.norm(x) if self.norm_first and index == final else x
            if index in taken:
                maps.append(normed if norm else x)
        return maps if intermediates_only else (normed, maps)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the maps of `indices` do not need; returns these indices, counted from the
        first stage.
        """
        taken, last = feature_take_indices(len(self.stages), indices)
        shorter = last + 1 < len(self.stages)
        self.stages = self.stages[: last + 1]
        if prune_norm or shorter:
            self.norm = nn.Identity()
        if prune_head or shorter:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
            self.reset_classifier(0, "")
        return taken

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map (N, num_features, H / stride, W / stride), normalized where norm comes
        before pooling.
        """
        for index, stage in enumerate(self.stages):
            x = stage(self.enter(index, x))
        return self.norm(x) if self.norm_first else x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = POOLS[self.global_pool](x)
        if self.global_pool and not self.norm_first:
            x = self.norm(x)
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


class DownsampledNet(StagedNet):
    """A StagedNet of ConvNeXt's plan: `downsample_layers[i]`, which a subclass sets too, leads into stage i;
    [0] is the stem.
    """

    downsample_layers: nn.ModuleList

    def enter(self, index: int, x: Tensor) -> Tensor:
        return self.downsample_layers[index](x)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        super().reset_classifier(num_classes, global_pool)
        init_truncated_normal(self.head)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        taken = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        self.downsample_layers = self.downsample_layers[: len(self.stages)]
        return taken

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameters in the order of depth, for layer-wise learning rates; what enters a stage is in its
        first block.
        """
        blocks = (
            r"^(?:stages|downsample_layers)\.(\d+)"
            if coarse
            else [
                (r"^downsample_layers\.(\d+)", (0,)),
                (r"^stages\.(\d+)\.(\d+)", None),
                (r"^norm", (99999,)),
            ]
        )
        return {"stem": r"^downsample_layers\.0", "blocks": blocks}


def init_truncated_normal(module: nn.Module) -> None:
    """Initialization of SLaK's and UniRepLKNet's authors: normal weights of standard deviation 0.02, cut at
    2, zero biases.
    """
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def classifier(channels: int, num_classes: int) -> nn.Module:
    """A linear layer, or nothing for 0 classes."""
    return nn.Linear(channels, num_classes) if num_classes else nn.Identity()


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """For every stage the rates of its blocks: from 0 in the network's first block to `rate` in its last."""
    rates = torch.linspace(
        0, rate, sum(depths), device="cpu"
    ).tolist()  # also where the network is built on the meta device
    return [rates[sum(depths[:i]) : sum(depths[: i + 1])] for i in range(len(depths))]


def per_stage(
    kernel_sizes: int | Sequence[int], depths: Sequence[int], channels: Sequence[int], small_kernel: int
) -> list[int]:
    """The kernel size of every stage. Raises UsageError for lists of different length, and for even sizes
    that are used.
    """
    kernels = [kernel_sizes] * len(depths) if isinstance(kernel_sizes, int) else list(kernel_sizes)
    if not len(kernels) == len(depths) == len(channels) or not depths:
        raise UsageError(
            f"depths {list(depths)}, channels {list(channels)}, kernel_sizes {kernels}: expected one entry"
            " per stage in each"
        )
    small = [small_kernel] if 0 != small_kernel < max(kernels) else []
    if even := [k for k in [*kernels, *small] if k < 1 or k % 2 == 0]:
        raise UsageError(f"kernel sizes {even}: expected odd numbers, which keep the size of a map")
    return kernels


def _known_pool(name: str, num_classes: int) -> str:
    if name not in POOLS:
        raise UsageError(f"global_pool {name!r}: expected one of {', '.join(map(repr, POOLS))}")
    if not name and num_classes:
        raise UsageError(
            "global_pool '' keeps the map, which a classifier cannot read. Give num_classes=0 with it, or"
            " another"
        )
    return name
