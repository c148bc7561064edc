"""UniRepLKNet (Ding et al. 2023, arXiv:2311.15599): 13 x 13 kernels with dilated 3 x 3, 5 x 5 and 7 x 7
beside them.

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
from timm.layers import DropPath, LayerNorm2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from runtime.errors import UsageError

from .depthwise import DepthwiseConv2d
from .merge import BatchNorm, assign, folded
from .staged import DownsampledNet, Stage, classifier, drop_path_rates, init_truncated_normal

Branches = tuple[tuple[int, int], ...]
"""(kernel, dilation) of each."""

DILATED: dict[int, Branches] = {
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    7: ((5, 1), (3, 2), (3, 3)),
    5: ((3, 1), (3, 2)),
}
"""{large kernel: the branches beside it}; none reaches further than the large
kernel."""


class Permute(nn.Module):
    """Another order of the axes; a place in a Sequential, so that the layers beside it keep their published
    numbers.
    """

    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order)


class GlobalResponseNorm(nn.Module):
    """Scale every channel by its share of the energy of the map (ConvNeXt V2, arXiv:2301.00808); x is (N, H,
    W, C).
    """

    beta: nn.Parameter | None

    def __init__(self, channels: int, bias: bool = True) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.register_parameter("beta", nn.Parameter(torch.zeros(1, 1, 1, channels)) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        energy = x.norm(p=2, dim=(1, 2), keepdim=True)
        y = x * (1 + self.gamma * energy / (energy.mean(-1, keepdim=True) + 1e-6))
        return y if self.beta is None else y + self.beta


class SqueezeExcite(nn.Module):
    """Gates in (0, 1) for every channel from the mean of the map (arXiv:1709.01507), reduced to a quarter in
    between.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, channels // 4, 1)
        self.up = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid()


