"""Durations of the artifact, and how they compare with those before.

In:  the options; what was saved before, if anything.
Out: `Timed`.
Elsewhere: the race (bench.comparing.race), processes of another environment (bench.measuring.elsewhere).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from runtime import UsageError

from ..comparing import gate
from ..comparing.race import Contestant, Effort, against, play
from ..comparing.ratios import LEAST_BLOCKS, Ratio
from ..measuring.elsewhere import elsewhere
from ..measuring.setup import opened
from ..results.saved import Saved
from .before import Kept, require_same_way
from .options import Options


@dataclass(frozen=True, eq=False)
class Timed:
    """Durations, and what they were taken on."""

    samples: list[np.ndarray]
    """Durations (blocks, calls) ns of the artifact, then of the one before."""
    engines: list[str]
    devices: list[str]
    ratio: Ratio | None = None
    """Of the artifact over the one before."""
    floor: Ratio | None = None


def timed(options: Options, kept: Kept | None) -> Timed:
    """The artifact alone, against saved durations, or alternating with the one before."""
    with ExitStack() as stack:
        this = stack.enter_context(_contestant(options, options.engine, None))
        path = options.before
        if path is None or kept is not None:
            durations = kept.durations if kept else None
            if kept and durations is not None:
                require_same_way(kept.saved, this)
            is_timed = options.max_latency is not None or durations is not None
            seconds = options.duration if is_timed else 0.0  # then one block, to say what it ran on
            taken = play([this, this], Effort(1e-9, seconds, options.warmup))
            alone = Timed([taken[0]], [this.description.ran_on], [this.description.device])
            if kept is None or durations is None:
                return alone
            return _against_saved(alone, kept.saved, durations, options)
        befores = [stack.enter_context(_contestant(options, path, options.python)) for _ in range(2)]
        taken = play([befores[0], this, befores[1]], Effort(0.01, options.duration, options.warmup))
        if len(taken[0]) < LEAST_BLOCKS:
            raise UsageError(
                f"--duration {options.duration:g}: {len(taken[0])} blocks of calls in ten times that, fewer"
                f" than the {LEAST_BLOCKS} that an interval needs. Give more"
            )
        descriptions = [this.description, befores[0].description]
        return Timed(
            [taken[1], taken[0]],
            [
                f"{path.name}: {each.ran_on}"
                for path, each in zip((options.engine, path), descriptions, strict=True)
            ],
            [each.device for each in descriptions],
            against(taken[1], taken[0], None).median,
            against(taken[2], taken[0], None).median,
        )


def _contestant(options: Options, path: Path, python: Path | None) -> AbstractContextManager[Contestant]:
    """In this process; in processes of their own where one of them is of another environment."""
    setup = options.setup(path)
    return elsewhere(setup, python) if options.python else opened(setup)


def _against_saved(alone: Timed, kept: Saved, durations: np.ndarray, options: Options) -> Timed:
    """With the ratio to a saved latency."""
    ratio = gate.ratio_of_runs(alone.samples[0].ravel(), durations)
    if ratio is None:
        raise UsageError(
            f"--duration {options.duration:g}: {alone.samples[0].size} calls in ten times that make no"
            " interval. Give more"
        )
    before = f"{kept.path.name}: {kept.values.get('engine')}, {kept.made}"
    unsaid = f"{kept.path.name} holds no answers, so accuracy is not judged"
    return replace(alone, ratio=ratio, engines=[*alone.engines, before, *([unsaid] if options.data else [])])
