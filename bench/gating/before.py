"""What a saved result says of the artifact before, held against what is asked for.

In:  a result of bench latency or accuracy, the options; later the artifact as it runs.
Out: `Kept`: durations or answers. UsageError where they say nothing about this machine, these images or this
     way of running.
Elsewhere: reading results (bench.results.saved), measuring (bench.gating.timing).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime import UsageError, env, files
from runtime.images import open_images

from .. import accuracy, stats
from ..accuracy import Answers
from ..comparing.race import Contestant
from ..results import saved
from ..results.saved import Saved
from .options import Options


@dataclass(frozen=True, eq=False)
class Kept:
    """What a saved result has that an artifact can be held to: one of both."""

    saved: Saved
    durations: np.ndarray | None = None
    """(n,) ns, of the boundary compute."""
    answers: Answers | None = None


def kept_of(options: Options) -> Kept | None:
    """The saved --baseline, read and held against the options before anything is measured.

    Raises UsageError where it holds nothing of what is asked for, or of another machine or other images.
    """
    if options.baseline is None or not options.is_saved:
        return None
    found = saved.read(options.baseline)
    if found.kind == "latency":
        return Kept(found, durations=_durations(found, options))
    if found.kind == "accuracy":
        return Kept(found, answers=_known_answers(found, options))
    raise UsageError(
        f"{found.path}: a result of bench {found.kind}, which is not compared with. Give what bench latency"
        " or bench accuracy --save wrote, or the artifact itself"
    )


def _durations(kept: Saved, options: Options) -> np.ndarray:
    if (options.max_drop, options.min_agreement) != (None, None):
        raise UsageError(f"{kept.path}: holds no answers. Give what bench accuracy --save wrote")
    durations = saved.read_durations(kept)
    if not durations:
        raise UsageError(
            f"{kept.path}: holds no durations of the boundary compute. Give what bench latency --save wrote"
        )
    machine, here = kept.need("fingerprint", dict), env.fingerprint()
    different = [name for name in ("cpu", "cores", "gpu") if machine.get(name) != here[name]]
    if different or kept.values.get("batch") != options.batch:
        raise another(kept, different[0] if different else "batch")
    found = 1e6 * np.array(durations, float)
    if stats.interval_of_median(found)[0] is None:
        raise UsageError(
            f"{kept.path}: {len(durations)} durations make no interval. Measure more, 20 or above"
        )
    return found


def another(kept: Saved, what: str) -> UsageError:
    """What to raise where durations were taken in another way."""
    return UsageError(
        f"{kept.path}: another {what}, so that times say nothing about the artifact. Measure it here in the"
        " same way, or give the artifact itself"
    )


def _known_answers(kept: Saved, options: Options) -> Answers:
    if options.max_slowdown is not None:
        raise UsageError(f"{kept.path}: holds no latency. Give what bench latency --save wrote")
    if options.data is None:
        raise UsageError(
            f"{kept.path}: holds answers to images, and there are none to compare them on. Add --data photos"
        )
    found = saved.read_answers(kept)
    images = open_images(options.data, options.split)
    asked = accuracy.spread(len(images), options.limit)
    same = np.array_equal(found.indices, asked)
    if same and found.images_sha256 is not None:
        same = found.images_sha256 == accuracy.images_sha256(images, options.split, asked)
    elif same:  # of an older version, which kept the name alone
        data, split = str(kept.values.get("data")), kept.values.get("split")
        same = (Path(data).name, split) == (Path(images.name).name, options.split)
    if not same:
        raise other_images(options)
    return found


def other_images(options: Options) -> UsageError:
    """What to raise where answers are to other images than those asked for."""
    return UsageError(
        f"{options.before}: its answers are to other images than those of {options.data} with this"
        " --split and --limit. Give the same, or the artifact itself"
    )


def require_same_way(kept: Saved, this: Contestant) -> None:
    """Raise UsageError where durations were taken on another device, with other settings or of other input.
    Another version of the engine is what one may want to know about.
    """
    ran = this.description.to_dict()
    names = {"device": "device", "threads": "number of threads"}
    if kept.values.get("backend") == ran["backend"]:
        names |= {"provider": "provider", "hint": "hint"}
        names |= {"contexts": "number of contexts", "cuda_graph": "setting of CUDA graphs"}
    for name, words in names.items():
        if kept.values.get(name) != ran[name]:
            raise another(kept, f"{words} ({kept.values.get(name)} against {ran[name]})")
    fed = kept.need("input", str, kept.need("compute", dict))
    if fed != this.fed:
        raise another(kept, f"input ({files.short(fed)} against {this.fed})")
