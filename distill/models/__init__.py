"""Networks by name: timm's registry plus this project's own families, and what a name says about
preprocessing.

In:  architecture name, keyword arguments, number of classes.
Out: a torch module; the `Preprocess` its pretrained weights expect.
Elsewhere: weights of files (distill.checkpoint), names and what is published under them
(distill.models.names), which arguments a network takes (distill.models.arguments), one family per file in
this folder.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
from timm.data import resolve_data_config
from timm.models import PretrainedCfg
from torch import nn

from runtime.errors import ArtifactError, UsageError
from runtime.preprocess import Preprocess

from . import cifar, classifier, replknet, slak, unireplknet  # noqa: F401  (they register their models)
from .arguments import building, require_own
from .names import Network, require_known


def build(name: str, num_classes: int, model_args: Mapping[str, Any] | None = None, **more: Any) -> nn.Module:
    """A network with fresh weights. more: arguments left out where they are 0 (drop_path_rate).

    Raises UsageError for an unknown name (nearest suggested) or argument.
    """
    require_known(name)
    arguments = dict(model_args or {}) | {k: v for k, v in more.items() if v}
    with building(name, arguments):
        return timm.create_model(name, num_classes=num_classes, **arguments)


def published(network: Network, model_args: Mapping[str, Any], file: Path) -> nn.Module:
    """The network with its published weights and its own classifier, read from `file` as timm reads them.

    Raises UsageError for arguments that it does not take, ArtifactError for weights that do not fit.
    """
    require_own(network.architecture, model_args)
    config: Any = network.config
    config = replace(config, url=None, hf_hub_id=None, hf_hub_filename=None, state_dict=None)
    config = replace(config, file=str(file), source=None, custom_load=file.suffix == ".npz")
    architecture = network.architecture.partition(".")[0]
    try:
        return timm.create_model(
            architecture,
            pretrained=True,
            pretrained_cfg=config,
            num_classes=config.num_classes,
            **dict(model_args),
        )
    except Exception as error:  # every architecture complains in its own way
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(
            f"{file}: the weights of {network.name} do not fit {architecture} with {dict(model_args)}"
            f" ({reason})"
        ) from error


def size_argument(name: str, sides: int | Sequence[int]) -> dict[str, int | list[int]]:
    """{'img_size': ...} for architectures that are built for one size (ViT, Swin), nothing for the others.

    sides: of a square, or (height, width); 0 or nothing says nothing.
    """
    config = timm.get_pretrained_cfg(name)
    if not sides or config is None or not config.fixed_input_size:
        return {}
    if isinstance(sides, int):
        return {"img_size": sides}
    return {"img_size": sides[0] if len(set(sides)) == 1 else list(sides)}


def sized(preprocess: Preprocess, img_size: int | None, input_size: Sequence[int]) -> Preprocess:
    """`preprocess` at the size of --img-size or --input-size; 0, None and nothing keep it. Raises UsageError
    for both flags, and for what is not a height and a width.
    """
    if input_size and img_size:
        words = " ".join(map(str, input_size))
        raise UsageError(f"--img-size {img_size} and --input-size {words}: two sizes. Give one")
    if input_size and (len(input_size) != 2 or min(input_size) < 1):
        words = " ".join(map(str, input_size))
        raise UsageError(f"--input-size {words}: expected height and width in pixels, such as 160 224")
    _, height, width = preprocess.input_size
    if input_size:
        height, width = input_size
    elif img_size:
        height = width = img_size
    return replace(preprocess, input_size=(3, height, width))


def preprocess_of(name: str, img_size: int | Sequence[int] = 0) -> Preprocess:
    """What the pretrained weights of `name` expect, from timm's data config.

    img_size, as the network's argument of that name, replaces the size: a side or (height, width) in pixels,
    0 keeps it.
    """
    require_known(name)
    found = preprocess_from(timm.get_pretrained_cfg(name))
    sides = sides_of(img_size)
    return replace(found, input_size=(3, *sides)) if all(sides) else found


def preprocess_from(config: PretrainedCfg | None) -> Preprocess:
    """What weights with this config expect."""
    unsaid = {"input_size": (3, 224, 224)}  # of a network registered without a config; the rest as timm
    resolved = resolve_data_config({}, pretrained_cfg=config.to_dict() if config else unsaid)
    return Preprocess(
        input_size=tuple(resolved["input_size"]),
        interpolation=resolved["interpolation"],
        crop_pct=resolved["crop_pct"],
        crop_mode=resolved["crop_mode"],
        mean=resolved["mean"],
        std=resolved["std"],
    )


def sides_of(img_size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a side or two, in pixels. Raises UsageError for anything else."""
    sides = tuple(img_size) if isinstance(img_size, (list, tuple)) else (img_size, img_size)
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 0 for side in sides):
        raise UsageError(f"img_size {img_size!r}: expected a side in pixels, or two as [height, width]")
    return sides[0], sides[1]


def as_asked(preprocess: Preprocess, said: Mapping[str, Any]) -> Preprocess:
    """`preprocess` with what a user says: mean, std, interpolation, exif, input_size (height, width)."""
    changes = dict(said)
    if "input_size" in changes:
        changes["input_size"] = (3, *changes["input_size"])
    return replace(preprocess, **changes)


def assumption(preprocess: Preprocess, side: str, said: Collection[str]) -> list[str]:
    """A line on what of the preprocessing of a file that brings none is taken from its architecture.

    side: `teacher-` or nothing, what the user's flags begin with; said: what the user gave: mean, std,
    input_size, interpolation.
    """
    height, width = preprocess.input_size[1:]
    known = {
        "mean": ("mean " + " ".join(f"{value:g}" for value in preprocess.mean), "mean R G B"),
        "std": ("std " + " ".join(f"{value:g}" for value in preprocess.std), "std R G B"),
        "input_size": (f"{height} x {width}", "input-size H W"),
        "interpolation": (preprocess.interpolation, "interpolation FILTER"),
    }
    assumed = [words for name, words in known.items() if name not in said]
    if not assumed:
        return []
    flags = " ".join(f"--{side}{flag}" for _, flag in assumed)
    return [
        f"preprocessing assumed: {', '.join(words for words, _ in assumed)}; if it was trained with another:"
        f" {flags}"
    ]
