"""One engine per file or folder here. What a new one has to offer: a `Backend`, and an `ENGINE` that says
which files it opens.

Elsewhere: the list of all engines (runtime.backends.registry), which finds every file here that has an
`ENGINE`: nothing else names them. A file here imports its library only when it opens something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..artifact import Metadata, read_map
from ..errors import ArtifactError, UsageError

BatchSizes = list[tuple[int, int | None]]
"""(smallest, largest) number of images in one call, for each range that the file takes; None: no limit."""


class Backend(Protocol):
    """An open file. A backend may also offer `run_on_device(batch, out)`, for a batch that is on its GPU."""

    engine: str
    """The library, as in onnxruntime; with `version` it is shown beside every measurement."""
    version: str
    path: Path
    device: str
    """In use, as cpu or cuda:1."""
    provider: str
    """In use, in words: what computes, in which precision where the engine may choose."""
    threads: int | None
    """CPU threads; None where the engine does not say."""
    input_shape: list[int | None]
    """(N, C, H, W); None where any size goes."""
    batch_sizes: BatchSizes

    def run(self, batch: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """(N, C, H, W) float32 -> (N, K) float32, in `out` when given. Called from many threads at once."""

    def close(self) -> None:
        """Free what the engine holds; calling again does nothing."""


@dataclass(frozen=True)
class Settings:
    """What `runtime.load` was given for the engine. What the engine does not read is left at its default."""

    device: str | None = None
    """None: the engine's own choice."""
    provider: str | None = None
    threads: int | None = None
    hint: str = "latency"
    contexts: int = 1
    cuda_graph: bool = False
    verify: bool = True
    """Check the file's seal or hash first."""


def is_index(word: str) -> bool:
    """Whether `word` is the number of a device, as in cuda:1."""
    return word.isascii() and word.isdecimal() and len(word) < 5


EVERYWHERE = ("device", "verify")
"""The settings that every engine reads."""


@dataclass(frozen=True)
class Library:
    """A package that an engine needs, as `distill env` asks for it."""

    name: str
    """As `Engine.needs` names it."""
    title: str
    """As its makers write it."""
    install: str
    """Command that installs it."""
    module: str = ""
    """What is imported, where that is not its name."""
    details: Callable[[Any], Iterable[str]] | None = None
    """What to show of the imported module beside its version: providers, devices."""


@dataclass(frozen=True)
class Engine:
    """What the registry knows of an engine."""

    name: str
    """As in `--engine-backend` and `runtime.load(backend=...)`."""
    title: str
    """As its makers write it."""
    file: str
    """What it opens, with the article: an ONNX file."""
    suffixes: tuple[str, ...]
    """Endings of the files it opens."""
    reads: tuple[str, ...]
    """Which of `Settings` it reads; the others are refused by name."""
    open: Callable[[Path, Settings], tuple[Backend, Metadata]]
    """Raises MissingError when library or device are not here, ArtifactError when the file cannot be used."""
    make: str = "Make one: distill export onnx CKPT"
    """How to get such a file, for an error; {path} is the file given instead."""
    preferred: bool = False
    """Taken for its suffixes when no engine is named."""
    libraries: tuple[Library, ...] = ()
    """The packages that it may use, the usual one first."""
    needs: tuple[str, ...] = ()
    """What must be here to run a file: names of libraries, or of what `distill env` knows besides, such as
    "a GPU"; "a or b" where either will do. Empty: all of its libraries."""


def known_batch_sizes(input_shape: list[int | None]) -> BatchSizes:
    """Of a file whose batch size is fixed or free, as its input shape says."""
    return [(input_shape[0] or 1, input_shape[0])]


def metadata_of(entries: Mapping[str, str], path: Path) -> Metadata:
    """The metadata in an ONNX file's entries. Raises ArtifactError when damaged, or not known here."""
    try:
        return read_map(entries, str(path))
    except UsageError as error:  # a preprocessing spec this version does not know
        raise ArtifactError(f"{path}: {error}") from error
