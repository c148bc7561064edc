"""Large depthwise convolutions on a GPU: layers, networks, and the step that has such a teacher.

    python measurements/large_kernel_gpu.py [--json docs/results/NAME.json] [--only layers ...]
    [--minutes 3.5] [--rounds 7]
    TRITON_INTERPRET=1 python measurements/large_kernel_gpu.py --device cpu     (a rehearsal, without times)

Writes NAME.json, and the same as a table in NAME.md, after every step; without --json both go to stdout at
the end. A row or a step that fails is recorded as failed, the others run, and the exit code is 1. Within a
group every contender runs once a round, in alternating order, timed by CUDA events; printed are medians.
Before an output is checked against float64, on fresh random data, the memory that it will be written to is
filled with NaN.
Baseline: cuDNN by torch.nn.functional.conv2d in the better of the two memory formats, timed in the same run.

Steps: layers (forward, frozen weights, batch 64), backward (forward, and gradients of maps and weights),
accuracy (logits of slak_tiny against float64), networks (forward, merged, batch 128), training (a step of
slak_tiny itself), distillation (slak_tiny teaches resnet18; the trainer against a loop written by hand),
compiled (networks and distillation again with torch.compile: ours and cuDNN's, whose ratio is "times faster",
and cuDNN's not compiled, against which is judged). bf16 everywhere. A row that does not begin within
--minutes is recorded as not run. --device cpu does the same on tiny sizes, to see that it runs; its times
would mean nothing, and are neither printed nor written.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kd_step import hand_written
from torch import Tensor, nn
from torch.nn import functional as F

from distill import models
from distill.data import Batch
from distill.models import depthwise
from distill.models.merge import reparameterize
from distill.recipe import Recipe
from distill.teacher import Teacher
from distill.training.task import Task
from distill.training.trainer import Trainer
from runtime.env import fingerprint
from runtime.files import json_text, write_text
from runtime.images import ArraySet

BF16 = torch.bfloat16
PLAIN, LAST = torch.contiguous_format, torch.channels_last
FAILED, NOT_RUN = "failed:", "not run: out of time"
EAGER = {"cudnn": "cudnn_eager", "cudnn_last": "cudnn_last_eager"}
"""Contenders of cuDNN, and beside compiled ones the same that are not compiled."""
CALL_MS = 2.0
"""How long a timed span is at least, where calls are shorter: so many calls in a row."""


@dataclass(frozen=True)
class Layer:
    """A layer and what is asked of it: times faster than cuDNN's better format."""

    channels: int
    side: int
    kernel: tuple[int, int]
    forward: float
    both: float


LAYERS = (
    Layer(124, 56, (51, 5), 25, 8),
    Layer(124, 56, (5, 51), 25, 8),
    Layer(249, 28, (49, 5), 20, 8),
    Layer(499, 14, (47, 5), 12, 8),
    Layer(998, 7, (13, 5), 1, 1),
    Layer(128, 56, (31, 31), 15, 6),
    Layer(512, 14, (27, 27), 6, 6),
    Layer(80, 56, (13, 13), 8, 6),
    Layer(96, 56, (7, 7), 1, 1),
)
STRIPS = Layer(124, 56, (51, 5), 8, 0)
"""Two strips in one pass; `forward` is times the memory floor at most."""
NETWORKS = {"slak_tiny": (5.3, 7.5), "replknet_31b": (2.8, 3.5), "unireplknet_t": (2.7, 3.5)}
"""Times faster than cuDNN's better format, not compiled: as it is, and compiled."""
TRAINING, DISTILLATION, DISTILLATION_COMPILED, OVERHEAD_PERCENT = 5.0, 4.0, 5.5, 2.0
TINY_NETWORK = {"depths": (1, 1, 1, 1), "dims": (4, 4, 4, 4), "kernel_sizes": (9, 9, 9, 9)}


@dataclass(frozen=True)
class Scale:
    """Sizes of a run: those that are judged, or those of a rehearsal."""

    device: torch.device
    rounds: int
    layer_batch: int
    network_batch: int
    img_size: int
    end: float = float("inf")
    """No row begins after this time of `time.monotonic`, seconds."""

    @property
    def is_real(self) -> bool:
        return self.device.type == "cuda"


