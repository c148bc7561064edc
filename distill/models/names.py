"""What a network's name means: an entry of timm's registry, a repository of the Hugging Face hub, a folder.

In:  a name as it is typed: resnet18, resnet18.a1_in1k, timm/resnet18.a1_in1k, hf-hub:OWNER/NAME,
     local-dir:FOLDER.
Out: a `Network`: architecture, arguments and what its published weights are; the file of these weights.
Elsewhere: fetching (distill.models.hub), building and filling a network (distill.models), names in files,
which are never followed to a hub or a folder (runtime.recorded).
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg

from runtime import files
from runtime.errors import ArtifactError, MissingError, UsageError
from runtime.recorded import REMOTE

from . import hub
from .arguments import building

SOURCES = {"hf-hub": "hf-hub", "hf_hub": "hf-hub", "local-dir": "local-dir"}
"""What stands before a colon, as timm has it -> how it is written here."""
PREFERRED = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
"""What the weights in a folder are called, best first."""
ENDINGS = (".safetensors", ".pth", ".bin")
MOST_CONFIG = 2**20
"""Bytes of a config.json, at most."""
MOST_NUMBER = 10**6
"""What the numbers in it are below."""


@dataclass(frozen=True)
class Network:
    """What a name stands for."""

    name: str
    """As it is kept in recipes and lineages."""
    architecture: str
    """As timm's registry has it, with the tag where the name has one."""
    config: PretrainedCfg | None
    """Its published weights: where they are, how their images are preprocessed."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Arguments it is built with besides num_classes."""
    place: str = ""
    """Repository or folder; empty for timm's registry."""
    class_names: list[str] | None = None
    """Where they are told."""

    @property
    def classes(self) -> int | None:
        """How many classes the published weights know; None where there are none."""
        return self.config.num_classes if self.config and self.config.has_weights else None


def canonical(name: str) -> str:
    """One spelling for a name: timm's own for what its registry has, a source and a colon before the rest.

    Raises UsageError for a path or a repository without its source, and for a source that is not known.
    """
    source, colon, rest = name.partition(":")
    if os.path.isfile(name) and not timm.is_model(name):
        raise UsageError(
            f"{name}: a file, not the name of a network. Give it as --student-ckpt or --teacher-ckpt, and"
            " here its architecture"
        )
    if colon:
        kind = SOURCES.get(source.lower())
        if kind is None or not rest:
            page = name.removeprefix("https://").removeprefix("http://").removeprefix("huggingface.co/")
            meant = (
                f"hf-hub:{page} (did you mean that?)" if "huggingface.co/" in name else "hf-hub:OWNER/NAME"
            )
            raise UsageError(
                f"{name}: expected {meant}, local-dir:FOLDER or one of timm's names, for example"
                " resnet18.a1_in1k"
            )
        if kind == "local-dir":
            return f"local-dir:{os.path.abspath(rest)}"
        return _registered(rest) or f"hf-hub:{rest}"
    if name.startswith("timm/"):
        require_known(name.removeprefix("timm/"))
        return name.removeprefix("timm/")
    if "/" in name or "\\" in name:
        raise UsageError(
            f"{name}: not the name of a network. A repository of the Hugging Face hub is hf-hub:{name}, a"
            f" folder local-dir:{name}, a file of weights --student-ckpt or --teacher-ckpt"
        )
    return name


def _registered(repository: str) -> str:
    """timm's own name for a repository of the hub, where its registry has that one; else nothing."""
    owner, _, name = repository.partition("/")
    if owner != "timm" or not timm.is_model(name):
        return ""
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:  # a tag that this timm does not know
        return ""
    return name if config is not None and config.hf_hub_id == repository else ""


def is_remote(name: str) -> bool:
    """Whether a name leads out of timm's registry, to a hub or a folder."""
    return name.startswith(REMOTE)


