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
from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn

from runtime import files
from runtime.errors import UsageError

from . import build

LARGE_KERNEL = re.compile(
    r"stages\.(\d+)\.(?:blocks\.)?0\.large_kernel\.(?:(LoRA1)\.conv|lkb_origin\.conv|lkb_reparam)\.weight"
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
    if not rename and not shown:
        return weights, arguments, []
    network = _skeleton(model, arguments)
    if _fits(weights, network):
        return weights, arguments, []
    notes = []
    if rename:
        renamed = _renamed(rename, weights, network)
        if _common(renamed, network) > _common(weights, network):
            notes.append(_renaming_note(weights, renamed))
            weights = renamed
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
    count = (
        f"renamed {len(changed)} names"
        if len(old) == len(new)
        else f"converted {len(old)} names to {len(new)}"
    )
    return f"{count} (first: {' -> '.join(changed[0])})"


def _large_kernels(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """RepLKNet's arguments that weights show."""
    found = {
        int(match[1]): tensor for key, tensor in weights.items() if (match := LARGE_KERNEL.fullmatch(key))
    }
    if not found:
        return {}
    merged = any(key.endswith("lkb_reparam.bias") for key in weights)
    shown: dict[str, Any] = {
        "deploy": merged,
        "kernel_sizes": [found[stage].shape[2] for stage in sorted(found)],
    }
    if not merged:
        sides = [tensor.shape[2] for key, tensor in weights.items() if key.endswith("small_conv.conv.weight")]
        shown["small_kernel"] = sides[0] if sides else 0
    return shown


def _slak(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """SLaK's arguments that weights show."""
    shown = _large_kernels(weights)
    if not shown:
        return {}
    strips = [
        tensor for key, tensor in weights.items() if (match := LARGE_KERNEL.fullmatch(key)) and match[2]
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