def main(words: list[str] | None = None) -> None:
    """Measure, print, write. Ends with exit code 1 where a step failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--json", type=Path, help="file to write; the table is beside it, ending in .md")
    parser.add_argument("--only", nargs="+", choices=tuple(STEPS), default=tuple(STEPS), help="some steps")
    parser.add_argument("--minutes", type=float, default=3.5, help="no step begins after so long")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(words)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA GPU. Rehearse with TRITON_INTERPRET=1 and --device cpu")
    device = torch.device(options.device)
    scale = Scale(device, *((options.rounds, 64, 128, 224) if device.type == "cuda" else (1, 2, 2, 32)))
    keep = partial(write, options.json) if options.json else None
    found = measured(scale, options.only, options.minutes, keep)
    if not options.json:
        print(json_text(found, indent=1))
        print(to_markdown(found))
    failed = [f"{name} {why}" for name in options.only for why in failures(found[name])]
    if failed:
        sys.exit(f"error: {', '.join(failed)}")


def failures(rows: list[dict[str, Any]] | str) -> list[str]:
    """Why the step, or each row of it that failed, did."""
    states = [rows] if isinstance(rows, str) else [row.get("state", "") for row in rows]
    return [state for state in states if state.startswith(FAILED)]


def write(path: Path, found: dict[str, Any]) -> None:
    """The JSON, and the table beside it."""
    write_text(path, json_text(found, indent=1) + "\n")
    write_text(path.with_suffix(".md"), to_markdown(found))


def measured(
    scale: Scale, only: Sequence[str], minutes: float, keep: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """What every step found, with the conditions and the verdicts. keep: is given what is found so far, after
    every step.
    """
    scale = replace(scale, end=time.monotonic() + 60 * minutes)
    found: dict[str, Any] = {
        "measured": scale.is_real,
        "note": "" if scale.is_real else "A rehearsal on a CPU: nothing was measured on a GPU.",
        "machine": fingerprint(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if scale.is_real else None,
        "rounds": scale.rounds,
    }
    torch.manual_seed(0)
    for name in only:
        began = time.monotonic()
        found[name] = step(name, scale) if began < scale.end else NOT_RUN
        if scale.is_real:
            found.setdefault("seconds", {})[name] = round(time.monotonic() - began, 1)
        if keep:
            keep(found)
    return found


def step(name: str, scale: Scale) -> list[dict[str, Any]] | str:
    """Rows of the step, without times in a rehearsal; why it failed, where it did, so that the rows of the
    other steps are not lost.
    """
    try:
        release(scale)
        rows = list(STEPS[name](scale))
    except Exception as error:  # of GPUs, compilers and their memory, each with an exception of its own
        return failed_by(error)
    return rows if scale.is_real else [without_times(row) for row in rows]


def failed_by(error: Exception) -> str:
    traceback.print_exc()
    return f"{FAILED} {' '.join(f'{type(error).__name__}: {error}'.split())[:300]}"


def attempt(what: dict[str, str], scale: Scale, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The row; or `what` it is of, with its state: that it was out of time, or why it failed."""
    if time.monotonic() > scale.end:
        return what | {"state": NOT_RUN}
    try:
        return make()
    except Exception as error:  # as in `step`
        return what | {"state": failed_by(error)}


def release(scale: Scale) -> None:
    """What the step before compiled, and the networks and memory that this holds."""
    gc.collect()
    torch.compiler.reset()
    if scale.is_real:
        torch.cuda.empty_cache()


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    """The row of a rehearsal: what ran, and its errors, which are true on any machine."""
    kept = ("layer", "network", "layout", "errors", "state")
    return {key: value for key, value in row.items() if key in kept}


# timing


def interleaved(contenders: dict[str, Callable[[], object]], scale: Scale) -> dict[str, float]:
    """Median milliseconds of a call of each contender, after a warm-up that decides how many calls are timed
    together.
    """
    calls = dict.fromkeys(contenders, 1)
    if scale.is_real:
        for name, call in contenders.items():
            _span(call, 2, scale)  # compiles
            calls[name] = min(50, max(1, int(CALL_MS / _span(call, 1, scale))))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(scale.rounds):
        for name in sorted(contenders, reverse=bool(round_ % 2)):
            times[name].append(_span(contenders[name], calls[name], scale) / calls[name])
    return {name: statistics.median(values) for name, values in times.items()}


