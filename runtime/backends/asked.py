"""What `runtime.load` is asked for, checked before anything is opened.

In:  the arguments of `runtime.load`, whatever they are.
Out: a path and an engine; UsageError naming the argument that cannot be.
Elsewhere: opening (the engines), what they are (runtime.backends.registry), the file's own words
(runtime.artifact).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from ..files import no_artifact
from ..preprocess import Preprocess
from . import Engine, Settings, registry

CHECKPOINTS = (".pth", ".pt", ".ckpt", ".safetensors", ".th")
MOST_AT_ONCE = max(128, 4 * (os.cpu_count() or 1))
"""Threads of an engine, which starts as many as it is told to, and contexts."""


def file(given: Any) -> Path:
    """The path of a file that is there. Raises UsageError for its content, another type, or no file."""
    if isinstance(given, (bytes, bytearray, memoryview)):
        raise UsageError(
            f"load was given {len(given)} bytes; expected the path of a file. Write them to one:"
            " pathlib.Path(FILE).write_bytes(...)"
        )
    if not isinstance(given, (str, os.PathLike)) or isinstance(os.fspath(given), bytes):
        raise UsageError(f"load was given a {type(given).__name__}; expected the path of a file")
    path = Path(given)
    try:
        if path.is_file():
            return path
    except OSError as error:  # such as a name that is too long
        raise UsageError(f"{str(path)[:60]}...: cannot be opened ({error.strerror})") from error
    raise no_artifact(path)


def require_types(settings: Settings, backend: Any, preprocess: Any, class_names: Any) -> None:
    """Raise UsageError naming the first argument that is of another type than `load` says."""
    for name, value in {"backend": backend, "device": settings.device, "provider": settings.provider}.items():
        if value is not None and not isinstance(value, str):
            raise UsageError(f"{name} {value!r}: expected text")
    if not isinstance(settings.hint, str):
        raise UsageError(f"hint {settings.hint!r}: expected text")
    for name, value in {"threads": settings.threads, "contexts": settings.contexts}.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, np.integer))):
            raise UsageError(f"{name} {value!r}: expected a whole number")
        if value is not None and value > MOST_AT_ONCE:
            raise UsageError(f"{name} {value}: expected at most {MOST_AT_ONCE}")
    if preprocess is not None and not isinstance(preprocess, Preprocess):
        raise UsageError(
            f"preprocess is a {type(preprocess).__name__}: expected a runtime.Preprocess. From a dictionary:"
            " Preprocess.from_dict(...)"
        )
    several = isinstance(class_names, (Sequence, np.ndarray)) and not isinstance(class_names, (str, bytes))
    if class_names is not None and not (several and all(isinstance(name, str) for name in class_names)):
        raise UsageError(f"class_names {class_names!r}: expected a list of names, in the order of the scores")


def engine(path: Path, name: str | None) -> Engine:
    """The engine asked for, or the one for this kind of file. Raises UsageError when there is none."""
    able = registry.opening(path)
    if path.suffix in CHECKPOINTS or not (name or able):
        raise UsageError(
            f"{path}: this runtime opens {' and '.join(registry.suffixes())} files. "
            "Make one: distill export onnx CKPT"
        )
    if name is not None and name not in registry.engines():
        raise UsageError(f"backend {name!r}: expected {', '.join(registry.names())}")
    return registry.engines()[name] if name else able[0]


def refuse_unread(path: Path, engine: Engine, settings: Settings) -> None:
    """Raise UsageError for a setting that was changed and that the engine does not read."""
    for setting in registry.SETTINGS:
        value = getattr(settings, setting)
        if setting not in engine.reads and value != getattr(Settings(), setting):
            raise UsageError(
                f"{setting}={value!r} is read by {' and '.join(registry.readers(setting))} only, and"
                f" {path.name} runs on {engine.name}. Leave it out"
            )