def says_weights(name: str) -> bool:
    """Whether a name says which published weights are meant, as resnet18.a1_in1k does."""
    return is_remote(name) or "." in name


def require_known(name: str) -> None:
    """Raise UsageError, with the nearest name, unless `name` is an architecture, or one with the tag of its
    published weights.
    """
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=1)
        raise UsageError(
            f"no architecture called {name!r}"
            + (f"; did you mean {close[0]}?" if close else ".")
            + " All of timm's names work, and slak_tiny, slak_small, slak_base, replknet_31b, replknet_31l, "
            "replknet_xl, unireplknet_a to unireplknet_xl, and for 32 x 32 images resnet20 to resnet56"
        )
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError:  # only a tag that is none
        architecture, _, tag = name.partition(".")
        known = timm.list_pretrained(f"{architecture}.*")
        close = difflib.get_close_matches(name, known, n=1)
        raise UsageError(
            f"{architecture} has no published weights called {tag!r}"
            + (f"; did you mean {close[0]}?" if close else ".")
            + f" Known: {', '.join(known) or 'none'}. Leave the tag out to name the architecture alone"
        ) from None


def resolve(name: str, way_out: str) -> Network:
    """What a typed name means. A name of the hub costs the download of its config.json, and no other does.

    way_out: the flag that names a file instead, for messages. Raises UsageError for what is not there,
    MissingError where the hub is out of reach, ArtifactError for a config that is not timm's.
    """
    name = canonical(name)
    kind, _, place = name.partition(":")
    if not is_remote(name):
        require_known(name)
        return Network(name, name, timm.get_pretrained_cfg(name))
    if kind == "hf-hub":
        config = hub.from_hub(place, ["config.json"], hub.Wanted(name, way_out))
    else:
        config = Path(place, "config.json")
        if not config.is_file():
            raise UsageError(
                f"{name}: no config.json in the folder. Expected one that timm's save_for_hf made"
            )
    return _described(name, place, config)


def weights_of(network: Network, way_out: str) -> Path:
    """The file of the published weights: of the folder, downloaded before, or now with a line that says how
    large. Raises as `resolve` does.
    """
    config = network.config
    if config is None or not config.has_weights:
        page = getattr(config, "origin_url", None)
        raise MissingError(
            f"{network.name} has no published weights that could be fetched. Give them as a file: {way_out}"
            + (f", from {page}" if page else "")
        )
    if network.name.startswith("local-dir:"):
        return _in_folder(network)
    wanted = hub.Wanted(network.name, way_out, lambda: count_parameters(network))
    if config.hf_hub_id:
        return hub.from_hub(config.hf_hub_id, _file_names(config), wanted)
    url = config.url if isinstance(config.url, str) else (config.url or ("",))[0]
    return hub.from_url(url, wanted)


def _file_names(config: PretrainedCfg) -> list[str]:
    """What the weights of a repository may be called, best first: the safe format before the pickled one."""
    name = config.hf_hub_filename or "pytorch_model.bin"
    safe = {
        "pytorch_model.bin": "model.safetensors",
        "open_clip_pytorch_model.bin": "open_clip_model.safetensors",
    }
    if not name.endswith(".bin"):
        return [name]
    return [safe.get(name, f"{name.removesuffix('.bin')}.safetensors"), name]


def _in_folder(network: Network) -> Path:
    folder = Path(network.place)
    for name in PREFERRED:
        if (folder / name).is_file():
            return folder / name
    found = sorted(path for path in folder.iterdir() if path.suffix in ENDINGS)
    if len(found) != 1:
        many = f"several ({', '.join(path.name for path in found[:3])})" if found else "none"
        raise UsageError(
            f"{network.name}: expected one file of weights in the folder ({', '.join(PREFERRED)}), found"
            f" {many}"
        )
    return found[0]