def _span(call: Callable[[], object], count: int, scale: Scale) -> float:
    """Milliseconds that so many calls take."""
    if not scale.is_real:
        began = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - began) * 1e3
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def copy_bytes_per_ms(scale: Scale) -> float:
    """The rate of a copy within the device's memory."""
    source = torch.empty(1 << (30 if scale.is_real else 20), dtype=torch.uint8, device=scale.device)
    target = torch.empty_like(source)
    return 2 * source.numel() / interleaved({"copy": lambda: target.copy_(source)}, scale)["copy"]


# layers


def sized(layer: Layer, scale: Scale) -> Layer:
    """The layer, or one of the same kind for a rehearsal."""
    if scale.is_real:
        return layer
    kernel = tuple(min(k, 9) for k in layer.kernel)
    return Layer(2, min(layer.side, 12), (kernel[0], kernel[1]), layer.forward, layer.both)


def ours(scale: Scale) -> depthwise.Algorithm:
    """By the rule on a GPU; on a CPU, whose rule is another one, the kernels."""
    return "auto" if scale.is_real else "toeplitz"


def relative_error(
    call: Callable[[Tensor], Tensor], reference: Callable[[Tensor], Tensor], x: Tensor
) -> float:
    """||call(x) - reference(x)|| / ||reference(x)||, the second in float64; x is new, and what it is written
    to holds NaN before.
    """
    x = torch.randn_like(x)
    expected = reference(x.double())
    poison = torch.full_like(x, float("nan"))
    del poison  # the allocator gives the same memory to the output
    return ((call(x).double() - expected).norm() / expected.norm()).item()


def layers(scale: Scale) -> Iterator[dict[str, Any]]:
    """Forward, weights frozen."""
    rate = copy_bytes_per_ms(scale)
    for make, layer in (*((forward_row, each) for each in LAYERS), (strips_row, STRIPS)):
        layer = sized(layer, scale)
        yield attempt({"layer": words_of(layer)}, scale, partial(make, layer, scale, rate))


def words_of(layer: Layer) -> str:
    return f"{layer.channels} x {layer.side} x {layer.side}, {layer.kernel[0]} x {layer.kernel[1]}"


def forward_row(layer: Layer, scale: Scale, rate: float) -> dict[str, Any]:
    shape = (scale.layer_batch, layer.channels, layer.side, layer.side)
    x = torch.randn(shape, device=scale.device, dtype=BF16)
    last, weight = x.contiguous(memory_format=LAST), frozen(layer, scale)

    def by(algorithm: depthwise.Algorithm, maps: Tensor) -> Callable[[], Tensor]:
        return lambda: depthwise.depthwise_conv2d(maps, weight, None, algorithm)

    contenders = {
        "cudnn": by("conv2d", x),
        "cudnn_last": by("conv2d", last),
        "ours": by(ours(scale), x),
        "ours_last": by(ours(scale), last),
        "toeplitz": by("toeplitz", x),
    }
    if layer.side <= 14:
        contenders["matrix"] = by("matrix", x)
    with torch.no_grad():
        times = interleaved(contenders, scale)
        small = x[: min(4, len(x))]
        errors = {
            name: relative_error(
                lambda t, a=algorithm: depthwise.depthwise_conv2d(t, weight, None, a),
                lambda t: depthwise.depthwise_conv2d(t, weight.double(), None, "conv2d"),
                small,
            )
            for name, algorithm in (("cudnn", "conv2d"), ("ours", ours(scale)))
        }
    return row_of(layer, times, layer.forward, {"floor_us": 4e3 * x.numel() / rate, "errors": errors})


def row_of(layer: Layer, times: dict[str, float], wanted: float, more: dict[str, Any]) -> dict[str, Any]:
    best = min(times["cudnn"], times["cudnn_last"])
    return {
        "layer": words_of(layer),
        "us": {name: 1e3 * value for name, value in times.items()},
        "times_faster": best / times["ours"],
        "wanted": wanted,
        **more,
    }


