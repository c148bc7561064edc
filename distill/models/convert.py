"""Published weights as our networks name them, and what a file shows about the network it belongs to.

In:  architecture, its arguments, weights by name as a foreign file spells them (without wrapper and prefix).
Out: weights under the network's names, arguments that fit them (kernels, merged or not), and notes on both
for the user.
Elsewhere: wrappers, prefixes and reading files (distill.checkpoint); a family's own renaming
(`checkpoint_filter_fn` in its file, as in timm's).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn

from runtime import files
from runtime.errors import UsageError

from . import build, classifier

TRACKED = "num_batches_tracked"
"""Last part of the names of counters that old files do not have."""
MOST_NAMES = 0.9
"""Share of a network's names, its classifier apart, that a part of a file has to have to be it."""
DEEPEST_PREFIX = 4
"""Parts of a name that may stand before the network's own."""
FEWEST_IN_ORDER = 20
"""Weights below which the same shapes in the same order say too little."""

LARGE_KERNEL = re.compile(
    r"stages\.(\d{1,3})\.(?:blocks\.)?0\.large_kernel\.(?:(LoRA1)\.conv|lkb_origin\.conv|lkb_reparam)\.weight"
)


def convert(
    model: str,
    model_args: Mapping[str, Any],
    weights: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """(weights, arguments, notes) for architecture `model`; everything comes back as it was where the names
    fit already.

    Names are converted by the `checkpoint_filter_fn` in the architecture's module: timm's own for its
    families (ConvNeXt files of Facebook), ours for SLaK. Of SLaK, RepLKNet and UniRepLKNet the arguments that
    the user did not give are read from the weights where the architecture's do not fit: merged files need
    deploy=True, SLaK files exist with kernels of 31, 51 and 61.
    """
    weights, arguments = dict(weights), dict(model_args)
    module = sys.modules[timm.model_entrypoint(model).__module__]
    rename, shown = getattr(module, "checkpoint_filter_fn", None), SHOWN.get(module.__name__)
    network = _skeleton(model, arguments)
    if _fits(weights, network):
        return weights, arguments, []
    notes = []
    if rename:
        renamed = _renamed(rename, weights, network)
        if _common(renamed, network) > _common(weights, network):
            notes.append(_renaming_note(weights, renamed))
            weights = renamed
    weights, more = placed(weights, network)
    notes += more
    if shown:
        ours = shown(network.state_dict())
        found = {
            key: value
            for key, value in shown(weights).items()
            if key not in arguments and ours.get(key) != value
        }
        if found:
            notes.append(
                "arguments read from the weights: "
                + ", ".join(f"{k}={files.json_text(v)}" for k, v in found.items())
            )
            arguments |= found
    return weights, arguments, notes


def placed(weights: dict[str, Tensor], network: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """(weights, notes): the part of a file that is this network, where only a part is, or where its names are
    others and its shapes are the same, one after the other. Everything comes back as it was where most names
    fit, and where nothing does.
    """
    heads = tuple(f"{layer}." for layer in classifier.layers_of(network))
    shapes = {key: value.shape for key, value in network.state_dict().items() if not key.endswith(TRACKED)}
    body = [key for key in shapes if not key.startswith(heads)]
    prefixes = {"": 0} | dict.fromkeys(_prefixes(weights), 0)
    for prefix in prefixes:
        prefixes[prefix] = sum(f"{prefix}{key}" in weights for key in body)
    best = max(prefixes, key=lambda prefix: prefixes[prefix])
    if best and prefixes[best] >= MOST_NAMES * len(body) and prefixes[best] > 2 * prefixes[""]:
        inside = {key.removeprefix(best): value for key, value in weights.items() if key.startswith(best)}
        others = [key for key in weights if not key.startswith(best)]
        left = f"; left out: {len(others)} others (first: {others[0]})" if others else ""
        return inside, [f"taken: the names that begin with {best!r}{left}"]
    if prefixes[""] > len(body) / 2 or len(body) < FEWEST_IN_ORDER:
        return weights, []
    for prefix in prefixes:
        found = _in_order({k: v for k, v in weights.items() if k.startswith(prefix)}, body, shapes)
        if found:
            return found
    return weights, []


def _prefixes(weights: Mapping[str, Tensor]) -> Iterator[str]:
    """Beginnings of names that end with a point, in the order of the file."""
    for key in weights:
        parts = key.split(".")
        yield from (".".join(parts[:count]) + "." for count in range(1, min(len(parts), DEEPEST_PREFIX + 1)))


def _in_order(
    weights: Mapping[str, Tensor], body: list[str], shapes: Mapping[str, torch.Size]
) -> tuple[dict[str, Tensor], list[str]] | None:
    """The weights under the network's names where all but the classifier have its shapes and kinds, one after
    the other; None where they do not.
    """
    theirs = [key for key in weights if not key.endswith(TRACKED)]
    own = [*body, *(key for key in shapes if key not in set(body))]
    pairs = list(zip(theirs, body, strict=False))
    if len(pairs) < len(body) or list(shapes) != own:  # a classifier in the middle cannot be told apart
        return None
    for key, name in pairs:
        if weights[key].shape != shapes[name] or key.rpartition(".")[2] != name.rpartition(".")[2]:
            return None
    found = {name: weights[key] for key, name in pairs}
    rest, head = theirs[len(body) :], own[len(body) :]
    if len(rest) == len(head) and all(
        weights[key].shape[1:] == shapes[name][1:] for key, name in zip(rest, head, strict=True)
    ):
        found |= {name: weights[key] for key, name in zip(rest, head, strict=True)}
        rest = []
    left = f"; left out: {len(rest)} weights of another head (first: {rest[0]})" if rest else ""
    return found, [
        f"names matched by their order: {len(body)} weights of the same shapes (first: {theirs[0]} ->"
        f" {body[0]}){left}"
    ]


def _skeleton(model: str, model_args: Mapping[str, Any]) -> nn.Module:
    """The network without weights: names and shapes. Raises UsageError for arguments it does not take."""
    try:
        with torch.device("meta"):
            return build(model, 1000, model_args)
    except (
        UsageError
    ):  # either a wrong argument, which the second try names, or code that computes with its weights
        return build(model, 1000, model_args)


def _common(weights: Mapping[str, Tensor], network: nn.Module) -> int:
    return len(weights.keys() & network.state_dict().keys())


def _fits(weights: Mapping[str, Tensor], network: nn.Module) -> bool:
    """Whether every name is there, and large kernels have the network's sizes; channels and classes are not
    looked at.
    """
    expected = network.state_dict()
    return weights.keys() == expected.keys() and all(
        tensor.shape[2:] == expected[key].shape[2:]
        for key, tensor in weights.items()
        if ".large_kernel." in key
    )


def _renamed(
    rename: Callable[..., dict[str, Tensor]], weights: dict[str, Tensor], network: nn.Module
) -> dict[str, Tensor]:
    try:
        return rename(dict(weights), network)
    except (
        Exception
    ):  # whatever a converter raises for a file of another family: the names as they are then say what it is
        return weights


def _renaming_note(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> str:
    changed = [pair for pair in zip(old, new, strict=False) if pair[0] != pair[1]]
    if not changed:  # names were added behind the others
        return f"converted {len(old)} names to {len(new)}"
    count = (
        f"renamed {len(changed)} names"
        if len(old) == len(new)
        else f"converted {len(old)} names to {len(new)}"
    )
    return f"{count} (first: {' -> '.join(changed[0])})"


def _large_kernels(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """RepLKNet's arguments that weights show."""
    found = {
        int(match[1]): tensor
        for key, tensor in weights.items()
        if (match := LARGE_KERNEL.fullmatch(key)) and tensor.ndim == 4
    }
    if not found:
        return {}
    merged = any(key.endswith("lkb_reparam.bias") for key in weights)
    shown: dict[str, Any] = {
        "deploy": merged,
        "kernel_sizes": [found[stage].shape[2] for stage in sorted(found)],
    }
    if not merged:
        sides = [
            tensor.shape[2]
            for key, tensor in weights.items()
            if key.endswith("small_conv.conv.weight") and tensor.ndim == 4
        ]
        shown["small_kernel"] = sides[0] if sides else 0
    return shown


def _slak(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """SLaK's arguments that weights show."""
    shown = _large_kernels(weights)
    if not shown:
        return {}
    strips = [
        tensor
        for key, tensor in weights.items()
        if (match := LARGE_KERNEL.fullmatch(key)) and match[2] and tensor.ndim == 4
    ]
    if strips:
        shown |= {
            "small_kernel": strips[0].shape[3],
            "deploy": any(key.endswith("LoRA1.conv.bias") for key in weights),
        }
    if not shown["deploy"]:
        shown["bn"] = any(key.endswith(".bn.running_mean") for key in weights)
    return shown | {"decomposed": bool(strips)}


def _unireplknet(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Only whether it is merged: its dilated branches and norms are gone then."""
    return {"deploy": any(key.endswith("dwconv.lk_origin.bias") for key in weights)}


SHOWN: dict[str, Callable[[Mapping[str, Tensor]], dict[str, Any]]] = {
    f"{__package__}.slak": _slak,
    f"{__package__}.replknet": _large_kernels,
    f"{__package__}.unireplknet": _unireplknet,
}
"""{module of a family: what reads its arguments}."""