class DilatedReparamBlock(nn.Module):
    """A K x K depthwise convolution plus dilated small ones, each with batch norm; one K x K convolution
    after `reparameterize`.

    kernel_size: one of DILATED. deploy: build the merged form. Raises UsageError for another kernel size.
    """

    def __init__(self, channels: int, kernel_size: int, deploy: bool = False) -> None:
        super().__init__()
        if kernel_size not in DILATED:
            raise UsageError(
                f"kernel size {kernel_size} has no dilated branches; expected one of {sorted(DILATED)}"
            )
        self.lk_origin = (
            DepthwiseConv2d(channels, kernel_size, bias=deploy)
            if kernel_size >= 7
            else nn.Conv2d(
                channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=deploy
            )
        )
        self.origin_bn = None if deploy else nn.BatchNorm2d(channels)
        self.branches: Branches = () if deploy else DILATED[kernel_size]
        for k, dilation in self.branches:
            padding = dilation * (k - 1) // 2
            self.add_module(
                f"dil_conv_k{k}_{dilation}",
                nn.Conv2d(
                    channels, channels, k, padding=padding, dilation=dilation, groups=channels, bias=False
                ),
            )
            self.add_module(f"dil_bn_k{k}_{dilation}", nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.lk_origin(x)
        if self.origin_bn is None:
            return y
        y = self.origin_bn(y)
        for k, dilation in self.branches:
            y = y + getattr(self, f"dil_bn_k{k}_{dilation}")(getattr(self, f"dil_conv_k{k}_{dilation}")(x))
        return y

    @torch.no_grad()
    def reparameterize(self) -> None:
        """Merge in place: a k x k kernel of dilation r is a (r (k - 1) + 1) square one with zeros between its
        values.
        """
        if self.origin_bn is None:
            return
        weight, bias = folded(self.lk_origin.weight, self.lk_origin.bias, self.origin_bn)
        for k, dilation in self.branches:
            conv, bn = (getattr(self, f"dil_{kind}_k{k}_{dilation}") for kind in ("conv", "bn"))
            small, shift = folded(conv.weight, None, bn)
            first = (weight.shape[-1] - dilation * (k - 1)) // 2
            places = slice(first, first + dilation * (k - 1) + 1, dilation)
            weight[:, :, places, places] += small
            bias += shift
            delattr(self, f"dil_conv_k{k}_{dilation}")
            delattr(self, f"dil_bn_k{k}_{dilation}")
        assign(self.lk_origin, weight, bias)
        self.origin_bn, self.branches = None, ()


class Block(nn.Module):
    """Depthwise convolution, batch norm, gates, and an MLP of 4 times the width with global response norm; a
    shortcut around.

    kernel_size 3 or 5 is a plain convolution, larger ones have dilated branches. layer_scale_init_value: 0
    leaves it out.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        drop_path: float = 0.0,
        layer_scale_init_value: float = 1e-6,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        self.dwconv: nn.Conv2d | DilatedReparamBlock
        if kernel_size in (3, 5):
            self.dwconv = nn.Conv2d(
                channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=deploy
            )
        else:
            self.dwconv = DilatedReparamBlock(channels, kernel_size, deploy)
        self.norm = nn.Identity() if deploy else nn.BatchNorm2d(channels)
        self.se = SqueezeExcite(channels)
        self.pwconv1 = nn.Sequential(Permute(0, 2, 3, 1), nn.Linear(channels, 4 * channels))
        self.act = nn.Sequential(nn.GELU(), GlobalResponseNorm(4 * channels, bias=not deploy))
        self.pwconv2 = nn.Sequential(nn.Linear(4 * channels, channels, bias=deploy), Permute(0, 3, 1, 2))
        if not deploy:
            self.pwconv2.append(nn.BatchNorm2d(channels))
        scaled = layer_scale_init_value and not deploy
        self.gamma = nn.Parameter(torch.full((channels,), layer_scale_init_value)) if scaled else None
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.se(self.norm(self.dwconv(x)))
        y = self.pwconv2(self.act(self.pwconv1(y)))
        if self.gamma is not None:
            y = y * self.gamma.view(-1, 1, 1)
        return x + self.drop_path(y)

    @torch.no_grad()
    def reparameterize(self) -> None:
        """Merge in place, as the authors do: into the depthwise convolution its norm; into the last linear
        layer the bias of the response norm before it, its batch norm and the layer scale.
        """
        if not isinstance(self.norm, BatchNorm):
            return
        conv = self.dwconv
        if isinstance(conv, DilatedReparamBlock):
            conv.reparameterize()
            conv = conv.lk_origin
        assign(conv, *folded(conv.weight, conv.bias, self.norm))
        self.norm = nn.Identity()
        (linear, order, bn), response = self.pwconv2, self.act[1]
        assert isinstance(linear, nn.Linear) and isinstance(bn, BatchNorm)
        assert isinstance(response, GlobalResponseNorm) and response.beta is not None
        weight, bias = folded(linear.weight, linear.weight.double() @ response.beta.double().flatten(), bn)
        if self.gamma is not None:
            weight, bias = weight * self.gamma.double().view(-1, 1), bias * self.gamma.double()
        assign(linear, weight, bias)
        self.pwconv2, response.beta, self.gamma = nn.Sequential(linear, order), None, None


class UniRepLKNet(DownsampledNet):
    """Stages of blocks, each after a 3 x 3 convolution of stride 2 (the first: two of them, of stride
    stem_stride together).

    depths, dims: blocks and channels of every stage (dims divisible by 4). kernel_sizes: for every stage one
    size, or a pattern that its blocks repeat: (3, 13, (13, 3), 13). drop_rate is before the classifier,
    drop_path_rate is reached in the last block. layer_scale_init_value: 0 leaves layer scale out.
    stem_stride: 4, or 2 and 1 for small images. deploy: the merged form. Raises UsageError for sizes that do
    not fit together.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        depths: Sequence[int] = (3, 3, 18, 3),
        dims: Sequence[int] = (80, 160, 320, 640),
        kernel_sizes: Sequence[int | Sequence[int]] = (3, 13, (13, 3), 13),
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-6,
        stem_stride: int = 4,
        deploy: bool = False,
    ) -> None:
        kernels = _kernels(depths, dims, kernel_sizes)
        if stem_stride not in (1, 2, 4):
            raise UsageError(f"stem_stride {stem_stride}: expected 4, or 2 or 1 for small images")
        super().__init__(in_chans, num_classes, global_pool, drop_rate, dims, stem_stride)
        first, second = {1: (1, 1), 2: (2, 1), 4: (2, 2)}[stem_stride]
        self.downsample_layers = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Conv2d(in_chans, dims[0] // 2, 3, first, 1),
                    LayerNorm2d(dims[0] // 2, eps=1e-6),
                    nn.GELU(),
                    nn.Conv2d(dims[0] // 2, dims[0], 3, second, 1),
                    LayerNorm2d(dims[0], eps=1e-6),
                )
            ]
        )
        for inputs, channels in pairwise(dims):
            self.downsample_layers.append(
                nn.Sequential(nn.Conv2d(inputs, channels, 3, 2, 1), LayerNorm2d(channels, eps=1e-6))
            )
        self.stages = nn.ModuleList(
            Stage(
                *[
                    Block(channels, k, rate, layer_scale_init_value, deploy)
                    for k, rate in zip(sizes, rates, strict=True)
                ]
            )
            for channels, sizes, rates in zip(
                dims, kernels, drop_path_rates(drop_path_rate, depths), strict=True
            )
        )
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self.head = classifier(dims[-1], num_classes)
        self.apply(init_truncated_normal)


