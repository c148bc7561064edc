"""Taps: one forward pass that gives a network's logits and its stage maps, and which maps of two networks
belong together.

In:  any timm model (or one of this project's) with `feature_info`; the size of its input; a choice of stages.
Out: Outputs(logits, features), features (N, C, H, W) shallow to deep; pairs of stages, and lines that say
what they are.
Elsewhere: what is made of the maps (distill.losses), resizing and projecting them
(distill.losses.feature.base).

Forward hooks read the outputs of the modules that `feature_info` names, so the logits are those of the
model's own forward, to the bit. Where these modules give no map (HRNet, MViT, Twins, Hiera and a few more),
timm's `forward_intermediates` is called instead. Nothing is added to the model's state dict, and no map is
kept after the call that made it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from runtime.errors import UsageError

from ..base import Outputs

STAGES_AT_ONE_STRIDE = 4
"""As many of the blocks of one stride are matched by themselves, evenly spaced: a ViT has 12 or more, all of
one stride."""


@dataclass(frozen=True)
class Stage:
    """One place of a network where its map can be read."""

    index: int
    """Its place in `feature_info`, the number that timm's `out_indices` takes."""
    name: str
    """The module whose output it is."""
    channels: int
    height: int
    width: int
    stride: int
    """Pixels of the input per position of the map."""
    image: int
    """Height of the input, pixels: where teacher and student read other sizes, strides are compared as shares
    of it."""
    layout: str = "nchw"
    """How the module gives it: nchw, nhwc, or tokens (N, prefix + H W, C); timm: `forward_intermediates`
    gives it, no module."""
    prefix: int = 0
    """Tokens before those of the map (class token, registers); they are dropped."""
    overwritten: bool = False
    """Whether the network later writes into this tensor, so that a copy has to be taken."""

    def __str__(self) -> str:
        return f"{self.name} {self.channels}x{self.height}x{self.width} (stride {self.stride})"


