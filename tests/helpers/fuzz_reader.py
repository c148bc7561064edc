"""One process of the fuzzer: reads mutated files until its input ends.

In:  the name of a target; on stdin paths, one a line.
Out: on stdout JSON, a line for each path: "same" (the answer of the good file), "other", "unsealed" (other,
of a file that looks as if nobody had sealed it), "refused", or the exception.
Elsewhere: mutation, limits and what counts as a fault (tests/helpers/fuzzer.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import Large2SmallError

PHOTO = np.full((8, 8, 3), 90, np.uint8)


def read_checkpoint(path: Path) -> Any:
    from distill import checkpoint as checkpoints

    found = checkpoints.load(path)
    weights = hashlib.sha256(b"".join(each.numpy().tobytes() for each in found.state_dict.values()))
    return [found.model, found.class_names, str(found.preprocess), weights.hexdigest()]


def read_onnx(path: Path) -> Any:
    import runtime

    with runtime.load(path) as student:
        return [str(each) for each in student.classify([PHOTO], top=2)]


def read_graph(path: Path) -> Any:
    from export.graph.read import read_onnx as read

    return hashlib.sha256(read(path).SerializeToString(deterministic=True)).hexdigest()


def read_sidecar(path: Path) -> Any:
    from runtime.artifact import read_sidecar as read

    return read(path.with_suffix("")).to_map()


def read_npz(path: Path) -> Any:
    from runtime.images import open_images

    images = open_images(f"npz:{path}", "val")
    return [len(images), list(images.class_names), str(images.labels), str(np.asarray(images.image(0)).sum())]


def read_recipe(path: Path) -> Any:
    from distill import recipe as recipes

    return str(recipes.load(path))


def read_image(path: Path) -> Any:
    from runtime.images.decode import open_rgb, upright

    return hashlib.sha256(np.asarray(upright(open_rgb(path))).tobytes()).hexdigest()


def read_list(path: Path) -> Any:
    from runtime.images import open_images

    images = open_images(f"csv:{path}", "val")
    return [len(images), list(images.class_names), str(images.labels)]


TARGETS: dict[str, Callable[[Path], Any]] = {
    "checkpoint": read_checkpoint,
    "onnx": read_onnx,
    "graph": read_graph,
    "sidecar": read_sidecar,
    "npz": read_npz,
    "recipe": read_recipe,
    "png": read_image,
    "jpeg": read_image,
    "list": read_list,
}


def limit_memory(extra: int) -> None:
    """At most `extra` bytes more than now."""
    import resource

    now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (now + extra, now + extra))


def other(path: Path) -> str:
    from runtime.artifact import check_file

    return "unsealed" if path.suffix == ".onnx" and not check_file(path) else "other"


def main(target: str, good: str, extra: int) -> None:
    warnings.simplefilter("ignore")
    read = TARGETS[target]
    expected = read(Path(good))
    print(json.dumps("ready"), flush=True)
    if sys.platform.startswith("linux"):
        limit_memory(extra)
    for line in sys.stdin:
        try:
            path = Path(line.rstrip("\n"))
            end = "same" if read(path) == expected else other(path)
        except Large2SmallError as error:
            end = "refused" if "\n" not in str(error) else f"two lines: {error!r}"
        except Exception as error:
            end = f"{type(error).__name__}: {error}"
        print(json.dumps(end[:300]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
