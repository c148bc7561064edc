"""Weights in another project's file: where they stand, and what their names begin with.

In:  the dictionary of a file.
Out: weights by name, as they were before the network was wrapped, and lines on what was chosen and removed.
Elsewhere: reading the file (distill.checkpoint.file), names of the same network in another project
(distill.models.convert).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from runtime.errors import ArtifactError

AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "params_ema", "ema", "averaged_model")
"""Keys under which other projects keep averaged weights, which are the better ones."""
WRAPPERS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "module"),
    *("params", "student"),
)
"""Keys under which they keep the others."""
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "student.", "ema_model.")
"""What names begin with when a network was wrapped: in parallel, compiled, as a part of another."""
MARKERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
"""What stands within names where single layers were wrapped: sharded, recomputed, compiled."""
COUNTERS = ("total_ops", "total_params", "n_averaged")
"""Last parts of names that are not weights: counted operations (thop), averaged steps (torch)."""


def unwrap(
    values: Mapping[str, Any], name: str, entry: str = ""
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Weights out of another project's file, and a list of what was chosen and renamed for the user to read.

    entry: which entry to take, nested ones with points (`ema.module`); by default averaged weights before
    others. Raises ArtifactError for a file or an entry without weights, and for tensors that are not plain
    numbers.
    """
    weights, notes = _named_entry(values, name, entry) if entry else _likely_entry(values, name)
    state_dict = {
        key: value if is_tensor(value) else torch.from_numpy(value)
        for key, value in weights.items()
        if isinstance(key, str) and (is_tensor(value) or _is_array(value))
    }
    for key, value in state_dict.items():
        require_plain(value, f"{name}: {key}")
    state_dict = _without_counters(_without_markers(state_dict, notes), notes)
    if not state_dict:
        raise ArtifactError(f"{name}: holds no weights, only counters (first: {next(iter(weights))})")
    state_dict = _unmasked(state_dict, notes, name)
    while prefix := next((each for each in PREFIXES if all(key.startswith(each) for key in state_dict)), ""):
        state_dict = {key[len(prefix) :]: value for key, value in state_dict.items()}
        notes.append(f"prefix {prefix!r} removed from {len(state_dict)} names")
    return _without_backbone(state_dict, notes)


def _without_markers(weights: dict[str, torch.Tensor], notes: list[str]) -> dict[str, torch.Tensor]:
    """Names without what wrappers of single layers wrote into them."""
    for marker in MARKERS:
        found = [key for key in weights if f".{marker}" in f".{key}"]
        if found and not all(key.startswith(marker) for key in weights):  # all at once: as any other prefix
            notes.append(f"{marker!r} removed from {len(found)} names")
        if found:
            weights = {f".{key}".replace(f".{marker}", ".")[1:]: value for key, value in weights.items()}
    return weights


def _without_counters(weights: dict[str, torch.Tensor], notes: list[str]) -> dict[str, torch.Tensor]:
    counters = [key for key in weights if key.rpartition(".")[2] in COUNTERS]
    if counters:
        notes.append(f"left out: {len(counters)} counters (first: {counters[0]})")
    return {key: value for key, value in weights.items() if key not in set(counters)}


def _unmasked(weights: dict[str, torch.Tensor], notes: list[str], file: str) -> dict[str, torch.Tensor]:
    """Weights that torch's pruning keeps as the whole and a mask of 0 and 1, as their product. Raises
    ArtifactError where the two differ in shape.
    """
    pruned = [key.removesuffix("_mask") for key in weights if key.endswith("_mask")]
    pruned = [key for key in pruned if f"{key}_orig" in weights]
    if not pruned:
        return weights
    notes.append(f"pruned: {len(pruned)} weights multiplied by their masks (first: {pruned[0]})")
    found = {}
    for key, value in weights.items():
        name = key.removesuffix("_orig")
        if name != key and name in pruned:
            mask = weights[f"{name}_mask"]
            if mask.shape != value.shape:
                raise ArtifactError(
                    f"{file}: {key} is {tuple(value.shape)} and its mask {tuple(mask.shape)}; expected the"
                    " same shape. Save the network after torch.nn.utils.prune.remove"
                )
            found[name] = value * mask
        elif key.removesuffix("_mask") not in pruned:
            found[key] = value
    return found