def strips_row(layer: Layer, scale: Scale, rate: float) -> dict[str, Any]:
    """Both strips and a bias, against two convolutions and a sum."""
    shape = (scale.layer_batch, layer.channels, layer.side, layer.side)
    x = torch.randn(shape, device=scale.device, dtype=BF16)
    tall = frozen(layer, scale)
    wide = nn.Parameter(tall.detach().transpose(2, 3).contiguous(), requires_grad=False)
    bias = torch.randn(layer.channels, device=scale.device, dtype=BF16)

    def by(maps: Tensor, algorithm: depthwise.Algorithm, *weights: Tensor) -> Tensor:
        return depthwise.depthwise_conv2d_pair(maps, *weights, algorithm=algorithm)

    last = x.contiguous(memory_format=LAST)
    with torch.no_grad():
        times = interleaved(
            {
                "cudnn": lambda: by(x, "conv2d", tall, wide, bias),
                "cudnn_last": lambda: by(last, "conv2d", tall, wide, bias),
                "ours": lambda: by(x, ours(scale), tall, wide, bias),
            },
            scale,
        )
        errors = {
            name: relative_error(
                lambda t, a=algorithm: by(t, a, tall, wide, bias),
                lambda t: by(t, "conv2d", tall.double(), wide.double(), bias.double()),
                x[: min(4, len(x))],
            )
            for name, algorithm in (("cudnn", "conv2d"), ("ours", ours(scale)))
        }
    floor = 4e3 * x.numel() / rate
    row = row_of(layer, times, 0, {"floor_us": floor, "errors": errors})
    del row["wanted"]
    return row | {
        "layer": row["layer"] + " and its mirror, one pass",
        "times_floor": row["us"]["ours"] / floor,
        "floor_wanted": layer.forward,
    }


def frozen(layer: Layer, scale: Scale) -> nn.Parameter:
    kh, kw = layer.kernel
    values = torch.randn(layer.channels, 1, kh, kw, device=scale.device) / (kh * kw) ** 0.5
    return nn.Parameter(values.to(BF16), requires_grad=False)


def backward(scale: Scale) -> Iterator[dict[str, Any]]:
    """Forward, and the gradients of the maps and of the weight."""
    for layer in (sized(each, scale) for each in LAYERS):
        yield attempt({"layer": words_of(layer)}, scale, partial(backward_row, layer, scale))


def backward_row(layer: Layer, scale: Scale) -> dict[str, Any]:
    shape = (scale.layer_batch, layer.channels, layer.side, layer.side)
    plain = torch.randn(shape, device=scale.device, dtype=BF16)
    weight = nn.Parameter(frozen(layer, scale).detach().clone())

    def by(algorithm: depthwise.Algorithm, given: Tensor) -> Callable[[], Any]:
        maps, grad = given.detach().clone().requires_grad_(), torch.randn_like(given)

        def call() -> Any:
            y = depthwise.depthwise_conv2d(maps, weight, None, algorithm)
            return torch.autograd.grad(y, (maps, weight), grad)

        return call

    contenders = {
        "cudnn": by("conv2d", plain),
        "cudnn_last": by("conv2d", plain.contiguous(memory_format=LAST)),
        "ours": by(ours(scale), plain),
    }
    errors = {"errors": gradient_errors(layer, scale)}
    return row_of(layer, interleaved(contenders, scale), layer.both, errors)


def gradient_errors(layer: Layer, scale: Scale) -> dict[str, list[float]]:
    """{contender: errors of the gradients of x and of the weight}, on new data."""
    shape = (min(4, scale.layer_batch), layer.channels, layer.side, layer.side)
    x, grad = (torch.randn(shape, device=scale.device, dtype=BF16) for _ in range(2))
    weight = frozen(layer, scale).detach()

    def gradients(dtype: torch.dtype, algorithm: depthwise.Algorithm) -> list[Tensor]:
        leaves = [t.to(dtype).requires_grad_() for t in (x, weight)]
        y = depthwise.depthwise_conv2d(*leaves, None, algorithm)
        return [t.double() for t in torch.autograd.grad(y, leaves, grad.to(dtype))]

    expected = gradients(torch.float64, "conv2d")
    return {
        name: [
            ((a - b).norm() / b.norm()).item()
            for a, b in zip(gradients(BF16, algorithm), expected, strict=True)
        ]
        for name, algorithm in (("cudnn", "conv2d"), ("ours", ours(scale)))
    }


# networks


def network(name: str, scale: Scale, is_merged: bool = True) -> nn.Module:
    """A network whose norms and scales are not those of the first step, which would hide every difference."""
    small = {} if scale.is_real else (TINY_NETWORK if name == "slak_tiny" else {})
    net = models.build(name, 1000 if scale.is_real else 10, small).eval()
    with torch.no_grad():
        for key, tensor in net.state_dict().items():
            if key.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif key.endswith("gamma"):
                tensor.fill_(0.2)
    net = reparameterize(net).requires_grad_(False) if is_merged else net.train()
    return net.to(scale.device)


