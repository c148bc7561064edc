"""What is known of every network by name, without building all of them.

In:  a pattern of names.
Out: an `Entry` per network.
Elsewhere: building them (distill.models), the command that lists them (distill.commands.models).
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass

import timm

from runtime.cli.nearest import nearest
from runtime.cli.terminal import progress_bar
from runtime.errors import UsageError

from . import names, preprocess_from, preprocess_of

MOST_COUNTED = 24
"""Networks that are built to count their parameters; each takes about a quarter of a second."""

LARGE_KERNELS = {
    "slak_*_k7": "7 x 7",
    "slak_*": "51 x 51",
    "replknet_xl": "27 x 27",
    "replknet_*": "31 x 31",
    "unireplknet_*": "13 x 13",
    "inception_next_atto": "9 x 9",
    "inception_next_*": "11 x 11",
    "convmixer_768_32": "7 x 7",
    "convmixer_*": "9 x 9",
    "edgenext_*": "9 x 9",
    **dict.fromkeys(
        ("convnext*", "convformer_*", "fastvit_*", "mambaout_*", "rdnet_*", "starnet_*"), "7 x 7"
    ),
}
"""Names of the families that are built on large kernels -> their largest one; the first that fits counts."""


@dataclass(frozen=True)
class Entry:
    """One network."""

    name: str
    parameters: int | None
    """With its own classifier; None where too many networks were asked for."""
    input_size: tuple[int, int, int]
    """(C, H, W) of its published weights."""
    published: bool
    """Whether timm fetches weights by this name."""
    kernel: str
    """The largest depthwise kernel of a family built on 7 x 7 or more; empty for the others."""
    ours: bool


def entries(pattern: str = "", *, large_kernel: bool = False, ours: bool = False) -> list[Entry]:
    """The networks whose names match. Raises UsageError when there are none.

    pattern: with * for any letters; without one, the names that contain it. large_kernel, ours: only those.
    """
    if ":" in pattern or "/" in pattern:
        return [_entry_of(names.resolve(pattern, "distill train --student-ckpt FILE"))]
    found = matching(pattern, large_kernel=large_kernel, ours=ours)
    published = {name.partition(".")[0] for name in timm.list_pretrained()}
    counts = count_parameters(found) if len(found) <= MOST_COUNTED else dict.fromkeys(found)
    return [
        Entry(
            name,
            counts[name],
            preprocess_of(name).input_size,
            name in published,
            kernel_of(name),
            is_ours(name),
        )
        for name in found
    ]


def matching(pattern: str, *, large_kernel: bool = False, ours: bool = False) -> list[str]:
    """The names that match, as for `entries`. Raises UsageError when there are none."""
    known = timm.list_models()
    wanted = pattern if any(letter in pattern for letter in "*?[") else f"*{pattern}*"
    found = [
        name
        for name in known
        if fnmatch.fnmatch(name, wanted)
        and (not large_kernel or kernel_of(name))
        and (not ours or is_ours(name))
    ]
    if not found:
        meant = nearest(pattern.partition(".")[0], set(known)) if pattern else ""
        raise UsageError(f"no network matches {pattern or 'these flags'}{meant or '.'} All: distill models")
    return found


def _entry_of(network: names.Network) -> Entry:
    """A network of a hub or a folder, which costs its config.json and no weights."""
    return Entry(
        network.name,
        names.count_parameters(network),
        preprocess_from(network.config).input_size,
        network.classes is not None,
        kernel_of(network.architecture),
        is_ours(network.architecture),
    )


def kernel_of(name: str) -> str:
    """The largest depthwise kernel of a network with large ones; empty for the others."""
    return next((size for names, size in LARGE_KERNELS.items() if fnmatch.fnmatch(name, names)), "")


def is_ours(name: str) -> bool:
    """Whether the network is one of this folder's, which timm does not have."""
    return timm.model_entrypoint(name).__module__.partition(".")[0] == "distill"


def count_parameters(found: list[str]) -> dict[str, int | None]:
    """Name -> number of parameters."""
    counted: dict[str, int | None] = {}
    with progress_bar("counting parameters", len(found)) as advance:
        for done, name in enumerate(found, 1):
            counted[name] = names.count_parameters(names.Network(name, name, None))
            advance(done)
    return counted
