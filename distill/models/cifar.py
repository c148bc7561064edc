"""The CIFAR ResNets of He et al. 2015 (arXiv:1512.03385, section 4.2): 20, 32, 44 and 56 layers.

In:  (N, 3, 32, 32), any other size works too.
Out: logits (N, num_classes). State-dict names are those of the published `.th` files (conv1, bn1, layer1-3,
linear).
Elsewhere: reading those files (distill.checkpoint).
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn
from torch.nn import functional as F

CFG = {
    "url": "",
    "num_classes": 10,
    "input_size": (3, 32, 32),
    "pool_size": (8, 8),
    "crop_pct": 1.0,
    "interpolation": "bilinear",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "first_conv": "conv1",
    "classifier": "linear",
    "license": "bsd-2-clause",
}
default_cfgs = {f"resnet{depth}": CFG for depth in (20, 32, 44, 56)}


class Shortcut(nn.Module):
    """Option A: every second pixel, and zero channels added in equal parts on both sides; no parameters."""

    def __init__(self, stride: int, added_channels: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = added_channels // 2
        self.after = added_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class Block(nn.Module):
    """Two 3 x 3 convolutions with batch norm, and the shortcut."""

    def __init__(self, inputs: int, channels: int, stride: int, drop_path: float) -> None:
        super().__init__()
        from timm.layers import DropPath

        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        same = stride == 1 and inputs == channels
        self.shortcut = nn.Identity() if same else Shortcut(stride, channels - inputs)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.drop_path(self.bn2(self.conv2(y))) + self.shortcut(x))


class CifarResNet(nn.Module):
    """`depth` = 6 n + 2 layers in three stages of n blocks, 16, 32 and 64 channels (times `width`)."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(
        self,
        depth: int = 20,
        num_classes: int = 10,
        in_chans: int = 3,
        width: float = 1.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if (depth - 2) % 6:
            raise ValueError(f"depth {depth}: expected 6 n + 2 (20, 32, 44, 56)")
        blocks = (depth - 2) // 6
        channels = [round(c * width) for c in (16, 32, 64)]
        self.num_classes, self.num_features, self.drop_rate = num_classes, channels[-1], drop_rate
        self.feature_info = [
            {"num_chs": c, "reduction": 2**i, "module": f"layer{i + 1}"} for i, c in enumerate(channels)
        ]
        self.conv1 = nn.Conv2d(in_chans, channels[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        rates = torch.linspace(0, drop_path_rate, 3 * blocks).tolist()
        inputs = channels[0]
        for stage, width_ in enumerate(channels):
            layers = []
            for i in range(blocks):
                layers.append(Block(inputs, width_, 2 if stage and not i else 1, rates[stage * blocks + i]))
                inputs = width_
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.linear = nn.Linear(channels[-1], num_classes) if num_classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def get_classifier(self) -> nn.Module:
        return self.linear

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head; num_classes 0 removes it."""
        self.num_classes = num_classes
        self.linear = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """Last feature map (N, 64 width, H / 4, W / 4)."""
        x = F.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x.mean((2, 3))
        if self.drop_rate:
            x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.linear(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def _create(variant: str, depth: int, pretrained: bool, **kwargs: Any) -> CifarResNet:
    return build_model_with_cfg(CifarResNet, variant, pretrained, depth=depth, **kwargs)


@register_model
def resnet20(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-20 for 32 x 32 images, 0.27 M parameters."""
    return _create("resnet20", 20, pretrained, **kwargs)


@register_model
def resnet32(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-32 for 32 x 32 images, 0.46 M parameters."""
    return _create("resnet32", 32, pretrained, **kwargs)


@register_model
def resnet44(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-44 for 32 x 32 images, 0.66 M parameters."""
    return _create("resnet44", 44, pretrained, **kwargs)


@register_model
def resnet56(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-56 for 32 x 32 images, 0.85 M parameters."""
    return _create("resnet56", 56, pretrained, **kwargs)