def is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _is_array(value: Any) -> bool:
    """Whether a value is an array of numbers that torch can take, as detection projects keep weights."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiu" and value.flags.writeable


def _holds_tensors(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    named = [each for key, each in value.items() if isinstance(key, str)]
    return any(map(is_tensor, named)) or (len(named) > 1 and all(map(_is_array, named)))


def _likely_entry(values: Mapping[str, Any], name: str) -> tuple[Mapping[str, Any], list[str]]:
    """The weights of a file and what to say of the choice. Wrappers may be nested (`{"ema": {"module":
    ...}}`).
    """
    found = _entries(values)
    averaged = [each for each in found if any(part in AVERAGED for part in each)]
    raw = [each for each in found if each not in averaged and any(part in WRAPPERS for part in each)]
    ranked = averaged + raw
    if not ranked and _holds_tensors(values):
        return values, []
    if not ranked and len(found) != 1:
        listed = ", ".join(map(str, list(values)[:5]))
        several = "; name one: --checkpoint-key " + " or ".join(".".join(each) for each in found[:3])
        raise ArtifactError(f"{name}: holds no weights (entries: {listed}){several if found else ''}")
    chosen = (ranked or found)[0]
    note = f"taken from entry {'.'.join(chosen)!r}"
    if averaged and raw:
        other = ".".join(raw[0])
        note += f", the averaged weights; {other!r} holds the others (--checkpoint-key {other})"
    elif others := [".".join(each) for each in found if each != chosen]:
        note += f"; other entries with weights: {', '.join(others[:3])} (--checkpoint-key {others[0]})"
    return at(values, chosen), [note]


def _entries(values: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Where in the file dictionaries with tensors stand, down to the third level."""
    found: list[tuple[str, ...]] = []
    waiting: list[tuple[tuple[str, ...], Mapping[str, Any]]] = [((), values)]
    while waiting:
        path, inside = waiting.pop(0)
        if path and _holds_tensors(inside):
            found.append(path)
        elif len(path) < 3:
            waiting += [
                ((*path, key), each)
                for key, each in inside.items()
                if isinstance(key, str) and isinstance(each, Mapping) and not key.startswith("optim")
            ]
    return found


def _named_entry(values: Mapping[str, Any], name: str, entry: str) -> tuple[Mapping[str, Any], list[str]]:
    inside = values[entry] if entry in values else at(values, tuple(entry.split(".")))
    if not _holds_tensors(inside):
        known = ", ".join(".".join(each) for each in _entries(values)) or "none"
        raise ArtifactError(f"{name}: has no weights in an entry {entry!r}. Entries with weights: {known}")
    return inside, [f"taken from entry {entry!r}"]


def at(values: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def require_plain(tensor: torch.Tensor, name: str) -> None:
    """Raise ArtifactError for a tensor that is not strided real numbers: copying it would fail, or lose a
    part of it.
    """
    kinds = {
        "meta": tensor.is_meta,
        "sparse": tensor.layout != torch.strided,
        "quantized": tensor.is_quantized,
        "complex": tensor.is_complex(),
    }
    for kind, holds in kinds.items():
        if holds:
            raise ArtifactError(
                f"{name} is a {kind} tensor; expected dense real numbers. Save the network in float32"
            )


def _without_backbone(
    weights: dict[str, torch.Tensor], notes: list[str]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """`backbone.` and `head.` beside each other, as OpenMMLab writes: the backbone's names as they are in the
    network, and a linear head as `fc`.
    """
    if not any(key.startswith("backbone.") for key in weights) or not all(
        key.startswith(("backbone.", "head.", "neck.", "data_preprocessor.")) for key in weights
    ):
        return weights, notes
    notes.append("prefix 'backbone.' removed, and 'head.' where a linear layer follows")
    renamed = {}
    for key, value in weights.items():
        if not key.startswith("data_preprocessor."):
            renamed[key.removeprefix("backbone.").replace("head.fc.", "fc.")] = value
    return renamed, notes
