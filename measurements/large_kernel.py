"""Large depthwise convolutions and a whole SLaK-T on the CPU, against torch.nn.Conv2d.

    python measurements/large_kernel.py [--batch 4] [--rounds 3] [--img-size 224] [--skip-network]
    [--skip-layers] [--rule]
    python measurements/large_kernel.py --device cuda [--json FILE]     (measurements/large_kernel_gpu.py)

Every round runs each contender once, in turn, in one process; printed are medians, and the median of the
rounds' ratios. Two tables: the depthwise layers of SLaK-T and RepLKNet-31B at 224 pixels, and the whole
slak_tiny, as it is trained and merged. "Conv2d" is torch's own on contiguous maps, its default; "Conv2d,
channels-last" the same in the other memory format. "As published" is the network with layer norms as its
authors wrote them, behind which maps are contiguous; timm's, which this project uses, leave them
channels-last. FLOP limit: multiply-adds of the direct convolution that fall inside the map, at the speed of
this machine's fp32 matrix product (2048 x 2048); a share above 100 % means that fewer operations were done.
--rule times both algorithms beside the chosen one.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable

import large_kernel_gpu
import torch
from rich.console import Console
from rich.table import Table
from timm.layers import LayerNorm2d
from torch import nn

from distill import models
from distill.models import depthwise
from distill.models.merge import reparameterize
from runtime.env import fingerprint

LAYERS = [  # network, channels, side of the map, kernel
    ("SLaK-T", 124, 56, (51, 5)),
    ("SLaK-T", 124, 56, (5, 51)),
    ("SLaK-T, square", 124, 56, (51, 51)),
    ("SLaK-T", 249, 28, (49, 5)),
    ("SLaK-T", 249, 28, (5, 49)),
    ("SLaK-T", 499, 14, (47, 5)),
    ("SLaK-T", 499, 14, (5, 47)),
    ("SLaK-T", 998, 7, (13, 5)),
    ("SLaK-T", 998, 7, (5, 13)),
    ("RepLKNet-31B", 128, 56, (31, 31)),
    ("RepLKNet-31B", 256, 28, (29, 29)),
    ("RepLKNet-31B", 512, 14, (27, 27)),
    ("RepLKNet-31B", 1024, 7, (13, 13)),
]


def interleaved(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds per call of each contender, one call per round in alternating order, after one round of
    warm-up.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(rounds + 1):
        for name in sorted(contenders, reverse=bool(round_ % 2)):
            began = time.perf_counter()
            contenders[name]()
            if round_:
                times[name].append((time.perf_counter() - began) * 1e3)
    return times


def ratio(times: dict[str, list[float]], slower: str, faster: str) -> float:
    return statistics.median(a / b for a, b in zip(times[slower], times[faster], strict=True))


def peak_gflops() -> float:
    """What this machine's fp32 matrix product reaches, GFLOP/s, best of ten."""
    a = torch.randn(2048, 2048)
    best = min(interleaved({"matmul": lambda: a @ a}, 10)["matmul"])
    return 2 * 2048**3 / best / 1e6


