"""SLaK (Liu et al. 2022, arXiv:2207.03620): 51 x 51 depthwise kernels as two strips, 51 x 5 and 5 x 51, with
a 5 x 5 beside them.

In:  (N, 3, H, W), any size; on images of 32 x 32 take patch_size 1 or 2.
Out: logits (N, num_classes). State-dict names are those of the published files (older spellings:
`checkpoint_filter_fn`).
Elsewhere: timm's interface (staged.py), the large convolution (depthwise.py), merging a whole network
(merge.py), what a published file shows about itself (convert.py), dynamic sparsity in training
(distill.training.sparsity).

The same classes with 7 x 7 kernels are the students of Huang et al. 2023 (arXiv:2305.19412): a ConvNeXt with
batch norm after every depthwise convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from timm.layers import DropPath, LayerNorm2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from runtime.errors import UsageError

from .depthwise import DepthwiseConv2d, depthwise_conv2d_branches, depthwise_conv2d_pair, joins
from .merge import assign
from .replknet import LargeKernel, add_at_center, convolution, depthwise_bn, kernel_and_bias, named
from .staged import DownsampledNet, Stage, classifier, drop_path_rates, init_truncated_normal, per_stage


class DecomposedKernel(nn.Module):
    """K x S, S x K and S x S depthwise convolutions, each with batch norm, added; after `reparameterize` the
    two strips alone.

    The S x S is there where S < K. Merging into one K x K kernel would be exact too, and slower than two
    strips: K * K multiply-adds per value instead of 2 * K * S. The names LoRA1 and LoRA2 are those of the
    published files.
    """

    def __init__(
        self, channels: int, kernel_size: int, small_kernel: int, bn: bool = True, deploy: bool = False
    ) -> None:
        super().__init__()
        tall, wide = (kernel_size, small_kernel), (small_kernel, kernel_size)
        self.small_conv: nn.Sequential | None = None
        if deploy:
            self.LoRA1 = named(conv=DepthwiseConv2d(channels, tall))
            self.LoRA2 = named(conv=DepthwiseConv2d(channels, wide, bias=False))
            return
        self.LoRA1, self.LoRA2 = depthwise_bn(channels, tall, bn), depthwise_bn(channels, wide, bn)
        if small_kernel < kernel_size:
            self.small_conv = depthwise_bn(channels, small_kernel, bn)

    def forward(self, x: Tensor) -> Tensor:
        tall, wide = convolution(self.LoRA1), convolution(self.LoRA2)
        layers = len(self.LoRA1), len(self.LoRA2)
        if layers == (1, 1) and joins(x, tall, wide):
            y = depthwise_conv2d_pair(x, tall.weight, wide.weight, tall.bias)
        elif layers == (2, 2) and joins(x, tall, wide):
            down, across = depthwise_conv2d_branches(x, tall.weight, wide.weight)
            y = self.LoRA1[1](down) + self.LoRA2[1](across)
        else:
            y = self.LoRA1(x) + self.LoRA2(x)
        return y if self.small_conv is None else y + self.small_conv(x)

    @torch.no_grad()
    def reparameterize(self) -> None:
        """Merge in place: batch norm folded, the S x S kernel and every bias added to the K x S strip."""
        first, second = convolution(self.LoRA1), convolution(self.LoRA2)
        if first.bias is not None:
            return
        (tall, bias), (wide, shift) = (kernel_and_bias(strip) for strip in (self.LoRA1, self.LoRA2))
        bias = bias + shift
        if self.small_conv is not None:
            small, shift = kernel_and_bias(self.small_conv)
            add_at_center(tall, small)
            bias += shift
        assign(first, tall, bias)
        second.weight = nn.Parameter(wide.to(second.weight.dtype), second.weight.requires_grad)
        self.LoRA1, self.LoRA2, self.small_conv = named(conv=first), named(conv=second), None


class Block(nn.Module):
    """Large kernel, layer norm, an MLP of 4 times the width, layer scale (0: none); a shortcut around."""

    def __init__(
        self,
        large_kernel: nn.Module,
        channels: int,
        drop_path: float = 0.0,
        layer_scale_init_value: float = 1e-6,
    ) -> None:
        super().__init__()
        self.large_kernel = large_kernel
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.gamma = (
            nn.Parameter(torch.full((channels,), layer_scale_init_value)) if layer_scale_init_value else None
        )
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.large_kernel(x).permute(0, 2, 3, 1))
        y = self.pwconv2(self.act(self.pwconv1(y)))
        if self.gamma is not None:
            y = y * self.gamma
        return x + self.drop_path(y.permute(0, 3, 1, 2))


class SLaK(DownsampledNet):
    """A ConvNeXt with large kernels: a patch stem, stages of blocks, a 2 x 2 convolution of stride 2 between
    stages.

    dims: channels of the stages, multiplied by width_factor and rounded down. kernel_sizes: one per stage, or
    one for all. decomposed: as two strips, small_kernel wide, else as one square. small_kernel: also the side
    of the parallel small kernel, which is left out where it is not smaller than the large one; 0 for none.
    bn: batch norm after every depthwise convolution. patch_size: stride of the stem in pixels, 1 or 2 for
    small images. drop_rate is before the classifier, drop_path_rate is reached in the last block.
    layer_scale_init_value: 0 leaves layer scale out. deploy: the merged form. Raises UsageError for sizes
    that do not fit together.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        depths: Sequence[int] = (3, 3, 9, 3),
        dims: Sequence[int] = (96, 192, 384, 768),
        kernel_sizes: int | Sequence[int] = (51, 49, 47, 13),
        small_kernel: int = 5,
        decomposed: bool = True,
        width_factor: float = 1.3,
        bn: bool = True,
        patch_size: int = 4,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-6,
        deploy: bool = False,
    ) -> None:
        channels = [int(c * width_factor) for c in dims]
        kernels = per_stage(kernel_sizes, depths, channels, small_kernel)
        if decomposed and small_kernel % 2 == 0:
            raise UsageError(
                f"small_kernel {small_kernel}: decomposed kernels are strips of this width; expected an odd"
                " number, or decomposed=false"
            )
        super().__init__(in_chans, num_classes, global_pool, drop_rate, channels, patch_size)
        self.downsample_layers = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Conv2d(in_chans, channels[0], patch_size, patch_size),
                    LayerNorm2d(channels[0], eps=1e-6),
                )
            ]
        )
        for inputs, c in pairwise(channels):
            self.downsample_layers.append(
                nn.Sequential(LayerNorm2d(inputs, eps=1e-6), nn.Conv2d(inputs, c, 2, 2))
            )
        self.stages = nn.ModuleList()
        for c, kernel, rates in zip(channels, kernels, drop_path_rates(drop_path_rate, depths), strict=True):
            beside = small_kernel if small_kernel < kernel else 0
            self.stages.append(
                Stage(
                    *[
                        Block(
                            (
                                DecomposedKernel(c, kernel, small_kernel, bn, deploy)
                                if decomposed
                                else LargeKernel(c, kernel, beside, bn, deploy)
                            ),
                            c,
                            rate,
                            layer_scale_init_value,
                        )
                        for rate in rates
                    ]
                )
            )
        self.norm = nn.LayerNorm(channels[-1], eps=1e-6)
        self.head = classifier(channels[-1], num_classes)
        self.apply(init_truncated_normal)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The weights of a published file under today's names; in 2022 the strips were called Decom1
    and Decom2.
    """
    weights = state_dict.get("model", state_dict)
    return {key.replace(".Decom", ".LoRA"): value for key, value in weights.items()}


def _cfg() -> dict[str, Any]:
    """Preprocessing of the authors' evaluation. Their files have to be downloaded by hand, from the tables at
    origin_url.
    """
    return {
        "url": "",
        "origin_url": "https://github.com/VITA-Group/SLaK",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "fixed_input_size": False,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "downsample_layers.0.0",
        "classifier": "head",
        "license": "mit",
    }


TINY, DEEP = (3, 3, 9, 3), (3, 3, 27, 3)
K7: dict[str, Any] = {"kernel_sizes": 7, "small_kernel": 0, "decomposed": False, "width_factor": 1.0}
NAMES = ("slak_tiny", "slak_small", "slak_base", "slak_large", "slak_tiny_k7", "slak_small_k7")
default_cfgs = generate_default_cfgs({f"{name}.in1k": _cfg() for name in NAMES})


def _create(variant: str, pretrained: bool, depths: Sequence[int], width: int, /, **kwargs: Any) -> SLaK:
    defaults: dict[str, Any] = {"depths": depths, "dims": [width * 2**i for i in range(4)]}
    return build_model_with_cfg(
        SLaK,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **defaults | kwargs,
    )


@register_model
def slak_tiny(pretrained: bool = False, **kwargs: Any) -> SLaK:
    """50.7 M parameters, of which 40 % are zeros in the published file. Published: 82.5 % top-1."""
    return _create("slak_tiny", pretrained, TINY, 96, **kwargs)


@register_model
def slak_small(pretrained: bool = False, **kwargs: Any) -> SLaK:
    """91.1 M parameters, of which 40 % are zeros in the published file. Published: 83.8 % top-1."""
    return _create("slak_small", pretrained, DEEP, 96, **kwargs)


@register_model
def slak_base(pretrained: bool = False, **kwargs: Any) -> SLaK:
    """158 M parameters, of which 40 % are zeros in the published file. Published: 84.0 % top-1."""
    return _create("slak_base", pretrained, DEEP, 128, **kwargs)


@register_model
def slak_large(pretrained: bool = False, **kwargs: Any) -> SLaK:
    """The authors' largest size, for which they published no weights."""
    return _create("slak_large", pretrained, DEEP, 192, **kwargs)


@register_model
def slak_tiny_k7(pretrained: bool = False, **kwargs: Any) -> SLaK:
    """28.6 M parameters: the ConvNeXt-T student of arXiv:2305.19412. Published, distilled from slak_tiny:
    83.1 % top-1.
    """
    return _create("slak_tiny_k7", pretrained, TINY, 96, **K7 | kwargs)


@register_model
def slak_small_k7(pretrained: bool = False, **kwargs: Any) -> SLaK:
    """50.2 M parameters: the ConvNeXt-S student of arXiv:2305.19412. Published, distilled from slak_small:
    84.3 % top-1.
    """
    return _create("slak_small_k7", pretrained, DEEP, 96, **K7 | kwargs)