def count_parameters(network: Network) -> int:
    """How many weights a network has with its own classifier; built without memory for them where it can.

    Raises UsageError for arguments that are not the network's own, or that it does not take.
    """
    arguments = dict(network.model_args)
    if network.config is not None:
        arguments = {"num_classes": network.config.num_classes} | arguments
    with building(network.architecture, network.model_args):
        try:
            with torch.device("meta"):
                built = timm.create_model(network.architecture, **arguments)
        except NotImplementedError:  # its initialization looks at the values
            built = timm.create_model(network.architecture, **arguments)
    return sum(weights.numel() for weights in built.parameters())


def _described(name: str, place: str, path: Path) -> Network:
    """The network of a config.json; nothing in it is opened or run: it may name an architecture, that one's
    own arguments, preprocessing and classes.
    """
    values = files.from_json(files.read_small(path, MOST_CONFIG), f"{name}: its config.json")
    if not isinstance(values, dict) or not isinstance(values.get("architecture"), str):
        raise ArtifactError(f"{name}: its config.json names no architecture, so it is not a network of timm")
    inner = values.get("pretrained_cfg", values)  # older files have all in one
    if not isinstance(inner, dict):
        raise ArtifactError(f"{name}: its config.json has a pretrained_cfg that is not an object")
    arguments = values.get("model_args") or {}
    if not isinstance(arguments, dict):
        raise ArtifactError(f"{name}: its config.json has model_args that are not an object")
    require_known(values["architecture"])
    known = {key: _typed(inner[key], key, name) for key in CONFIG if inner.get(key) is not None}
    if values.get("num_classes") is not None:  # counts before that of pretrained_cfg, as in timm
        known["num_classes"] = _typed(values["num_classes"], "num_classes", name)
    where = {"hf_hub_id": place, "url": None} if name.startswith("hf-hub:") else {"file": place}
    config = replace(PretrainedCfg(**known), architecture=values["architecture"], **where)
    labels = values.get("label_names") or inner.get("label_names")
    return Network(
        name,
        values["architecture"].partition(".")[0],
        config,
        dict(arguments),
        place,
        labels if _are_names(labels, config.num_classes) else None,
    )


def _are_names(labels: Any, count: int) -> bool:
    """Whether these are the names of so many classes, in their order."""
    if not isinstance(labels, list) or not all(isinstance(each, str) for each in labels):
        return False
    return len(labels) == len(set(labels)) == count


def _numbers(count: int, kind: type) -> Callable[[Any], bool]:
    kinds = (int,) if kind is int else (int, float)
    return lambda value: (
        isinstance(value, list)
        and len(value) == count
        and all(isinstance(each, kinds) and not isinstance(each, bool) for each in value)
        and all(abs(each) < MOST_NUMBER for each in value)  # which NaN is not
    )


def _is_name(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(each, str) for each in names)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 10


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_NUMBER


CONFIG: Mapping[str, Callable[[Any], bool]] = {
    "num_classes": _is_count,
    "label_offset": _is_count,
    "input_size": lambda value: _numbers(3, int)(value) and all(0 < each <= 4096 for each in value),
    "pool_size": _numbers(2, int),
    "mean": _numbers(3, float),
    "std": lambda value: _numbers(3, float)(value) and all(each > 0 for each in value),
    "crop_pct": _is_number,
    "interpolation": _is_name,
    "crop_mode": _is_name,
    "first_conv": _is_name,
    "classifier": _is_name,
    "tag": _is_name,
    "fixed_input_size": lambda value: isinstance(value, bool),
    "hf_hub_filename": lambda value: isinstance(value, str) and bool(re.fullmatch(r"[\w.-]+", value)),
}
"""What is read of a pretrained_cfg, and what it has to be; the places of files that it may name are not."""


def _typed(value: Any, key: str, name: str) -> Any:
    if not CONFIG[key](value):
        raise ArtifactError(f"{name}: its config.json has {key} {str(value)[:60]!r}, which cannot be")
    return tuple(value) if isinstance(value, list) else value
