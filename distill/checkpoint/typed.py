"""What the entries of a checkpoint of this project have to be: checked once, where the file is read.

In:  the dictionary of a file.
Out: nothing, or TypeError or ArtifactError.
Elsewhere: reading the file (distill.checkpoint.file), what the entries mean (distill.checkpoint).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .foreign import at, is_tensor, require_plain

KINDS: dict[str, type | tuple[type, ...]] = {
    "model": str,
    "model_args": dict,
    "state_dict": dict,
    "class_names": (list, type(None)),
    "metrics": dict,
    "lineage": dict,
    "quantized": (dict, type(None)),
    "state": (dict, type(None)),
    "role": str,
}
"""What the entries of our file are."""
LINEAGE: dict[str, type] = {
    **dict.fromkeys(("data", "teacher", "student", "labels", "recipe", "versions"), dict),
    **dict.fromkeys(("data.train_spec", "data.val_spec", "data.train_sha256", "data.val_sha256"), str),
    **dict.fromkeys(("teacher.file", "teacher.sha256", "student.file", "student.sha256"), str),
    "labels.sha256": str,
    **dict.fromkeys(("fitted_from", "fitted_from.preprocess"), dict),
    **dict.fromkeys(("fitted_from.model", "fitted_from.file", "fitted_from.sha256"), str),
    **dict.fromkeys(("fitted_from.merged", "fitted_from.dtype", "fitted_from.fitted"), str),
    **{"fitted_from.published": str, "fitted_from.converted": list},
    "converted": list,
}
"""What the entries of a lineage are that are read again; None is any of them."""
DEEPEST = 16
"""Lists and dictionaries inside one another, in what a file says beside its weights."""
MOST_NUMBER = 2**63
"""What whole numbers in it are below."""


def require_typed(values: Mapping[str, Any], path: str | Path) -> None:
    """Raise TypeError for entries of our file that hold other values than they should, ArtifactError for
    weights that are not plain numbers.
    """
    for name, kind in KINDS.items():
        if name in values and not isinstance(values[name], kind):
            raise TypeError(f"{name} is a {type(values[name]).__name__}")
    for key, tensor in values["state_dict"].items():
        if not isinstance(key, str) or not is_tensor(tensor):
            raise TypeError(f"state_dict: {key!r} is a {type(tensor).__name__}, not a tensor")
        require_plain(tensor, f"{path}: {key}")
    if not all(isinstance(name, str) for name in values.get("class_names") or ()):
        raise TypeError("class_names holds more than names")
    for name in ("model_args", "metrics", "lineage"):
        require_simple(values.get(name) or {}, name)
    for entry, kind in LINEAGE.items():
        found = at(values.get("lineage"), tuple(entry.split(".")))
        if found is not None and not isinstance(found, kind):
            raise TypeError(f"lineage.{entry} is a {type(found).__name__}")
    for line in at(values.get("lineage"), ("converted",)) or ():
        if not isinstance(line, str):
            raise TypeError(f"lineage.converted holds a {type(line).__name__}")


def require_simple(value: Any, where: str, depth: int = 0) -> None:
    """Raise TypeError for anything but text, numbers, lists and dictionaries of them, DEEPEST at most."""
    if depth > DEEPEST:
        raise TypeError(f"{where} is nested more than {DEEPEST} deep")
    if isinstance(value, dict):
        for key, each in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where} has a key {key!r}")
            require_simple(each, f"{where}.{key}" if depth < 3 else where, depth + 1)
    elif isinstance(value, (list, tuple)):
        for each in value:
            require_simple(each, where, depth + 1)
    elif isinstance(value, int) and abs(value) >= MOST_NUMBER:
        raise TypeError(f"{where} is a whole number beyond 64 bits")
    elif value is not None and not isinstance(value, (str, bool, int, float)):
        raise TypeError(f"{where} is a {type(value).__name__}")
