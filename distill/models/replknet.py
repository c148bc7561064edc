"""RepLKNet (Ding et al. 2022, arXiv:2203.06717): 31 x 31 depthwise kernels with a 5 x 5 one beside them.

In:  (N, 3, H, W), any size; on images of 32 x 32 take stem_stride 1 or 2.
Out: logits (N, num_classes). State-dict names are those of the published files, in training and in merged
form.
Elsewhere: timm's interface (staged.py), the large convolution (depthwise.py), merging a whole network
(merge.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from timm.layers import DropPath
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from runtime.errors import UsageError

from .depthwise import DepthwiseConv2d
from .merge import BatchNorm, assign, folded
from .staged import Stage, StagedNet, classifier, drop_path_rates, per_stage


def named(**layers: nn.Module | None) -> nn.Sequential:
    """A Sequential of the layers that are not None, under these names."""
    sequence = nn.Sequential()
    for name, layer in layers.items():
        if layer is not None:
            sequence.add_module(name, layer)
    return sequence


def depthwise_bn(channels: int, kernel_size: int | tuple[int, int], bn: bool = True) -> nn.Sequential:
    """A depthwise convolution without bias, and batch norm."""
    return named(
        conv=DepthwiseConv2d(channels, kernel_size, bias=False), bn=nn.BatchNorm2d(channels) if bn else None
    )


def convolution(branch: nn.Sequential) -> nn.Conv2d:
    """The convolution of a branch that `named` made."""
    layer = branch.get_submodule("conv")
    assert isinstance(layer, nn.Conv2d), layer
    return layer


def kernel_and_bias(branch: nn.Sequential) -> tuple[Tensor, Tensor]:
    """(weight, bias) of the one convolution that a `depthwise_bn` amounts to in eval mode, in float64."""
    conv, bn = convolution(branch), dict(branch.named_children()).get("bn")
    if isinstance(bn, BatchNorm):
        return folded(conv.weight, None, bn)
    weight = conv.weight.detach().double()
    return weight.clone(), weight.new_zeros(len(weight))


def add_at_center(kernel: Tensor, small: Tensor) -> None:
    """Add a kernel to the middle of a larger one, in place: around the same pixel both then look."""
    top, left = ((a - b) // 2 for a, b in zip(kernel.shape[2:], small.shape[2:], strict=True))
    kernel[:, :, top : top + small.shape[2], left : left + small.shape[3]] += small


class LargeKernel(nn.Module):
    """A K x K depthwise convolution plus a small one, each with batch norm; one K x K convolution after
    `reparameterize`.

    small_kernel: side of the small one, at most kernel_size; 0 leaves it out. bn: without it the sum of the
    bare convolutions. deploy: build the merged form. Raises UsageError for a small kernel that is the larger
    one.
    """

    def __init__(
        self, channels: int, kernel_size: int, small_kernel: int = 5, bn: bool = True, deploy: bool = False
    ) -> None:
        super().__init__()
        self.lkb_origin: nn.Sequential | None = None
        self.small_conv: nn.Sequential | None = None
        self.lkb_reparam: nn.Conv2d | None = None
        if small_kernel > kernel_size:
            raise UsageError(
                f"small_kernel {small_kernel} is larger than the kernel of {kernel_size} beside it; expected "
                f"{kernel_size} at most, or 0 for none"
            )
        if deploy:
            self.lkb_reparam = DepthwiseConv2d(channels, kernel_size)
            return
        self.lkb_origin = depthwise_bn(channels, kernel_size, bn)
        if small_kernel:
            self.small_conv = depthwise_bn(channels, small_kernel, bn)

    def forward(self, x: Tensor) -> Tensor:
        if self.lkb_reparam is not None:
            return self.lkb_reparam(x)
        assert self.lkb_origin is not None  # one of the two forms is built
        y = self.lkb_origin(x)
        return y if self.small_conv is None else y + self.small_conv(x)

    @torch.no_grad()
    def reparameterize(self) -> None:
        """Merge in place: batch norm folded, the small kernel added to the center of the large one."""
        if self.lkb_origin is None:
            return
        kernel, bias = kernel_and_bias(self.lkb_origin)
        if self.small_conv is not None:
            small, shift = kernel_and_bias(self.small_conv)
            add_at_center(kernel, small)
            bias += shift
        # the convolution that is there keeps device, precision and padding
        self.lkb_reparam = convolution(self.lkb_origin)
        assign(self.lkb_reparam, kernel, bias)
        self.lkb_origin = self.small_conv = None


class RepLKBlock(nn.Module):
    """Batch norm, 1 x 1 convolution, large kernel, 1 x 1 convolution; a shortcut around."""

    def __init__(
        self, channels: int, inner: int, kernel_size: int, small_kernel: int, drop_path: float, deploy: bool
    ) -> None:
        super().__init__()
        self.pw1 = conv_bn(channels, inner, 1, relu=True)
        self.pw2 = conv_bn(inner, channels, 1)
        self.large_kernel = LargeKernel(inner, kernel_size, small_kernel, deploy=deploy)
        self.prelkb_bn = nn.BatchNorm2d(channels)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.large_kernel(self.pw1(self.prelkb_bn(x)))
        return x + self.drop_path(self.pw2(F.relu(y)))


class ConvFFN(nn.Module):
    """Batch norm and two 1 x 1 convolutions with GELU between; a shortcut around."""

    def __init__(self, channels: int, inner: int, drop_path: float) -> None:
        super().__init__()
        self.preffn_bn = nn.BatchNorm2d(channels)
        self.pw1 = conv_bn(channels, inner, 1)
        self.pw2 = conv_bn(inner, channels, 1)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.pw2(F.gelu(self.pw1(self.preffn_bn(x)))))


class RepLKNetStage(nn.Module):
    """Pairs of a RepLKBlock and a ConvFFN, both with the pair's drop path."""

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        small_kernel: int,
        dw_ratio: float,
        ffn_ratio: float,
        drop_path: Sequence[float],
        deploy: bool,
    ) -> None:
        super().__init__()
        self.blocks = Stage()
        for rate in drop_path:
            self.blocks.append(
                RepLKBlock(channels, int(channels * dw_ratio), kernel_size, small_kernel, rate, deploy)
            )
            self.blocks.append(ConvFFN(channels, int(channels * ffn_ratio), rate))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class RepLKNet(StagedNet):
    """A stem of four convolutions, stages of `depths` pairs of blocks, a transition of stride 2 between
    stages.

    kernel_sizes: one per stage, or one for all. small_kernel: the parallel one's side, 0 for none. channels:
    of every stage. dw_ratio, ffn_ratio: width of the large convolution and of the FFN, in channels of the
    stage. drop_rate is before the classifier, drop_path_rate is reached in the last block. stem_stride: 4, or
    2 and 1 for small images. deploy: the merged form. Raises UsageError for sizes that do not fit together.
    """

    norm_first = True

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        depths: Sequence[int] = (2, 2, 18, 2),
        channels: Sequence[int] = (128, 256, 512, 1024),
        kernel_sizes: int | Sequence[int] = (31, 29, 27, 13),
        small_kernel: int = 5,
        dw_ratio: float = 1.0,
        ffn_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        stem_stride: int = 4,
        deploy: bool = False,
    ) -> None:
        kernels = per_stage(kernel_sizes, depths, channels, small_kernel)
        if stem_stride not in (1, 2, 4):
            raise UsageError(f"stem_stride {stem_stride}: expected 4, or 2 or 1 for small images")
        super().__init__(in_chans, num_classes, global_pool, drop_rate, channels, stem_stride)
        first, second = {1: (1, 1), 2: (2, 1), 4: (2, 2)}[stem_stride]
        width = channels[0]
        self.stem = nn.ModuleList(
            [
                conv_bn(in_chans, width, 3, first, relu=True),
                conv_bn(width, width, 3, groups=width, relu=True),
                conv_bn(width, width, 1, relu=True),
                conv_bn(width, width, 3, second, groups=width, relu=True),
            ]
        )
        self.stages, self.transitions = nn.ModuleList(), nn.ModuleList()
        for c, kernel, rates in zip(channels, kernels, drop_path_rates(drop_path_rate, depths), strict=True):
            self.stages.append(RepLKNetStage(c, kernel, small_kernel, dw_ratio, ffn_ratio, rates, deploy))
        for inputs, c in pairwise(channels):
            self.transitions.append(
                nn.Sequential(conv_bn(inputs, c, 1, relu=True), conv_bn(c, c, 3, 2, groups=c, relu=True))
            )
        self.norm = nn.BatchNorm2d(channels[-1])
        self.head = classifier(channels[-1], num_classes)

    def enter(self, index: int, x: Tensor) -> Tensor:
        if index:
            return self.transitions[index - 1](x)
        for layer in self.stem:
            x = layer(x)
        return x

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        taken = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        self.transitions = self.transitions[: len(self.stages) - 1]
        return taken

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameters in the order of depth, for layer-wise learning rates; a transition comes after the
        blocks before it.
        """
        blocks = (
            r"^(?:stages|transitions)\.(\d+)"
            if coarse
            else [
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^transitions\.(\d+)", (99998,)),
                (r"^norm", (99999,)),
            ]
        )
        return {"stem": r"^stem", "blocks": blocks}


def conv_bn(
    inputs: int, outputs: int, kernel_size: int, stride: int = 1, groups: int = 1, relu: bool = False
) -> nn.Sequential:
    """A convolution without bias, padded by kernel_size // 2, batch norm, and ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
    return named(conv=conv, bn=nn.BatchNorm2d(outputs), nonlinear=nn.ReLU() if relu else None)


