"""Depthwise convolution with a large kernel: one module for every kernel shape, device and precision."""

from __future__ import annotations

from torch import nn


class DepthwiseConv2d(nn.Conv2d):
    """A stride-1 depthwise convolution, padded by k // 2 on every side."""

    def __init__(self, channels: int, kernel_size: int | tuple[int, int], bias: bool = True) -> None:
        kh, kw = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        super().__init__(channels, channels, (kh, kw), padding=(kh // 2, kw // 2), groups=channels, bias=bias)
