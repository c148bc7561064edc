"""TensorRT's timing cache on disk: what kernels took on this very machine, so that the next build need not
measure it again.

In:  a folder; TensorRT's version and the GPU.
Out: the bytes of the last build there, or None; a file written whole or not at all.
Elsewhere: what TensorRT makes of them (export.trt.build): it refuses a cache of another GPU, and starts anew
on garbage.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from runtime import files
from runtime.errors import Large2SmallError


def path(folder: str, version: str, device: Mapping[str, str | None]) -> Path | None:
    """The file for exactly this TensorRT, GPU and driver; folder "" is the default one, "none" keeps nothing.

    device: its gpu, compute_capability and driver, as words.
    """
    if folder == "none":
        return None
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = Path(folder) if folder else caches / "large2small" / "timing"
    words = (
        f"trt{version}",
        f"sm{device['compute_capability']}",
        str(device["gpu"]),
        f"driver{device['driver']}",
    )
    return home / ("-".join(re.sub(r"[^A-Za-z0-9.]+", "_", word) for word in words) + ".cache")


def read(cache: Path | None) -> bytes | None:
    """The bytes kept there; None when there are none, or when they cannot be read."""
    try:
        return cache.read_bytes() if cache else None
    except OSError:
        return None


def write(cache: Path | None, content: bytes | None) -> str | None:
    """Keep the bytes; returns why not, when the folder cannot be written: a build must not fail for that."""
    if cache is None or content is None:
        return None
    try:
        files.write_bytes(cache, content)
    except (OSError, Large2SmallError) as error:
        return f"timing cache not kept: {error}"
    return None