def _cfg(
    size: int = 224,
    num_classes: int = 1000,
    mean: tuple[float, ...] = (0.485, 0.456, 0.406),
    std: tuple[float, ...] = (0.229, 0.224, 0.225),
) -> dict[str, Any]:
    """Preprocessing of the authors' evaluation: from 384 pixels on the image is squeezed, not cropped. Their
    files have to be downloaded by hand, from the tables at origin_url.
    """
    return {
        "url": "",
        "origin_url": "https://github.com/DingXiaoH/RepLKNet-pytorch",
        "num_classes": num_classes,
        "input_size": (3, size, size),
        "pool_size": (size // 32, size // 32),
        "fixed_input_size": False,
        "crop_pct": 0.875 if size < 384 else 1.0,
        "crop_mode": "center" if size < 384 else "squash",
        "interpolation": "bicubic",
        "mean": mean,
        "std": std,
        "first_conv": "stem.0.conv",
        "classifier": "head",
        "license": "mit",
    }


HALF = (0.5, 0.5, 0.5)
default_cfgs = generate_default_cfgs(
    {
        "replknet_31b.in1k": _cfg(),
        "replknet_31b.in1k_384": _cfg(384),
        "replknet_31b.in22k_ft_in1k": _cfg(),
        "replknet_31b.in22k_ft_in1k_384": _cfg(384),
        "replknet_31b.in22k": _cfg(num_classes=21841),
        "replknet_31l.in22k_ft_in1k_384": _cfg(384),
        "replknet_31l.in22k": _cfg(num_classes=21841),
        "replknet_xl.megdata73m_ft_in1k_320": _cfg(320, mean=HALF, std=HALF),
    }
)


def _create(variant: str, pretrained: bool, channels: Sequence[int], /, **kwargs: Any) -> RepLKNet:
    return build_model_with_cfg(
        RepLKNet,
        variant,
        pretrained,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **{"channels": channels} | kwargs,
    )


@register_model
def replknet_31b(pretrained: bool = False, **kwargs: Any) -> RepLKNet:
    """79.9 M parameters (79.5 M merged). Published: 83.5 % top-1 at 224, from ImageNet-1K alone."""
    return _create("replknet_31b", pretrained, (128, 256, 512, 1024), **kwargs)


@register_model
def replknet_31l(pretrained: bool = False, **kwargs: Any) -> RepLKNet:
    """173 M parameters (172 M merged). Published: 86.6 % top-1 at 384, from ImageNet-22K."""
    return _create("replknet_31l", pretrained, (192, 384, 768, 1536), **kwargs)


@register_model
def replknet_xl(pretrained: bool = False, **kwargs: Any) -> RepLKNet:
    """335 M parameters, no small kernels. Published: 87.8 % top-1 at 320, from MegData-73M."""
    own: dict[str, Any] = {"kernel_sizes": (27, 27, 27, 13), "small_kernel": 0, "dw_ratio": 1.5}
    return _create("replknet_xl", pretrained, (256, 512, 1024, 2048), **own | kwargs)