def inside(side: int, kernel: tuple[int, int]) -> int:
    """Multiply-adds per channel of one map that meet pixels and not padding, counted tap by tap."""

    def along(k: int) -> int:
        return sum(0 <= position + tap - k // 2 < side for position in range(side) for tap in range(k))

    return along(kernel[0]) * along(kernel[1])


def layer(
    channels: int,
    side: int,
    kernel: tuple[int, int],
    batch: int,
    algorithms: list[tuple[str, str, torch.memory_format]],
    backward: bool,
) -> dict[str, Callable[[], object]]:
    """Calls of one depthwise layer per (name, algorithm, memory format)."""
    calls: dict[str, Callable[[], object]] = {}
    conv = depthwise.DepthwiseConv2d(channels, kernel, bias=False)
    for name, algorithm, memory_format in algorithms:
        x = torch.randn(batch, channels, side, side).to(memory_format=memory_format).requires_grad_(backward)
        grad = torch.ones_like(x)

        def call(x=x, grad=grad, algorithm=algorithm) -> None:
            with torch.set_grad_enabled(backward):
                y = depthwise.depthwise_conv2d(x, conv.weight, None, algorithm)
                if backward:
                    torch.autograd.grad(y, (x, conv.weight), grad)

        calls[name] = call
    return calls


def layers_table(batch: int, rounds: int, peak: float, rule: bool, most_channels: int) -> Table:
    table = Table(title=f"depthwise layers, batch {batch}, fp32, median milliseconds and ratios (n={rounds})")
    for column in (
        "network",
        "map",
        "kernel",
        "pass",
        "Conv2d",
        "Conv2d,\nch.-last",
        "ours",
        "ours,\nch.-last",
        "Conv2d\n/ ours",
        "both\nch.-last",
        "largest\nerror",
        "of FLOP\nlimit",
    ) + (("direct", "fft") if rule else ()):
        table.add_column(column, justify="left" if column in ("network", "pass") else "right")
    plain, last = torch.contiguous_format, torch.channels_last
    for network, wide, side, kernel in LAYERS:
        channels = min(wide, most_channels)
        for backward in (False, True):
            contenders = [
                ("conv", "conv2d", plain),
                ("conv-last", "conv2d", last),
                ("ours", "auto", plain),
                ("ours-last", "auto", last),
            ]
            if rule:
                contenders += [("direct", "direct", plain), ("fft", "fft", plain)]
            times = interleaved(layer(channels, side, kernel, batch, contenders, backward), rounds)
            median = {name: statistics.median(values) for name, values in times.items()}
            flops = 2 * batch * channels * inside(side, kernel) * (3 if backward else 1)
            table.add_row(
                network,
                f"{channels} x {side}²",
                f"{kernel[0]} x {kernel[1]}",
                "fwd+bwd" if backward else "fwd",
                *(f"{median[name]:.1f}" for name in ("conv", "conv-last", "ours", "ours-last")),
                f"{ratio(times, 'conv', 'ours'):.1f}",
                f"{ratio(times, 'conv-last', 'ours-last'):.1f}",
                "" if backward else f"{error(channels, side, kernel, batch):.0e}",
                f"{flops / min(median['ours'], median['ours-last']) / 1e6 / peak:.0%}",
                *((f"{median['direct']:.1f}", f"{median['fft']:.1f}") if rule else ()),
            )
    return table


def error(channels: int, side: int, kernel: tuple[int, int], batch: int) -> float:
    """Largest difference from torch's convolution, relative to its largest output."""
    x, weight = torch.randn(batch, channels, side, side), torch.randn(channels, 1, *kernel)
    with torch.no_grad():
        expected = depthwise.depthwise_conv2d(x, weight, None, "conv2d")
        return ((depthwise.depthwise_conv2d(x, weight) - expected).abs().max() / expected.abs().max()).item()


class ChannelsFirstNorm(nn.Module):
    """Layer norm over channels as SLaK's authors wrote it, with sums over dimension 1: maps stay contiguous
    behind it.
    """

    def __init__(self, norm: LayerNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centered = x - x.mean(1, keepdim=True)
        scaled = centered / torch.sqrt(centered.square().mean(1, keepdim=True) + self.eps)
        return self.weight[:, None, None] * scaled + self.bias[:, None, None]


def as_published(net: torch.nn.Module) -> torch.nn.Module:
    """A copy of slak_tiny with the authors' layer norms, so that every depthwise layer is given a contiguous
    map.
    """
    net = copy.deepcopy(net)
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if isinstance(child, LayerNorm2d):
                setattr(parent, name, ChannelsFirstNorm(child))
    return net


def network_table(batch: int, rounds: int, side: int) -> Table:
    torch.manual_seed(0)
    trained = models.build("slak_tiny", 1000).eval()
    with torch.no_grad():
        for (
            name,
            tensor,
        ) in trained.state_dict().items():  # fresh batch norms and layer scales would hide every difference
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("gamma"):
                tensor.fill_(0.2)
    merged, published = reparameterize(trained), as_published(trained)
    x = torch.randn(batch, 3, side, side)

    def run(
        net: torch.nn.Module, algorithm: str, memory_format: torch.memory_format, backward: bool
    ) -> Callable[[], object]:
        def call() -> torch.Tensor:
            net.to(memory_format=memory_format)
            with depthwise.forced(algorithm), torch.set_grad_enabled(backward):
                y = net(x.to(memory_format=memory_format))
                if backward:
                    net.zero_grad(set_to_none=True)
                    y.square().mean().backward()
            return y.detach()

        return call

    table = Table(
        title=(
            f"slak_tiny, {side} pixels, batch {batch}, fp32, median milliseconds and ratios "
            f"(n={4 * rounds} forward, {rounds} with backward)"
        )
    )
    for column in (
        "memory format",
        "pass",
        "Conv2d,\nas published",
        "Conv2d",
        "ours",
        "ours,\nmerged",
        "published\n/ ours",
        "Conv2d\n/ ours",
        "unmerged\n/ merged",
        "largest\nerror",
    ):
        table.add_column(column, justify="left" if column in ("memory format", "pass") else "right")
    for label, memory_format in (
        ("contiguous", torch.contiguous_format),
        ("channels-last", torch.channels_last),
    ):
        for backward in (False, True):
            calls = {
                name: run(trained, algorithm, memory_format, backward)
                for name, algorithm in (("conv", "conv2d"), ("ours", "auto"))
            }
            if memory_format == torch.contiguous_format:
                calls["published"] = run(published, "conv2d", memory_format, backward)
            if not backward:
                calls["merged"] = run(merged, "auto", memory_format, backward)
            outputs = {name: call() for name, call in calls.items()}
            times = interleaved(
                calls, rounds if backward else 4 * rounds
            )  # forward is short: more rounds against the noise
            scale = outputs["conv"].abs().max()
            worst = max((y - outputs["conv"]).abs().max() / scale for y in outputs.values()).item()
            table.add_row(
                label,
                "fwd+bwd" if backward else "fwd",
                *(
                    f"{statistics.median(times[n]):,.0f}" if n in times else ""
                    for n in ("published", "conv", "ours", "merged")
                ),
                f"{ratio(times, 'published', 'ours'):.2f}" if "published" in times else "",
                f"{ratio(times, 'conv', 'ours'):.2f}",
                "" if backward else f"{ratio(times, 'ours', 'merged'):.2f}",
                f"{worst:.0e}",
            )
    return table


def main() -> None:
    """Measure and print."""
    device = argparse.ArgumentParser(add_help=False)
    device.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    if device.parse_known_args()[0].device == "cuda":
        return large_kernel_gpu.main(sys.argv[1:])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, parents=[device]
    )
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--img-size", type=int, default=224, help="side of the network's images, pixels")
    parser.add_argument("--rule", action="store_true", help="time both algorithms beside the chosen one")
    parser.add_argument(
        "--channels", type=int, default=4096, help="at most so many in a layer, to try it out"
    )
    parser.add_argument("--skip-network", action="store_true", help="only the layers")
    parser.add_argument("--skip-layers", action="store_true", help="only the network")
    options = parser.parse_args()
    console = Console(width=150)
    console.print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {fingerprint()['cpu']}")
    if not options.skip_layers:
        peak = peak_gflops()
        console.print(f"fp32 matrix product: {peak:.0f} GFLOP/s")
        console.print(layers_table(options.batch, options.rounds, peak, options.rule, options.channels))
    if not options.skip_network:
        console.print(network_table(options.batch, options.rounds, options.img_size))


if __name__ == "__main__":
    main()
