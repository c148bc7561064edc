"""All engines by name: every file or folder beside this one that has an `ENGINE`.

In:  nothing; a file's name.
Out: the engines; which of them opens the file.
Elsewhere: what an engine is (runtime.backends), the flag that chooses one (bench.subject).
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from dataclasses import fields
from pathlib import Path

from .. import backends
from . import EVERYWHERE, Engine, Settings

SETTINGS = tuple(field.name for field in fields(Settings) if field.name not in EVERYWHERE)
"""The settings that some engines read and others do not."""


@functools.cache
def engines() -> dict[str, Engine]:
    """Name -> engine, in alphabetical order."""
    found = {}
    for module in pkgutil.iter_modules(backends.__path__):
        engine = getattr(importlib.import_module(f"{backends.__name__}.{module.name}"), "ENGINE", None)
        if isinstance(engine, Engine):
            found[engine.name] = engine
    return dict(sorted(found.items()))


def names() -> tuple[str, ...]:
    """The names of all engines: the choices of a flag."""
    return tuple(engines())


def suffixes() -> list[str]:
    """The endings of all files that some engine opens."""
    return sorted({suffix for engine in engines().values() for suffix in engine.suffixes})


def opening(path: Path) -> list[Engine]:
    """The engines that open files with this ending, the preferred one first."""
    able = [engine for engine in engines().values() if path.suffix in engine.suffixes]
    return sorted(able, key=lambda engine: not engine.preferred)


def readers(setting: str) -> list[str]:
    """The names of the engines that read a setting."""
    return [engine.name for engine in engines().values() if setting in engine.reads]
