"""Depthwise convolution with a large kernel: one module for every kernel shape, map size, device and
precision.

In:  (N, C, H, W) of any floating type and memory format, kernels (C, 1, KH, KW).
Out: (N, C, H, W), padded with KH // 2 and KW // 2 zeros on every side; gradients; in ONNX a plain `Conv`.
Elsewhere: the networks (slak.py, replknet.py, unireplknet.py); how fast it is against nn.Conv2d
(measurements/large_kernel.py).

On a CPU `torch.nn.Conv2d` takes, for most large kernels, a path without vector code: always in backward, and
in forward on contiguous maps when the kernel is wide. Three ways around it, all from ordinary torch
operations:

direct   forward, and the input's gradient (the same convolution with the kernel turned by 180 degrees), in
channels-last
         unless the kernel is narrow.
direct   the kernel's gradient as a depthwise convolution too: every map is correlated with its output's
gradient, which
         takes the kernel's place.
fft      all three as products of spectra, in float32, on maps padded only as far as wrapping around would
reach.

Which is used follows from two operation counts, `prefers_fft`: a rule and not a stopwatch, so that the same
seed gives the same bits. Rows and columns of a kernel that lie wholly outside the map are never computed.
CUDA has cuDNN.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Algorithm = Literal["auto", "conv2d", "direct", "fft"]
ALGORITHMS = ("auto", "conv2d", "direct", "fft")
SMALL = 3
"""Kernels of at most this side are left to torch, which has vector code for their gradients too."""
NARROW = 13
"""Up to this width of a kernel oneDNN has vector code for contiguous maps as well as for channels-last
ones."""
FORWARD_TAPS_PER_POINT, WEIGHT_TAPS_PER_POINT = 360, 160
"""Multiply-adds of the direct way that take as long as one point of the padded map by FFT, for the output and
for the kernel's gradient. From `measurements/large_kernel.py --rule` on one core with AVX-512: about 30
multiply-adds a nanosecond (half of that for the kernel's gradient) against 12 nanoseconds a point. Without
oneDNN the direct way has no vector code, and FFT is preferred for every kernel that is not small."""

_forced: Algorithm = "auto"


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution of stride 1, padded by k // 2 on every side; state-dict names as of nn.Conv2d.

    kernel_size: an int or (height, width). Odd sizes keep the map's size, even ones add a row or column as
    nn.Conv2d does. algorithm: auto, or one of conv2d (torch's own), direct and fft, for measuring.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | tuple[int, int],
        bias: bool = True,
        algorithm: Algorithm = "auto",
    ) -> None:
        kh, kw = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        super().__init__(channels, channels, (kh, kw), padding=(kh // 2, kw // 2), groups=channels, bias=bias)
        self.algorithm = algorithm

    def forward(self, input: Tensor) -> Tensor:
        return depthwise_conv2d(input, self.weight, self.bias, self.algorithm)


@contextlib.contextmanager
def forced(algorithm: Algorithm) -> Iterator[None]:
    """Within it every convolution of algorithm "auto" takes this one: to count operations (conv2d) or to
    compare.
    """
    global _forced
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm {algorithm!r}: expected one of {', '.join(ALGORITHMS)}")
    before, _forced = _forced, algorithm
    try:
        yield
    finally:
        _forced = before


@torch.fx.wrap
def depthwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, algorithm: Algorithm = "auto"
) -> Tensor:
    """x (N, C, H, W) with weight (C, 1, KH, KW) and bias (C,), padded by KH // 2 and KW // 2 -> (N, C, H, W).

    Under autocast it computes in autocast's type, as F.conv2d does; spectra are float32 (float64 for float64)
    whatever the inputs are. Gradients are of first order only, except where torch's own convolution is used.
    """
    chosen = _forced if algorithm == "auto" else algorithm
    kh, kw = weight.shape[2:]
    odd = kh % 2 == 1 and kw % 2 == 1
    if chosen == "conv2d" or not odd or (chosen == "auto" and _leave_to_torch(x, weight)):
        return F.conv2d(x, weight, bias, padding=(kh // 2, kw // 2), groups=len(weight))
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = (
            t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in (x, weight, bias)
        )
    with torch.autocast(x.device.type, enabled=False):
        return _Depthwise.apply(x, weight, bias, chosen)


def prefers_fft(size: tuple[int, int], kernel: tuple[int, int], taps_per_point: int) -> bool:
    """Whether FFT is expected to be faster than `taps_per_point` multiply-adds per point, for one map and
    kernel (H, W).
    """
    taps = points = 1
    for n, k in zip(size, kernel, strict=True):
        half = min(k // 2, n - 1)
        taps *= n * (2 * half + 1) - half * (half + 1)  # multiply-adds inside the map, along this side
        points *= _fft_size(n, half)
    return taps > taps_per_point * points or not torch.backends.mkldnn.is_available()


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, algorithm: Algorithm) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.algorithm, ctx.has_bias = algorithm, bias is not None
        return _correlate(x, weight, bias, algorithm)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        with torch.autocast(x.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                grad_x = _correlate(grad, weight.flip(2, 3), None, ctx.algorithm)
            if ctx.needs_input_grad[1]:
                grad_weight = _grad_weight(x, grad, weight, ctx.algorithm)
            if ctx.has_bias and ctx.needs_input_grad[2]:
                grad_bias = grad.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias, None


def _correlate(x: Tensor, weight: Tensor, bias: Tensor | None, algorithm: Algorithm) -> Tensor:
    """The convolution itself, in the memory format of x."""
    size, kernel = _inside(x, weight.shape[2:])
    weight = _crop(weight, kernel)
    if algorithm == "auto":
        algorithm = "fft" if prefers_fft(size, kernel, FORWARD_TAPS_PER_POINT) else "direct"
    if algorithm == "direct":
        narrow = kernel[1] <= NARROW and x.is_contiguous()
        y = F.conv2d(
            x if narrow else x.contiguous(memory_format=torch.channels_last),
            weight,
            bias,
            padding=(kernel[0] // 2, kernel[1] // 2),
            groups=len(weight),
        )
        return y.contiguous(memory_format=_format(x))
    points = tuple(_fft_size(n, k // 2) for n, k in zip(size, kernel, strict=True))
    y = torch.empty_like(x, memory_format=_format(x))
    for part in _channel_parts(x, points):
        spectrum = _spectrum(x[:, part], points) * _spectrum(weight[part, 0], points).conj()
        y[:, part] = _from_spectrum(spectrum, points, (kernel[0] // 2, kernel[1] // 2), size)
    return y if bias is None else y.add_(bias.view(-1, 1, 1))


def _grad_weight(x: Tensor, grad: Tensor, weight: Tensor, algorithm: Algorithm) -> Tensor:
    """(C, 1, KH, KW): each map correlated with its output's gradient, summed over images in
    float32 or wider.
    """
    size, kernel = _inside(x, weight.shape[2:])
    if algorithm == "auto":
        algorithm = "fft" if prefers_fft(size, kernel, WEIGHT_TAPS_PER_POINT) else "direct"
    wide = torch.promote_types(x.dtype, torch.float32)
    if algorithm == "direct":
        n, c = x.shape[:2]
        held = (
            x.dtype if x.dtype == torch.bfloat16 else wide
        )  # one image's sum fits bfloat16's range, not float16's
        maps, kernels = (
            t.to(held).permute(2, 3, 0, 1).contiguous().view(1, *size, n * c).permute(0, 3, 1, 2)
            for t in (x, grad)
        )
        inner = F.conv2d(
            maps, kernels.transpose(0, 1), padding=(kernel[0] // 2, kernel[1] // 2), groups=n * c
        )
        inner = inner.view(n, c, *kernel).sum(0, dtype=wide)
    else:
        points = tuple(_fft_size(n, k // 2) for n, k in zip(size, kernel, strict=True))
        inner = torch.empty(len(weight), *kernel, dtype=wide, device=x.device)
        for part in _channel_parts(x, points):
            spectrum = (_spectrum(x[:, part], points) * _spectrum(grad[:, part], points).conj()).sum(0)
            inner[part] = _from_spectrum(spectrum, points, (kernel[0] // 2, kernel[1] // 2), kernel)
    rows, columns = ((k - i) // 2 for k, i in zip(weight.shape[2:], kernel, strict=True))
    return F.pad(inner.unsqueeze(1), (columns, columns, rows, rows)).to(
        weight.dtype
    )  # what never touches the map has none


def _spectrum(x: Tensor, points: tuple[int, int]) -> Tensor:
    """Half spectrum over the last two dimensions, padded with zeros to `points`."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32)).contiguous()
    return torch.fft.fft(torch.fft.rfft(wide, n=points[1]), n=points[0], dim=-2)


def _from_spectrum(
    spectrum: Tensor, points: tuple[int, int], lag: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """The real map of `size` (H, W) that begins `lag` rows and columns before the origin."""
    rows = torch.fft.ifft(spectrum, dim=-2).roll(lag[0], -2)[..., : size[0], :]
    return torch.fft.irfft(rows, n=points[1]).roll(lag[1], -1)[..., : size[1]]


def _fft_size(n: int, half: int) -> int:
    """The next even number from n + half on that has no prime factor above 7: FFT is fast there."""
    size = n + half + (n + half) % 2
    while True:
        rest = size
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 2


def _channel_parts(x: Tensor, points: tuple[int, int], limit: int = 1 << 21) -> list[slice]:
    """Channels in parts of at most about `limit` points, so that spectra of large batches do not fill the
    memory.
    """
    step = max(1, limit // (len(x) * points[0] * points[1]))
    return [slice(begin, min(begin + step, x.shape[1])) for begin in range(0, x.shape[1], step)]


def _inside(x: Tensor, kernel: torch.Size) -> tuple[tuple[int, int], tuple[int, int]]:
    """(size of the map, size of the part of the kernel that can touch it)."""
    size = tuple(x.shape[2:])
    return size, tuple(2 * min(k // 2, n - 1) + 1 for k, n in zip(kernel, size, strict=True))


def _crop(weight: Tensor, kernel: tuple[int, int]) -> Tensor:
    rows, columns = ((k - i) // 2 for k, i in zip(weight.shape[2:], kernel, strict=True))
    return weight[:, :, rows : rows + kernel[0], columns : columns + kernel[1]]


def _format(x: Tensor) -> torch.memory_format:
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


def _leave_to_torch(x: Tensor, weight: Tensor) -> bool:
    """Other devices have their own kernels, exporters want a plain convolution, and small kernels are fast
    already.
    """
    return (
        x.device.type != "cpu"
        or max(weight.shape[2:]) <= SMALL
        or torch.compiler.is_compiling()
        or torch.onnx.is_in_onnx_export()
    )
