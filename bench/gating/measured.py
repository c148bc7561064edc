"""All limits that were given, measured.

In:  the options.
Out: `Gated`: a verdict, and what it was measured on.
Elsewhere: the limits (bench.comparing.gate), durations (bench.gating.timing).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime import MissingError, env
from runtime.cli.terminal import loading
from runtime.env import conditions
from runtime.env.conditions import Warned
from runtime.images import open_images

from .. import accuracy
from ..accuracy import Answers
from ..comparing import gate
from ..measuring import worker
from ..measuring.elsewhere import elsewhere
from ..subject import open_artifact
from .before import Kept, kept_of, other_images
from .options import DROP, Options, parse_bytes, parse_percent, parse_time
from .timing import timed


@dataclass(frozen=True, eq=False)
class Gated:
    """What the command found."""

    verdict: gate.Verdict
    engines: list[str]
    """What it ran on, and what the artifact before did."""
    warned: list[Warned]
    seconds: float
    fingerprint: dict[str, Any] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "file": self.verdict.file,
            **self.verdict.to_dict(),
            "engines": self.engines,
            "warnings": [each.to_dict() for each in self.warned],
            "fingerprint": self.fingerprint,
        }


def measure(options: Options) -> Gated:
    """The checks of all limits that were given."""
    began, before = time.perf_counter(), conditions.now()
    found: list[gate.Check] = []
    kept, most = kept_of(options), parse_bytes(options.max_memory)
    if most is not None and worker.peak_bytes() is None:
        raise MissingError("--max-memory: this system does not tell the memory of a process. Leave it out")
    with loading(f"timing {options.engine.name}", still=True):
        durations = timed(options, kept)
    warned = conditions.warnings(before, [each.ravel() for each in durations.samples], durations.devices)
    limit = parse_time(options.max_latency)
    if limit is not None:
        found.append(gate.latency(durations.samples[0].ravel(), limit))
    if durations.ratio is not None:
        found.append(gate.slowdown(durations.ratio, parse_percent(options.max_slowdown), durations.floor))
    found += _accuracy_checks(options, kept)
    if most is not None:
        found.append(gate.memory(_peak(options), most))
    verdict = gate.Verdict(str(options.engine), found)
    return Gated(verdict, durations.engines, warned, time.perf_counter() - began, env.fingerprint())


def _accuracy_checks(options: Options, kept: Kept | None) -> list[gate.Check]:
    if options.data is None or options.before is None or (kept is not None and kept.answers is None):
        return []
    this = _answers(options, options.engine, None)
    before = kept.answers if kept else None
    if before is None:
        before = _answers(options, options.before, options.python)
    if not this.same_images(before):
        raise other_images(options)
    found = [gate.drop(this, before, DROP if options.max_drop is None else options.max_drop)]
    if options.min_agreement is not None:
        found.append(gate.agreement(this, before, options.min_agreement))
    return found


def _answers(options: Options, path: Path, python: Path | None) -> Answers:
    setup = options.setup(path)
    if python:
        with elsewhere(setup, python) as other, loading(f"{path.name} in {python}"):
            return other.answers(str(setup.data), options.split, options.limit)
    images = open_images(str(options.data), options.split)
    with open_artifact(path, setup.on) as predictor, loading(f"accuracy of {path.name}"):
        return Answers.of(accuracy.evaluate(predictor, images, limit=options.limit, split=options.split))


def _peak(options: Options) -> int:
    with elsewhere(options.setup(options.engine)) as process:
        process.turn(10, 0)
        peak = process.memory().peak
    if peak is None:
        raise MissingError("--max-memory: the new process cannot tell its memory. Leave it out")
    return peak
