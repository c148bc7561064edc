"""Parts of a network that training leaves as they are: layers near the input, all but the classifier, norms.

In:  a network with its first weights, the size of its input, and what --freeze and --freeze-norms say.
Out: the same with frozen parameters, the modules that have to stay in evaluation mode, and a line that says
     so.
Elsewhere: which layer is the classifier (distill.models.classifier), the loop (distill.training.trainer).

One image goes through the network to see the order of its layers: the stem is what it passes before the first
stage, and stages:N is everything that it passes before it leaves stage N. Which layers are a stage is what
timm's `group_matcher` says, and where that tells single layers apart (VGG) or is not there, `feature_info`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from runtime.errors import UsageError

from ..losses.feature.taps import evaluating
from ..models import classifier


@dataclass(frozen=True)
class Frozen:
    """What stays as it is."""

    norms: tuple[nn.Module, ...] = ()
    """Batch norms that keep their statistics."""
    note: str = ""
    """A line to show; empty where nothing is frozen."""

    def hold(self) -> None:
        """Put what is frozen back into evaluation mode, after the network was put into training mode."""
        for norm in self.norms:
            norm.eval()


@dataclass
class Passage:
    """When one image passed which module: moments counted from 0, the first time for each."""

    entered: dict[str, int] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    now: int = 0

    def tick(self, moments: dict[str, int], name: str) -> None:
        moments.setdefault(name, self.now)
        self.now += 1

    def of(self, parameter: str) -> int:
        """When the module that has this parameter was entered; where it is only read by another one, which
        it is a part of, when that was.
        """
        owner = parameter.rpartition(".")[0]
        while owner not in self.entered:
            owner = owner.rpartition(".")[0]
        return self.entered[owner]


@dataclass(frozen=True)
class Stage:
    """Layers between two moments of the passage."""

    begin: int
    end: int
    names: frozenset[str] = frozenset()
    """Parameters that belong to it whenever they are passed; empty where only the order is known."""


def freeze(network: nn.Module, what: str, norms: bool, input_size: Sequence[int]) -> Frozen:
    """Freeze the part that `what` names: stem, stages:N (stem and the first N stages), all-but-head, or
    nothing.

    norms: batch norms everywhere keep the statistics they have; input_size: (3, H, W) in pixels. Raises
    UsageError where the network does not say what its stages are.
    """
    names = _names(network, what, input_size) if what else set()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name not in names)
    kept = [
        module
        for prefix, module in network.named_modules()
        if isinstance(module, _BatchNorm) and (norms or f"{prefix}.weight" in names)
    ]
    lines = [f"{what} ({len(names)} of {len(list(network.parameters()))} tensors)"] if what else []
    lines += [f"statistics of {len(kept)} batch norms"] if kept else []
    return Frozen(tuple(kept), f"frozen: {', '.join(lines)}" if lines else "")


def _names(network: nn.Module, what: str, input_size: Sequence[int]) -> set[str]:
    """Names of the parameters that --freeze means."""
    heads = tuple(f"{layer}." for layer in classifier.layers_of(network))
    body = {name for name, _ in network.named_parameters() if not name.startswith(heads)}
    if what == "all-but-head":
        return body
    passage = _passage(network, input_size)
    stages = stages_of(network, passage)
    if not stages:
        raise UsageError(
            f"--freeze {what}: {type(network).__name__} does not say what its stages are. Expected"
            " all-but-head"
        )
    count = 0 if what == "stem" else int(what.partition(":")[2])
    if count > len(stages):
        raise UsageError(f"--freeze {what}: this network has {len(stages)} stages before its head")
    if not count:
        before = {name for name in body if passage.of(name) < stages[0].begin}
        return before - stages[0].names or {name for name in body if _is_stem(network, name)}
    later = frozenset[str]().union(*(stage.names for stage in stages[count:]))
    return {name for name in body if passage.of(name) <= stages[count - 1].end} - later


@torch.no_grad()
def _passage(network: nn.Module, input_size: Sequence[int]) -> Passage:
    """The order in which an image passes the modules."""
    passage, weight = Passage(), next(network.parameters())

    def watch(name: str, module: nn.Module) -> Iterator[Any]:
        yield module.register_forward_pre_hook(lambda *_: passage.tick(passage.entered, name))
        yield module.register_forward_hook(lambda *_: passage.tick(passage.left, name))

    hooks = [hook for name, module in network.named_modules() for hook in watch(name, module)]
    try:
        with evaluating(network):
            network(torch.zeros(1, *input_size, device=weight.device, dtype=weight.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    return passage


def stages_of(network: nn.Module, passage: Passage) -> list[Stage]:
    """The stages of a network, first to last; none where it does not say."""
    groups = _groups(network)
    of_one_layer = [len({name.rpartition(".")[0] for name in names}) == 1 for names in groups]
    if groups and not all(of_one_layer):
        moments = [[passage.of(name) for name in names] for names in groups]
        return [
            Stage(min(times), max(times), frozenset(names))
            for times, names in zip(moments, groups, strict=True)
        ]
    return _by_features(network, passage)


def _groups(network: nn.Module) -> list[list[str]]:
    """Parameters of each stage by the patterns of timm's `group_matcher`."""
    matcher: Any = getattr(network, "group_matcher", None)
    patterns = matcher(coarse=True) if matcher else None
    if not isinstance(patterns, dict):  # some families have a function instead, which knows no stages
        return []
    given = [spec for part, spec in patterns.items() if part != "stem" and spec is not None]
    of_stages = [
        each[0] if isinstance(each, (list, tuple)) else each
        for spec in given
        for each in ([spec] if isinstance(spec, str) else spec)
        if isinstance(each, str) or each[1] is None
    ]
    found: dict[int, list[str]] = {}
    for name, _ in network.named_parameters():
        match = next((match for each in of_stages if (match := re.match(each, name))), None)
        if match and match.groups() and not _is_stem(network, name):
            found.setdefault(int(match[1]), []).append(name)
    return [found[number] for number in sorted(found)]


def _is_stem(network: Any, name: str) -> bool:
    """Whether timm's `group_matcher` counts a parameter to the stem."""
    patterns = network.group_matcher(coarse=True) if hasattr(network, "group_matcher") else None
    stem = patterns.get("stem") if isinstance(patterns, dict) else None
    given = [stem] if isinstance(stem, str) else [each[0] for each in stem or ()]
    return any(re.match(each, name) for each in given)


def _by_features(network: nn.Module, passage: Passage) -> list[Stage]:
    """Stages that end where `feature_info` reads a map; those without parameters are none."""
    info: Any = getattr(network, "feature_info", None) or []
    ends = [entry.get("module") for entry in getattr(info, "info", info)]
    if not ends or not all(name in passage.left for name in ends):
        return []
    modules, moments = dict(network.named_modules()), {passage.of(n) for n, _ in network.named_parameters()}
    stages: list[Stage] = []
    for name in ends:
        is_whole = any(True for _ in modules[name].parameters())
        begin = passage.entered[name] if is_whole else stages[-1].end + 1 if stages else 0
        if any(begin <= moment <= passage.left[name] for moment in moments):
            stages.append(Stage(begin, passage.left[name]))
    return stages
