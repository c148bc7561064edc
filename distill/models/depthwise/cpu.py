"""Large depthwise convolution on a CPU, as ordinary torch operations.

In:  (N, C, H, W) of any floating type and memory format, kernels (C, 1, KH, KW) of odd sides.
Out: (N, C, H, W), padded with KH // 2 and KW // 2 zeros on every side; gradients of first order.
     Nothing, of any shape, gives nothing.
Elsewhere: when it is used (rule.py), how fast it is against nn.Conv2d (measurements/large_kernel.py).

On a CPU `torch.nn.Conv2d` takes, for most large kernels, a path without vector code: always in backward, and
in forward on contiguous maps when the kernel is wide. Three ways around it, all from ordinary torch
operations:

direct   forward, and the input's gradient (the same convolution with the kernel turned by 180 degrees), in
         channels-last unless the kernel is narrow.
direct   the kernel's gradient as a depthwise convolution too: every map is correlated with its output's
         gradient, which takes the kernel's place.
fft      all three as products of spectra, in float32, on maps padded only as far as wrapping around would
         reach.

Which is used follows from two operation counts, `prefers_fft`: a rule and not a stopwatch, so that the same
seed gives the same bits. Rows and columns of a kernel that lie wholly outside the map are never computed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .layout import format_of
from .rule import Algorithm

NARROW = 13
"""Up to this width of a kernel oneDNN has vector code for contiguous maps as well as for channels-last
ones."""
HANGS_UP_TO = 16
"""oneDNN does not return from some depthwise convolutions of 2 to so many channels in bfloat16,
channels-last, with kernels wider than NARROW, on processors with AVX512-BF16: these are in float32."""
FORWARD_TAPS_PER_POINT, WEIGHT_TAPS_PER_POINT = 360, 160
"""Multiply-adds of the direct way that take as long as one point of the padded map by FFT, for the output and
for the kernel's gradient. From `measurements/large_kernel.py --rule` on one core with AVX-512: about 30
multiply-adds a nanosecond (half of that for the kernel's gradient) against 12 nanoseconds a point. Without
oneDNN the direct way has no vector code, and FFT is preferred for every kernel that is not small."""


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, algorithm: Algorithm) -> Tensor:
    """x (N, C, H, W) with weight (C, 1, KH, KW) and bias (C,) of the same type -> (N, C, H, W). algorithm:
    direct, fft, or auto, which counts operations.
    """
    return _Depthwise.apply(x, weight, bias, algorithm)


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
    if not x.numel():
        return torch.empty_like(x)
    size, kernel = _inside(x, weight.shape[2:])
    weight = _crop(weight, kernel)
    if algorithm == "auto":
        algorithm = "fft" if prefers_fft(size, kernel, FORWARD_TAPS_PER_POINT) else "direct"
    if algorithm == "direct":
        narrow = kernel[1] <= NARROW and x.is_contiguous()
        y = _direct(x if narrow else x.contiguous(memory_format=torch.channels_last), weight, bias, kernel)
        return y.contiguous(memory_format=format_of(x))
    points = _points(size, kernel)
    y = torch.empty_like(x, memory_format=format_of(x))
    for part in _channel_parts(x, points):
        spectrum = _spectrum(x[:, part], points) * _spectrum(weight[part, 0], points).conj()
        y[:, part] = _from_spectrum(spectrum, points, (kernel[0] // 2, kernel[1] // 2), size)
    return y if bias is None else y.add_(bias.view(-1, 1, 1))


def _grad_weight(x: Tensor, grad: Tensor, weight: Tensor, algorithm: Algorithm) -> Tensor:
    """(C, 1, KH, KW): each map correlated with its output's gradient, summed over images in
    float32 or wider.
    """
    if not x.numel():
        return torch.zeros_like(weight)
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
        inner = _direct(maps, kernels.transpose(0, 1), None, kernel)
        inner = inner.view(n, c, *kernel).sum(0, dtype=wide)
    else:
        points = _points(size, kernel)
        inner = torch.empty(len(weight), *kernel, dtype=wide, device=x.device)
        for part in _channel_parts(x, points):
            spectrum = (_spectrum(x[:, part], points) * _spectrum(grad[:, part], points).conj()).sum(0)
            inner[part] = _from_spectrum(spectrum, points, (kernel[0] // 2, kernel[1] // 2), kernel)
    rows, columns = ((k - i) // 2 for k, i in zip(weight.shape[2:], kernel, strict=True))
    return F.pad(inner.unsqueeze(1), (columns, columns, rows, rows)).to(
        weight.dtype
    )  # what never touches the map has none


def _direct(x: Tensor, weight: Tensor, bias: Tensor | None, kernel: tuple[int, int]) -> Tensor:
    """torch's own convolution, padded for a kernel of this size; see HANGS_UP_TO."""
    padding, channels, given = (kernel[0] // 2, kernel[1] // 2), len(weight), x.dtype
    if given == torch.bfloat16 and channels <= HANGS_UP_TO and weight.shape[3] > NARROW:
        x, weight, bias = x.float(), weight.float(), None if bias is None else bias.float()
    return F.conv2d(x, weight, bias, padding=padding, groups=channels).to(given)


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


def _points(size: tuple[int, int], kernel: tuple[int, int]) -> tuple[int, int]:
    """Size of a map that is padded as far as wrapping around reaches."""
    return _fft_size(size[0], kernel[0] // 2), _fft_size(size[1], kernel[1] // 2)


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
    size = x.shape[2], x.shape[3]
    reach = [min(k // 2, n - 1) for k, n in zip(kernel, size, strict=True)]
    return size, (2 * reach[0] + 1, 2 * reach[1] + 1)


def _crop(weight: Tensor, kernel: tuple[int, int]) -> Tensor:
    rows, columns = ((k - i) // 2 for k, i in zip(weight.shape[2:], kernel, strict=True))
    return weight[:, :, rows : rows + kernel[0], columns : columns + kernel[1]]