def forward_of(
    net: nn.Module, x: Tensor, algorithm: depthwise.Algorithm, memory_format: torch.memory_format
) -> Callable[[], Tensor]:
    """A call of the network in bf16. The caller gives every memory format its own network."""
    net = net.to(memory_format=memory_format)
    images = x.contiguous(memory_format=memory_format)

    def call() -> Tensor:
        with torch.inference_mode(), depthwise.forced(algorithm), torch.autocast(x.device.type, BF16):
            return net(images)

    return call


def images_of(scale: Scale) -> Tensor:
    return torch.randn(scale.network_batch, 3, scale.img_size, scale.img_size, device=scale.device)


def accuracy(scale: Scale) -> list[dict[str, Any]]:
    """Logits of slak_tiny in bf16, how far from the same network in float64."""
    net, x = network("slak_tiny", scale), images_of(scale)[:8]
    logits = {
        name: forward_of(net, x, algorithm, PLAIN)().double()
        for name, algorithm in (("cudnn", "conv2d"), ("ours", ours(scale)))
    }
    with torch.inference_mode(), depthwise.forced("conv2d"):
        expected = net.double()(x.double())
    errors = {name: ((y - expected).norm() / expected.norm()).item() for name, y in logits.items()}
    return [{"network": "slak_tiny", "errors": errors, "wanted": "ours is not above cudnn"}]


def networks(scale: Scale) -> Iterator[dict[str, Any]]:
    """Forward, merged, in bf16: images a second."""
    for name, wanted in chosen(scale):
        yield attempt({"network": name}, scale, partial(network_row, name, scale, wanted[0], False))


def chosen(scale: Scale) -> list[tuple[str, tuple[float, float]]]:
    return [each for each in NETWORKS.items() if scale.is_real or each[0] == "slak_tiny"]


def network_row(name: str, scale: Scale, wanted: float, is_compiled: bool) -> dict[str, Any]:
    x, calls = images_of(scale), {}
    layout = depthwise.network_format(network(name, scale), scale.device, channels_last=True)
    ways: dict[str, tuple[depthwise.Algorithm, torch.memory_format]] = {
        "cudnn": ("conv2d", PLAIN),
        "cudnn_last": ("conv2d", LAST),
        "ours": (ours(scale), layout),
    }
    for key, way in ways.items():
        net = network(name, scale)
        calls[key] = forward_of(compiled(net, scale) if is_compiled else net, x, *way)
        if is_compiled and key in EAGER:
            calls[EAGER[key]] = forward_of(network(name, scale), x, *way)
    return {
        "network": name + (", compiled" if is_compiled else ""),
        "layout": "contiguous" if layout == PLAIN else "channels-last",
        **compared({key: 1e3 * len(x) / ms for key, ms in interleaved(calls, scale).items()}, wanted),
    }


def compared(rates: dict[str, float], wanted: float) -> dict[str, Any]:
    """Images a second of each contender, and how many times faster ours is than cuDNN's best: compiled where
    ours is, and as it is. What is wanted of a compiled network is against cuDNN as it is.
    """
    plain = [rates[each] for each in EAGER if each in rates]
    eager = [rates[each] for each in EAGER.values() if each in rates]
    found = {"images_per_second": rates, "times_faster": rates["ours"] / max(plain), "wanted": wanted}
    return found | ({"times_faster_than_eager": rates["ours"] / max(eager)} if eager else {})


def compiled(net: nn.Module, scale: Scale) -> Any:
    return torch.compile(net, backend="inductor" if scale.is_real else "eager")


