"""How often `distill bench compare` is right, on simulated machines of which the truth is known.

    python measurements/compare_coverage.py [--runs 1000] [--difference 0.05] [--json]

The contestants are played by bench.comparing.race as real ones are, with its stopping rule, but their
durations come from a simulated machine on whose clock every call takes its place: calls that follow one
another are alike (autocorrelated), now and then one takes many times as long (heavy-tailed), or all become
slower while the measurement goes on (drifting). Printed are, in percent of the runs: how often the interval
holds the true ratio, how often the same artifact twice gets "cannot tell", how often a true difference is
found; and the median number of blocks.
"""

from __future__ import annotations

import argparse
import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.comparing.race import Against, Effort, against, play
from runtime import files

SECONDS_PER_CALL = 0.01
CHUNK = 1000
KINDS = ("autocorrelated", "heavy-tailed", "drifting")


@dataclass
class Machine:
    """Slowness of call after call, as a factor; `seconds` is its clock."""

    kind: str
    seed: int
    seconds: float = 0.0
    ready: deque[float] = field(default_factory=deque)
    calls: int = 0
    last: float = 0.0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.steep = self.rng.uniform(-0.3, 0.3)

    def call(self, factor: float) -> float:
        """Nanoseconds of one call of an artifact that takes `factor` times as long as the plain one."""
        if not self.ready:
            self.ready.extend(getattr(self, f"_{self.kind.replace('-', '_')}")())
        seconds = SECONDS_PER_CALL * factor * math.exp(self.ready.popleft())
        self.seconds, self.calls = self.seconds + seconds, self.calls + 1
        return 1e9 * seconds

    def _autocorrelated(self) -> list[float]:
        made, x = [], self.last
        for shock in self.rng.normal(0, 0.02, CHUNK):
            x = 0.95 * x + shock
            made.append(x)
        self.last = x
        return made

    def _heavy_tailed(self) -> list[float]:
        rare = self.rng.random(CHUNK) < 0.05
        return (self.rng.normal(0, 0.03, CHUNK) + rare * np.minimum(self.rng.pareto(1.5, CHUNK), 4)).tolist()

    def _drifting(self) -> list[float]:
        """A steady drift of up to 30 % in 1,000 calls, and a step."""
        where = np.arange(self.calls, self.calls + CHUNK)
        return (self.steep * where / 1000 + 0.2 * (where > 700) + self.rng.normal(0, 0.03, CHUNK)).tolist()


@dataclass(frozen=True)
class Simulated:
    """A contestant on that machine."""

    machine: Machine
    factor: float
    description: Any = None
    fed: str = "nothing"

    def turn(self, calls: int, settle: int) -> np.ndarray:
        """Durations (calls,) in ns, after `settle` calls that take their time, too."""
        return np.array([self.machine.call(self.factor) for _ in range(settle + calls)])[settle:]


def compare_once(kind: str, ratio: float, seed: int) -> tuple[Against, int]:
    """What is said of an artifact that takes `ratio` times as long, and after how many blocks."""
    machine = Machine(kind, seed)
    contestants = [Simulated(machine, factor) for factor in (1.0, ratio, 1.0)]
    reference, this, copy = play(contestants, Effort(0.02, 60, 10), clock=lambda: machine.seconds)
    floor = against(copy, reference, None).median
    return against(this, reference, floor), len(reference)


def coverage(kind: str, runs: int, difference: float) -> dict[str, float]:
    """Shares in percent over `runs` runs of each question."""
    truth = 1 + difference
    different = [compare_once(kind, truth, seed) for seed in range(runs)]
    alike = [compare_once(kind, 1.0, seed) for seed in range(runs, 2 * runs)]
    return {
        "covered_percent": _share(
            one.median is not None and one.median.low <= truth <= one.median.high for one, _ in different
        ),
        "covered_alike_percent": _share(
            one.median is not None and one.median.low <= 1 <= one.median.high for one, _ in alike
        ),
        "cannot_tell_alike_percent": _share(one.verdict == "cannot tell" for one, _ in alike),
        "found_percent": _share(one.verdict == "slower" for one, _ in different),
        "blocks": float(np.median([blocks for _, blocks in different])),
    }


def _share(answers: Any) -> float:
    return 100 * float(np.mean(list(answers)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=1000, help="simulated comparisons of each question")
    parser.add_argument("--difference", type=float, default=0.05, help="the true one, as a share")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    asked = parser.parse_args()
    found = {kind: coverage(kind, asked.runs, asked.difference) for kind in asked.kinds}
    if asked.json:
        print(
            files.json_text({"runs": asked.runs, "difference": asked.difference, "machines": found}, indent=2)
        )
        return 0
    table = Table("machine", title=f"{asked.runs} runs, a true difference of {100 * asked.difference:g} %")
    headings = ["interval holds it", "holds 1, alike", "cannot tell, alike", "found", "blocks"]
    for heading in headings:
        table.add_column(heading, justify="right")
    for kind, row in found.items():
        *shares, blocks = row.values()
        table.add_row(kind, *(f"{share:.1f} %" for share in shares), f"{blocks:.0f}")
    Console().print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