class Taps:
    """`taps(images)` -> Outputs with the maps of the stages chosen by `use`; none at first. `close()` takes
    the hooks off.

    Layers inside a torch.compile-d network are reached through `forward`, the wrapped callable; choose the
    stages before its first call, because torch.compile does not look for hooks again. Raises UsageError where
    nothing can be tapped, and for a wrapped network whose maps only timm can give.
    """

    def __init__(
        self, model: nn.Module, input_size: Sequence[int], forward: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        """input_size is (3, H, W) in pixels. One made image goes through the model, in eval mode, to measure
        the maps.
        """
        self.model, self.forward = model, model if forward is None else forward
        self.chosen: tuple[Stage, ...] = ()
        self._caught: dict[str, Tensor] | None = None
        self._hooks: list[Any] = []
        self.stages = _probe(model, tuple(input_size))
        if self.stages[0].layout == "timm" and self.forward is not model:
            raise UsageError(
                f"the maps of {type(model).__name__} come from its layers called one by one, not from the"
                " whole network: it cannot be compiled with a loss of features"
            )

    def use(self, stages: Iterable[Stage]) -> None:
        """Read these stages, in this order, from the next call on; the same stage may be asked for twice."""
        self.close()
        self.chosen = tuple(stages)
        modules = dict(self.model.named_modules())
        for stage in {stage.name: stage for stage in self.chosen if stage.layout != "timm"}.values():
            self._hooks.append(modules[stage.name].register_forward_hook(self._hook(stage)))

    def __call__(self, images: Tensor) -> Outputs:
        """images (N, 3, H, W). Raises UsageError when a stage cannot pass a gradient to a network that is
        being trained.
        """
        logits, features = self._read(images, self.forward)
        for stage, feature in zip(self.chosen, features, strict=True):
            if logits.requires_grad and not feature.requires_grad:
                raise UsageError(
                    f"stage {stage.name} gives a map without gradient: its layers are frozen, or recomputed"
                    " by reentrant checkpointing. Leave that stage out"
                )
        return Outputs(logits, features)

    def sample(self, images: Tensor) -> Outputs:
        """The same in eval mode, without gradient and without moving batch norm's statistics: to prepare a
        loss with.
        """
        with evaluating(self.model):
            return Outputs(*self._read(images, self.model))

    def close(self) -> None:
        """Take the hooks off; the model is as it was."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self.chosen = [], ()

    def __enter__(self) -> Taps:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, images: Tensor, forward: Callable[[Tensor], Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        if self.chosen and self.chosen[0].layout == "timm":
            model: Any = self.model  # one of timm's
            last, maps = model.forward_intermediates(images)
            return model.forward_head(last), tuple(maps[stage.index] for stage in self.chosen)
        caught: dict[str, Tensor] = {}
        self._caught = caught
        try:
            logits = forward(images)
        finally:
            self._caught = None
        return logits, tuple(_as_map(caught[stage.name], stage) for stage in self.chosen)

    def _hook(self, stage: Stage) -> Callable[[nn.Module, Any, Tensor], None]:
        def catch(
            _: nn.Module, __: Any, output: Tensor
        ) -> None:  # a plain function: copying the model (EMA) does not copy us
            if (
                self._caught is not None
            ):  # not in other calls of the model: evaluation, checkpointed recomputation
                self._caught[stage.name] = output.clone() if stage.overwritten else output

        return catch


Call = tuple[Any, int]
"""A module's output, and its version then: how often it had been written into."""
Calls = dict[str, list[Call]]


def match(
    student: Sequence[Stage], teacher: Sequence[Stage], stages: str = "all"
) -> list[tuple[Stage, Stage]]:
    """(student stage, teacher stage) pairs, shallow to deep.

    stages: `last` pairs the two deepest; `all` also pairs the others by stride; `2:1,4:3` names pairs by
    hand, each stage by its number in timm's `feature_info` or by its module. The rule of `all`: the deepest
    go together; every other student stride goes to the teacher stride nearest in log2, and where two want the
    same one the nearer has it, the deeper on a tie, so each stage is used once. Where the inputs differ in
    size, strides are shares of the image. Of blocks of one stride (ViT) four are looked at, the deepest
    first. Raises UsageError for a choice that is not there.
    """
    if stages == "last":
        return [(student[-1], teacher[-1])]
    return _by_stride(student, teacher) if stages == "all" else _by_hand(student, teacher, stages)


def choose(student: Sequence[Stage], stages: str = "all") -> list[Stage]:
    """Stages of the student alone, shallow to deep, for a loss that reads no map of the teacher.

    stages: `last`; `all`, those of its four deepest strides (of blocks of one stride four, evenly spaced);
    `1,2` names them by hand, as `match` does. What stands behind a colon, a stage of the teacher, is not
    looked at.
    """
    if stages == "last":
        return [student[-1]]
    if stages == "all":
        strides = sorted({stage.stride for stage in student})[-4:]
        return [stage for stage, _ in _by_stride(student, student) if stage.stride in strides]
    found = {_find(student, part.partition(":")[0].strip(), "student") for part in stages.split(",")}
    return sorted(found, key=lambda stage: stage.index)


def pair_lines(pairs: Sequence[tuple[Stage, Stage | None]]) -> list[str]:
    """One printable line per pair; without a teacher's stage it is the teacher's logits that teach."""
    return [f"stage {s.index}: student {s} learns from teacher {t or 'logits'}" for s, t in pairs]


def _by_stride(student: Sequence[Stage], teacher: Sequence[Stage]) -> list[tuple[Stage, Stage]]:
    pairs = [(student[-1], teacher[-1])]
    ours, theirs = (_groups(stages) for stages in (student, teacher))
    homes: dict[float, float] = {}
    for a in sorted(ours) if theirs else ():
        b = min(sorted(theirs, reverse=True), key=lambda b: _octaves(a, b))
        if b not in homes or _octaves(a, b) <= _octaves(homes[b], b):
            homes[b] = a
    for b, a in homes.items():
        pairs += zip(reversed(ours[a]), reversed(theirs[b]), strict=False)
    return sorted(pairs, key=lambda pair: pair[0].index)


def _groups(stages: Sequence[Stage]) -> dict[float, list[Stage]]:
    """{share of the image: stages of that stride}, at most four evenly spaced, without the deepest of all."""
    groups: dict[float, list[Stage]] = {}
    for stage in stages:
        groups.setdefault(stage.stride / stage.image, []).append(stage)
    for key, group in groups.items():
        n, most = len(group), STAGES_AT_ONE_STRIDE
        if n > most:
            group = [group[(i + 1) * n // most - 1] for i in range(most)]
        groups[key] = [stage for stage in group if stage is not stages[-1]]
    return {key: group for key, group in groups.items() if group}


def _octaves(a: float, b: float) -> float:
    return round(abs(math.log2(a / b)), 6)  # 1 for 8/224 between 4/224 and 16/224, whatever the last bits say


def _by_hand(student: Sequence[Stage], teacher: Sequence[Stage], text: str) -> list[tuple[Stage, Stage]]:
    pairs = []
    for part in text.split(","):
        ours, colon, theirs = (word.strip() for word in part.partition(":"))
        if not (ours and colon and theirs):
            raise UsageError(f"stages {text!r}: expected last, all, or pairs STUDENT:TEACHER such as 2:1,4:3")
        pairs.append((_find(student, ours, "student"), _find(teacher, theirs, "teacher")))
    if len(set(pairs)) < len(pairs):
        raise UsageError(f"stages {text!r}: a pair is named twice")
    return sorted(pairs, key=lambda pair: pair[0].index)


def _find(stages: Sequence[Stage], word: str, role: str) -> Stage:
    for stage in stages:
        if word in (str(stage.index), stage.name):
            return stage
    known = ", ".join(f"{stage.index} {stage}" for stage in stages)
    raise UsageError(f"the {role} has no stage {word!r}. Its stages: {known}")


def _as_map(output: Tensor, stage: Stage) -> Tensor:
    """The module's output as (N, C, H, W)."""
    if stage.layout == "nchw":
        return output
    if stage.layout == "nhwc":
        return output.permute(0, 3, 1, 2)
    tokens = output[:, stage.prefix :]
    if tokens.shape[1] != stage.height * stage.width:
        raise UsageError(
            f"stage {stage.name} gives {tokens.shape[1]} tokens where {stage.height} x {stage.width} were"
            " measured: feature distillation with tokens needs images of one size"
        )
    return tokens.transpose(1, 2).reshape(len(tokens), stage.channels, stage.height, stage.width)


def _probe(model: nn.Module, input_size: tuple[int, ...]) -> tuple[Stage, ...]:
    """Every stage of `feature_info` that one forward pass shows to be readable, shallow to deep."""
    name, info = type(model).__name__, getattr(model, "feature_info", None) or []
    entries = list(enumerate(getattr(info, "info", info)))
    weight = next(model.parameters())
    ramp = torch.linspace(-1, 1, math.prod(input_size), device=weight.device, dtype=weight.dtype)
    image = ramp.view(1, *input_size)  # not a constant one, which would hide that tokens are in another order
    with evaluating(model):
        logits, calls = _watched(model, {entry.get("module") for _, entry in entries}, image)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise UsageError(
                f"{name} gives more than logits (N, K) in one forward pass, so its feature maps cannot be"
                " read"
            )
        stages = [
            _stage(index, entry, calls.get(entry.get("module"), []), image, model) for index, entry in entries
        ]
        if entries and (stages[-1] is None or not _in_raster_order(stages, calls, image, model)):
            stages = _timm_stages(entries, image, model, logits)
    if not stages or stages[-1] is None:
        raise UsageError(
            f"{name} has no last stage whose output is a map or a row of tokens (timm's feature_info), so it"
            " has no feature maps to compare. Use a loss on logits, or another architecture"
        )
    return tuple(stage for stage in stages if stage is not None)


def _watched(model: nn.Module, keys: set[str | None], image: Tensor) -> tuple[Any, Calls]:
    """What the model gives for the image, and every output of each of these modules."""
    calls: Calls = {}

    def note(key: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _, __, output: calls.setdefault(key, []).append(
            (output, getattr(output, "_version", 0))
        )

    hooks = [
        module.register_forward_hook(note(key))
        for key, module in model.named_modules()
        if key and key in keys
    ]
    try:
        return model(image), calls
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards every module is in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _stage(
    index: int, entry: dict[str, Any], calls: Sequence[Call], image: Tensor, model: nn.Module
) -> Stage | None:
    """What the probe saw of one module, or None where its output cannot be read as one map."""
    if len(calls) != 1 or not isinstance(calls[0][0], Tensor):
        return None
    output, version = calls[0]
    channels, stride = entry["num_chs"], int(entry["reduction"])
    layout, prefix, (height, width) = _layout(
        tuple(output.shape), channels, stride, (image.shape[2], image.shape[3]), model
    )
    if not layout:
        return None
    return Stage(
        index,
        entry["module"],
        channels,
        height,
        width,
        stride,
        image.shape[2],
        layout,
        prefix,
        overwritten=output._version != version,
    )


def _layout(
    shape: tuple[int, ...], channels: int, stride: int, image: tuple[int, int], model: nn.Module
) -> tuple[str, int, tuple[int, int]]:
    """(layout, prefix tokens, (height, width)) of an output of this shape; an empty layout where it is
    neither map nor tokens.
    """
    if (
        len(shape) == 4
        and shape[3] == channels
        and (shape[1] != channels or getattr(model, "output_fmt", "") == "NHWC")
    ):
        return "nhwc", 0, (shape[1], shape[2])
    if len(shape) == 4 and shape[1] == channels:
        return "nchw", 0, (shape[2], shape[3])
    if len(shape) == 3 and shape[2] == channels:
        height, width = image
        for grid in ((height // stride, width // stride), (-(-height // stride), -(-width // stride))):
            for prefix in (0, getattr(model, "num_prefix_tokens", 0)):
                if math.prod(grid) + prefix == shape[1]:
                    return "tokens", prefix, grid
    return "", 0, (0, 0)


def _in_raster_order(stages: list[Stage | None], calls: Calls, image: Tensor, model: Any) -> bool:
    """Whether tokens come row by row (Hiera groups them by window): compared with timm's own maps."""
    tokens = [stage for stage in stages if stage is not None and stage.layout == "tokens"]
    if not tokens or not hasattr(model, "forward_intermediates"):
        return True
    maps = model.forward_intermediates(image, intermediates_only=True)
    return all(torch.allclose(_as_map(calls[stage.name][0][0], stage), maps[stage.index]) for stage in tokens)


def _timm_stages(
    entries: Sequence[tuple[int, dict[str, Any]]], image: Tensor, model: Any, logits: Tensor
) -> list[Stage | None]:
    """The stages that timm's `forward_intermediates` gives, if the model has it and its logits come out of it
    unchanged.
    """
    if not hasattr(model, "forward_intermediates") or not hasattr(model, "forward_head"):
        return [None]
    last, maps = model.forward_intermediates(image)
    if len(maps) != len(entries) or not torch.allclose(model.forward_head(last), logits):
        return [None]
    return [
        Stage(
            index,
            entry.get("module") or f"stage{index}",
            map_.shape[1],
            map_.shape[2],
            map_.shape[3],
            int(entry["reduction"]),
            image.shape[2],
            "timm",
        )
        for (index, entry), map_ in zip(entries, maps, strict=True)
    ]