def training(scale: Scale) -> list[dict[str, Any]]:
    """A step of slak_tiny itself: forward, backward, SGD."""
    x = images_of(scale)[: max(2, scale.network_batch // 2)]

    def by(algorithm: depthwise.Algorithm, memory_format: torch.memory_format) -> Callable[[], None]:
        net = network("slak_tiny", scale, is_merged=False).to(memory_format=memory_format)
        images = x.contiguous(memory_format=memory_format)
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)

        def call() -> None:
            with depthwise.forced(algorithm):
                with torch.autocast(x.device.type, BF16):
                    loss = F.cross_entropy(net(images).float(), torch.zeros(len(x), device=x.device).long())
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()

        return call

    ways = {"cudnn": ("conv2d", PLAIN), "cudnn_last": ("conv2d", LAST), "ours": (ours(scale), PLAIN)}
    times = interleaved({name: by(*way) for name, way in ways.items()}, scale)
    rates = {key: 1e3 * len(x) / ms for key, ms in times.items()}
    return [{"network": "slak_tiny, training", **compared(rates, TRAINING)}]


# distillation


def distillation(scale: Scale) -> list[dict[str, Any]]:
    """slak_tiny teaches resnet18, through the trainer and through a loop written by hand."""
    return [distillation_row(scale, DISTILLATION, False)]


def distillation_row(scale: Scale, wanted: float, is_compiled: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        contenders: dict[str, Callable[[], object]] = {}
        ways = {"cudnn": ("conv2d", is_compiled), "ours": (ours(scale), is_compiled)}
        if is_compiled:
            ways[EAGER["cudnn"]] = ("conv2d", False)
        for name, (algorithm, with_compile) in ways.items():
            place = Path(folder) / name
            place.mkdir()
            contenders[name] = forced_to(algorithm, trained(scale, place, with_compile))
        if not is_compiled:
            for name in ("graph", "stream"):
                place = Path(folder) / name
                place.mkdir()
                call = trained(scale, place, False, **{name: True})
                contenders[f"ours_{name}"] = forced_to(ours(scale), call)
        contenders["by_hand"] = forced_to(ours(scale), written_by_hand(scale, is_compiled))
        contenders["no_teacher"] = trained(scale, Path(folder), is_compiled, has_teacher=False)
        times = interleaved(contenders, scale)
    rates = {key: 1e3 * scale.network_batch / ms for key, ms in times.items()}
    return {
        "network": "slak_tiny teaches resnet18" + (", compiled" if is_compiled else ""),
        **compared(rates, wanted),
        "overhead_percent": 100 * (rates["by_hand"] / rates["ours"] - 1),
        "overhead_wanted": OVERHEAD_PERCENT,
    }


def forced_to(algorithm: depthwise.Algorithm, call: Callable[[], object]) -> Callable[[], object]:
    def step() -> None:
        with depthwise.forced(algorithm):
            call()

    return step


def student_of(scale: Scale) -> tuple[str, int]:
    return ("resnet18", 1000) if scale.is_real else ("resnet20", 10)


def trained(
    scale: Scale, folder: Path, is_compiled: bool, has_teacher: bool = True, **on_cuda: bool
) -> Callable[[], object]:
    """A step of the trainer, on images that are in the device's memory. on_cuda: graph, stream (Teacher)."""
    name, classes = student_of(scale)
    pixels = np.zeros((scale.network_batch, scale.img_size, scale.img_size, 3), np.uint8)
    labels = np.arange(scale.network_batch) % classes
    images = ArraySet("zeros", pixels, labels, [str(i) for i in range(classes)])
    recipe = Recipe(
        data="zeros",
        student=name,
        batch=scale.network_batch,
        img_size=scale.img_size,
        opt="sgd",
        lr=0.01,
        workers=0,
        epochs=1000,
        amp=True,
        compile=is_compiled and scale.is_real,
        device=scale.device.type,
    )
    spec = models.preprocess_of(name, scale.img_size)
    net = network("slak_tiny", scale)
    teacher = None
    if has_teacher:
        teacher = Teacher(net, spec, spec, scale.device, "bf16", compile=recipe.compile, **on_cuda)
    trainer = Trainer(
        Task("student" if teacher else "plain", recipe, folder, images, images, spec, scale.device, teacher)
    )
    x, y = images_of(scale), torch.from_numpy(labels).to(scale.device)

    def step() -> None:
        trainer.step([Batch(x, y, [])])
        trainer.flush()

    return step


def written_by_hand(scale: Scale, is_compiled: bool) -> Callable[[], object]:
    name, classes = student_of(scale)
    student = models.build(name, classes).to(scale.device, memory_format=LAST)
    teacher = network("slak_tiny", scale)
    layout = depthwise.network_format(teacher, scale.device, channels_last=True)
    teacher = teacher.to(memory_format=layout)
    if is_compiled:
        student, teacher = compiled(student, scale), compiled(teacher, scale)

    def teach(images: Tensor) -> Tensor:
        with torch.autocast(scale.device.type, BF16):
            return teacher(images.contiguous(memory_format=layout)).float()

    def learn(images: Tensor) -> Tensor:
        with torch.autocast(scale.device.type, BF16):
            return student(images).float()

    step = hand_written(student, teach, scale.network_batch, learn)
    x, y = images_of(scale), torch.arange(scale.network_batch, device=scale.device) % classes
    return lambda: step(x, y)


def compiled_ones(scale: Scale) -> Iterator[dict[str, Any]]:
    """Networks and distillation with torch.compile, ours and cuDNN's, beside cuDNN's as they are; what is
    about slak_tiny first, because compiling may take more time than there is.
    """
    rows = [
        (f"{name}, compiled", partial(network_row, name, scale, wanted[1], True))
        for name, wanted in chosen(scale)
    ]
    taught = partial(distillation_row, scale, DISTILLATION_COMPILED, True)
    rows.insert(1, ("slak_tiny teaches resnet18, compiled", taught))
    for name, make in rows:
        yield attempt({"network": name}, scale, make)
        release(scale)  # else the next networks reach torch's limit, beyond which nothing is compiled


STEPS: dict[str, Callable[[Scale], Iterable[dict[str, Any]]]] = {
    "layers": layers,
    "backward": backward,
    "accuracy": accuracy,
    "networks": networks,
    "training": training,
    "distillation": distillation,
    "compiled": compiled_ones,
}


# the table


def is_met(row: dict[str, Any]) -> bool:
    """Whether the row is what was asked for."""
    if "state" in row:
        return False
    if "floor_wanted" in row:
        return row["times_floor"] <= row["floor_wanted"]
    if "overhead_wanted" in row and row["overhead_percent"] > row["overhead_wanted"]:
        return False
    if "times_faster" in row:
        return row.get("times_faster_than_eager", row["times_faster"]) >= row["wanted"]
    return row["errors"]["ours"] <= row["errors"]["cudnn"]


def to_markdown(found: dict[str, Any]) -> str:
    """The JSON as a page; of a rehearsal only what ran."""
    conditions = f"{found['gpu']}, torch {found['torch']}, n={found['rounds']} rounds, bf16, medians."
    lines = ["# Large depthwise kernels on a GPU", "", found["note"] or conditions, ""]
    lines += ["| step | what | cuDNN, best | ours | times faster | wanted | |"]
    lines += ["|---|---|---:|---:|---:|---:|---|"]
    for name in (each for each in STEPS if each in found):
        rows = found[name]
        if isinstance(rows, str):
            lines.append(f"| {name} | {rows} | | | | | |")
        else:
            lines += [f"| {name} | {' | '.join(cells(row, found['measured']))} |" for row in rows]
    return "\n".join(lines) + "\n"


def cells(row: dict[str, Any], is_measured: bool) -> list[str]:
    """What, cuDNN's figure, ours, the ratio, the ratio that is wanted, whether it is met."""
    what = row.get("layer") or row["network"]
    if "state" in row:
        return [what, row["state"], "", "", "", ""]
    if not is_measured:
        return [what, "", "", "", "", "ran"]
    faster, wanted = f"{row.get('times_faster', 0):.1f}", str(row.get("wanted"))
    if "us" in row:
        best = f"{min(row['us']['cudnn'], row['us']['cudnn_last']):.0f} us"
        mine = f"{row['us']['ours']:.0f} us"
    elif "images_per_second" in row:
        rates = row["images_per_second"]
        best = f"{max(rates['cudnn'], rates.get('cudnn_last', 0)):,.0f} images/s"
        mine = f"{rates['ours']:,.0f} images/s"
    else:
        best, mine = (f"error {row['errors'][name]:.1e}" for name in ("cudnn", "ours"))
        faster = ""
    if "floor_wanted" in row:
        wanted = f"{row['floor_wanted']} x floor at most, is {row['times_floor']:.1f}"
    if "times_faster_than_eager" in row:
        wanted += f" x cuDNN not compiled, is {row['times_faster_than_eager']:.1f}"
    if "overhead_wanted" in row:
        wanted += f", overhead {row['overhead_wanted']} %, is {row['overhead_percent']:.1f}"
    return [what, best, mine, faster, wanted, "met" if is_met(row) else "missed"]


if __name__ == "__main__":
    main()