def _kernels(
    depths: Sequence[int], dims: Sequence[int], kernel_sizes: Sequence[int | Sequence[int]]
) -> list[list[int]]:
    """The kernel size of every block. Raises UsageError where stages, blocks and patterns do not fit
    together.
    """
    if not len(depths) == len(dims) == len(kernel_sizes):
        raise UsageError(
            f"depths {depths}, dims {dims}, kernel_sizes {kernel_sizes}: expected one entry per stage in each"
        )
    if wrong := [c for c in dims if c < 4 or c % 4]:
        raise UsageError(f"dims {wrong} are not divisible by 4, which the gates need")
    kernels = []
    for stage, (depth, pattern) in enumerate(zip(depths, kernel_sizes, strict=True)):
        pattern = [pattern] if isinstance(pattern, int) else list(pattern)
        if not pattern or depth % len(pattern):
            raise UsageError(
                f"stage {stage} has {depth} blocks, no multiple of its {len(pattern)} kernel sizes {pattern}"
            )
        kernels.append(pattern * (depth // len(pattern)))
    return kernels


def _cfg(file: str = "", size: int = 224, num_classes: int = 1000) -> dict[str, Any]:
    """Preprocessing of the authors' evaluation: from 384 pixels on the image is squeezed, not cropped."""
    published = {"hf_hub_id": "DingXiaoH/UniRepLKNet", "hf_hub_filename": file}
    return published | {
        "num_classes": num_classes,
        "input_size": (3, size, size),
        "pool_size": (size // 32, size // 32),
        "crop_pct": 0.875 if size < 384 else 1.0,
        "crop_mode": "center" if size < 384 else "squash",
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "downsample_layers.0.0",
        "classifier": "head",
        "license": "apache-2.0",
    }


default_cfgs = generate_default_cfgs(
    {
        "unireplknet_a.in1k": _cfg("unireplknet_a_in1k_224_acc77.03.pth"),
        "unireplknet_f.in1k": _cfg("unireplknet_f_in1k_224_acc78.58.pth"),
        "unireplknet_p.in1k": _cfg("unireplknet_p_in1k_224_acc80.23.pth"),
        "unireplknet_n.in1k": _cfg("unireplknet_n_in1k_224_acc81.64.pth"),
        "unireplknet_t.in1k": _cfg("unireplknet_t_in1k_224_acc83.21.pth"),
        "unireplknet_s.in1k": _cfg("unireplknet_s_in1k_224_acc83.91.pth"),
        "unireplknet_s.in22k_ft_in1k_384": _cfg("unireplknet_s_in22k_to_in1k_384_acc86.44.pth", 384),
        "unireplknet_b.in22k_ft_in1k_384": _cfg("unireplknet_b_in22k_to_in1k_384_acc87.40.pth", 384),
        "unireplknet_l.in22k_ft_in1k_384": _cfg("unireplknet_l_in22k_to_in1k_384_acc87.88.pth", 384),
        "unireplknet_xl.in22k_ft_in1k_384": _cfg("unireplknet_xl_in22k_to_in1k_384_acc87.96.pth", 384),
    }
)


def _unwrapped(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The weights of a published file, which may be under `model`."""
    return state_dict.get("model", state_dict)


SMALL, TINY, LARGE = (2, 2, 6, 2), (3, 3, 18, 3), (3, 3, 27, 3)
EVERY, SECOND, THIRD = (3, 13, 13, 13), (3, 13, (13, 3), 13), (3, 13, (13, 3, 3), 13)


def _create(
    variant: str,
    pretrained: bool,
    depths: Sequence[int],
    width: int,
    kernel_sizes: Sequence[int | Sequence[int]],
    given: dict[str, Any],
) -> UniRepLKNet:
    defaults: dict[str, Any] = {
        "depths": depths,
        "dims": [width * 2**i for i in range(4)],
        "kernel_sizes": kernel_sizes,
    }
    return build_model_with_cfg(
        UniRepLKNet,
        variant,
        pretrained,
        pretrained_filter_fn=_unwrapped,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **defaults | given,
    )


@register_model
def unireplknet_a(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """4.6 M parameters (4.4 M merged)."""
    return _create("unireplknet_a", pretrained, SMALL, 40, EVERY, kwargs)


@register_model
def unireplknet_f(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """6.5 M parameters."""
    return _create("unireplknet_f", pretrained, SMALL, 48, EVERY, kwargs)


@register_model
def unireplknet_p(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """11.1 M parameters."""
    return _create("unireplknet_p", pretrained, SMALL, 64, EVERY, kwargs)


@register_model
def unireplknet_n(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """18.8 M parameters."""
    return _create("unireplknet_n", pretrained, (2, 2, 8, 2), 80, EVERY, kwargs)


@register_model
def unireplknet_t(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """31.7 M parameters (31.0 M merged)."""
    return _create("unireplknet_t", pretrained, TINY, 80, SECOND, kwargs)


@register_model
def unireplknet_s(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """56.5 M parameters (55.6 M merged)."""
    return _create("unireplknet_s", pretrained, LARGE, 96, THIRD, kwargs)


@register_model
def unireplknet_b(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """99.1 M parameters."""
    return _create("unireplknet_b", pretrained, LARGE, 128, THIRD, kwargs)


@register_model
def unireplknet_l(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """220 M parameters."""
    return _create("unireplknet_l", pretrained, LARGE, 192, THIRD, kwargs)


@register_model
def unireplknet_xl(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """389 M parameters."""
    return _create("unireplknet_xl", pretrained, LARGE, 256, THIRD, kwargs)
