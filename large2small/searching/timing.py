"""How long candidates take, before any of them is trained.

In:  the candidates, the steps of a search.
Out: the latency of each that can be built, exported and run; those within the limit.
Elsewhere: the measurement itself (bench.commands.latency), the process that makes the file
(large2small.searching.worker).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench import stats
from bench.results import saved
from runtime.cli.terminal import loading, say
from runtime.errors import GateError

from . import processes, words
from .candidates import Candidate
from .journal import Timed
from .processes import Finished
from .steps import Steps
from .worker import UNTRAINED


def time_all(steps: Steps, candidates: Sequence[Candidate]) -> dict[Candidate, Timed]:
    """Time all candidates, untrained; of those that cannot be the reason is in the steps' outcome."""
    found, limit = {}, steps.asked.limit_ms
    for number, candidate in enumerate(candidates, 1):
        timed = _timed(steps, candidate)
        if timed:
            found[candidate] = timed
            steps.outcome[candidate] = f"over {limit:g} ms" if timed.median_ms > limit else "not trained"
        said = f"{timed.words}, {steps.outcome[candidate]}" if timed else steps.outcome[candidate]
        said = said.removesuffix(", not trained")
        say(f"[{number}/{len(candidates)}] {candidate.name}: {said}{steps.clock.words}")
    return found


def _timed(steps: Steps, candidate: Candidate) -> Timed | None:
    key = f"time {candidate.name}"
    known = steps.journal.find(key, Timed)
    if known and steps.latency_file(candidate).is_file():
        return known
    if steps.has_failed(key, candidate):
        return None
    if not steps.clock.left():
        steps.outcome[candidate] = "not timed: no time left"
        return None
    with loading(f"timing {candidate.name}", still=True):
        found = _timed_now(steps, candidate)
    if isinstance(found, Timed):
        return steps.journal.keep(key, found)
    steps.note_failure(key, candidate, found)
    return None


def _timed_now(steps: Steps, candidate: Candidate) -> Timed | Finished:
    """What was measured, or the process that failed."""
    asked, file = steps.asked, steps.file(candidate)
    options = words.training(asked.training, candidate, 1, None, file.with_suffix(""))
    plain = replace(options, **(words.without_teacher() | {"teacher": "none"}))
    command = [UNTRAINED, str(file), asked.engine.precision, *words.typed("train", plain)[1:]]
    try:
        made = steps.run(command, candidate)
        if made.code != 0:
            return made
        result, log, left = steps.latency_file(candidate), steps.log_file(candidate), steps.clock.left()
        found = measured(file, result, asked.engine, log, left)
        return replace(found, seconds=made.seconds + found.seconds)
    finally:
        file.unlink(missing_ok=True)  # its speed is known, and it can do nothing


def measured(
    file: Path, result: Path, engine: words.Engine, log: Path, seconds: float = math.inf
) -> Timed | Finished:
    """What bench latency finds and saves in `result`, or its process, which failed. seconds: it may take."""
    took = processes.run(words.timing(file, result, engine), log, seconds)
    if took.code != 0:
        return took
    taken = stats.NS_PER_MS * np.array(saved.read_durations(saved.read(result)), float)
    low, high = stats.interval_of_median(taken)
    return Timed(took.seconds, stats.percentile(taken, 50) / stats.NS_PER_MS, low, high)


def within(steps: Steps, timed: Mapping[Candidate, Timed]) -> list[Candidate]:
    """The candidates within the limit, the slowest first: it is the likeliest to be the best, if there is not
    time for all. Raises GateError where there is none.
    """
    limit = steps.asked.limit_ms
    if not timed:
        first = next(iter(steps.outcome.values()))
        raise GateError(f"none of {len(steps.outcome)} candidates could be timed; the first {first}")
    fastest = min(timed, key=lambda each: timed[each].median_ms)
    found = [each for each in timed if timed[each].median_ms <= limit]
    if not found:
        raise GateError(
            f"none of {len(timed)} candidates is within {limit:g} ms; the fastest, {fastest.name}, takes"
            f" {timed[fastest].words}"
        )
    say(f"{len(found)} of {len(timed)} timed candidates are within {limit:g} ms")
    return sorted(found, key=lambda each: -timed[each].median_ms)
