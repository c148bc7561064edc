"""What it costs to train parallel branches (large strips and a small kernel, each with batch norm) that are
summed: how often a map is read or written, by arithmetic.

    python measurements/branch_passes.py [--gb-per-s 3350] [--tflops 989] [--count]

A pass is one map of the block's size read or written once. "Separate": one operator after the other. "Strips
together": the two strips of SLaK read x once, and add their gradients of x in one accumulator, as they do on
CUDA. "Compiled": norms, their statistics and the sums are fused by torch.compile, the convolutions are not.
"One operator": would read x once for all branches, make the statistics while it writes them, and add all
gradients of x in one accumulator; it does not exist.

The time is the shortest that these passes can take at the rate of the memory, for the first stage of SLaK-T
at batch 64 in bf16. Beside it about that of the products with Toeplitz matrices at the rate of the tensor
cores, which all ways have alike; it is not a bound, as maps are padded to whole tiles and the small kernel
counts as such matrices, too. The default rates are those of the data sheet of an H100 SXM. Nothing
is measured.
--count compiles small blocks for this CPU (a minute; it needs a C++ compiler) and prints what TorchInductor
itself counts for the compiled ones.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch._inductor.graph import GraphLowering

from distill.models import depthwise
from distill.models.depthwise import DepthwiseConv2d

NETWORKS = {"SLaK (3)": 3, "RepLKNet (2)": 2}
"""Branches of a block while it is trained."""
IMAGES, CHANNELS, SIDE, TILE, TAPS = 64, 124, 56, 64, 5
"""First stage of SLaK-T: a map, side of its tiles, short side of each kernel."""


@dataclass(frozen=True)
class Passes:
    """Maps read or written by a block."""

    forward: int
    backward: int

    @property
    def both(self) -> int:
        return self.forward + self.backward


def separate(branches: int) -> Passes:
    """Forward: a convolution 2, a batch norm 3 (its input twice), a sum of two 3. Backward: a batch norm 5
    (gradient and input twice), gradients of x and of the weight 2 each, a sum of two 3.
    """
    sums = 3 * (branches - 1)
    return Passes(branches * (2 + 3) + sums, branches * (5 + 2 + 2) + sums)


def compiled(branches: int) -> Passes:
    """Forward: a convolution 2 and its statistics 1; all maps and the sum. Backward: gradient and all maps
    for the statistics, the same and every branch's gradient; gradients of x and of the weight 2 each; all
    gradients of x and their sum.
    """
    norms = (branches + 1) + (2 * branches + 1)
    return Passes(3 * branches + (branches + 1), norms + 4 * branches + (branches + 1))


def in_one_operator(branches: int) -> Passes:
    """Forward: x and all maps; all maps and the sum. Backward: the norms as compiled; all gradients and that
    of x; x and all gradients for the weights.
    """
    norms = (branches + 1) + (2 * branches + 1)
    return Passes(2 * (branches + 1), norms + 2 * (branches + 1))


def strips_together(passes: Passes, is_compiled: bool) -> Passes:
    """Two strips of these branches in one operator: x is read once less; one gradient of x less is written
    and read again, and not compiled a sum of two less.
    """
    return Passes(passes.forward - 1, passes.backward - (2 if is_compiled else 4))


def ways(branches: int) -> dict[str, Passes]:
    """All ways of a block of so many branches, of which three have two strips."""
    found = {"separate": separate(branches), "compiled": compiled(branches)}
    if branches == 3:
        found["strips together"] = strips_together(found["separate"], False)
        found["strips together, compiled"] = strips_together(found["compiled"], True)
    return found | {"one operator": in_one_operator(branches)}


def microseconds_of_pass(gb_per_s: float) -> float:
    return 2 * IMAGES * CHANNELS * SIDE**2 / gb_per_s / 1e3


def microseconds_of_products(branches: int, tflops: float) -> float:
    """Forward and both gradients of every branch: for each tap, rows of a tile times a matrix."""
    once = 2 * IMAGES * CHANNELS * TAPS * TILE**3
    return 3 * branches * once / tflops / 1e6


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gb-per-s", type=float, default=3350.0, help="rate of the memory, GB/s")
    parser.add_argument("--tflops", type=float, default=989.0, help="rate of the tensor cores, TFLOP/s")
    parser.add_argument("--count", action="store_true", help="ask TorchInductor, too")
    options = parser.parse_args()
    table = Table("network (branches)", "way", "forward", "backward", "both", "memory us", "products us")
    for name, branches in NETWORKS.items():
        for way, passes in ways(branches).items():
            counted = None
            if options.count and way.endswith("compiled"):
                counted = counted_by_inductor(branches, way.startswith("strips"))
            table.add_row(
                name,
                way,
                f"{passes.forward}" + (f" (counted {counted.forward})" if counted else ""),
                f"{passes.backward}" + (f" (counted {counted.backward})" if counted else ""),
                f"{passes.both}",
                f"{passes.both * microseconds_of_pass(options.gb_per_s):.0f}",
                f"{microseconds_of_products(branches, options.tflops):.0f}",
            )
    Console(width=110).print(table)


class Branches(nn.Module):
    """Parallel kernels, each with batch norm, summed. together: the first two in one operator."""

    def __init__(self, branches: int, together: bool) -> None:
        super().__init__()
        self.together = together
        kernels = [(9, 3), (3, 9), (5, 3)][:branches]
        self.convs = nn.ModuleList(DepthwiseConv2d(8, k, False, "toeplitz") for k in kernels)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in kernels)

    def forward(self, x: Tensor) -> Tensor:
        maps = [conv(x) for conv in self.convs[2 if self.together else 0 :]]
        if self.together:
            weights = [conv.weight for conv in self.convs[:2]]
            maps = [*depthwise.depthwise_conv2d_branches(x, *weights, algorithm="toeplitz"), *maps]
        first, *more = (norm(each) for norm, each in zip(self.norms, maps, strict=True))
        for each in more:
            first = first + each
        return first


def counted_by_inductor(branches: int, together: bool) -> Passes:
    """What TorchInductor reads and writes for a small block, rounded to maps: weights are little beside
    them.
    """
    counts: list[int] = []
    codegen = GraphLowering.codegen

    def counting(graph: GraphLowering) -> object:
        code = codegen(graph)
        counts.append(graph.count_bytes()[0])
        return code

    x = torch.randn(16, 8, 32, 32, requires_grad=True)
    torch.compiler.reset()
    with (
        mock.patch.object(GraphLowering, "codegen", counting),
        torch._inductor.config.patch(force_disable_caches=True),
    ):
        torch.compile(Branches(branches, together))(x).backward(torch.ones_like(x))
    forward, backward = (round(count / x.nbytes) for count in counts)
    return Passes(forward, backward)


if __name__ == "__main__":
    main()
