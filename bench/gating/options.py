"""What an artifact is held to, and how that is measured.

In:  what was typed.
Out: `Options`; limits as numbers: milliseconds, bytes, percent.
Elsewhere: the command (bench.commands.gate), what it was before (bench.gating.before).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from runtime import UsageError, files
from runtime.cli import settings
from runtime.cli.settings import Flag

from ..measuring.setup import Setup
from ..subject import RunOptions

SLOWDOWN, DROP = 5.0, 1.0
"""Percent and points that are allowed where there is something to compare with and no limit was given."""
MOST = 1e18
"""What the number of a limit is below: more holds nothing to anything, and is a slip."""
BYTES = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


@dataclass(frozen=True)
class Options(RunOptions):
    """Gate."""

    engine: Annotated[Path, Flag("FILE", bare=True)]
    """Artifact to hold to the limits; the word --engine may be left out."""
    baseline: Annotated[Path | None, Flag("FILE", common=True)] = None
    """Artifact that it replaces, or a result of bench accuracy or latency that --save wrote; with --python
    by default the same artifact."""
    python: Annotated[Path | None, Flag("PYTHON", common=True)] = None
    """Interpreter of another environment, such as other/bin/python, in which --baseline is run."""
    data: Annotated[str | None, Flag("DATA", common=True)] = None
    """Labeled images for --max-drop and --min-agreement, and to feed: DIR, npz:FILE or digits."""
    split: str = "val"
    """Part of --data to read, train or val."""
    limit: Annotated[int | None, Flag("N", least=1)] = None
    """Largest number of images to judge, spread evenly over the set, 1 or more."""
    max_latency: Annotated[str | None, Flag("TIME", common=True)] = None
    """Longest median time of one call, a batch in memory to logits, such as 5ms or 800us."""
    max_slowdown: Annotated[str | None, Flag("PERCENT", common=True)] = None
    """Largest growth of the time against --baseline, such as 5%, the default where there is one; it fails
    only where the whole interval is beyond it."""
    max_drop: Annotated[float | None, Flag("POINTS", common=True, least=0)] = None
    """Largest loss of top-1 against --baseline, points; 1 where there are --data and a --baseline that can
    answer."""
    min_agreement: Annotated[float | None, Flag("PERCENT", common=True, least=0, most=100)] = None
    """Least share of images with the same class as --baseline, percent."""
    max_memory: Annotated[str | None, Flag("SIZE", common=True)] = None
    """Largest peak of resident memory of a new process that answers, such as 200MB."""
    batch: Annotated[int, Flag("N", aliases=("-b", "--batch-size"), common=True, least=1)] = 1
    """Images per timed call, 1 or more."""
    duration: Annotated[float, Flag("SECONDS", above=0)] = 10.0
    """Time to measure for."""
    warmup: Annotated[int, Flag("N", least=0)] = 20
    """Untimed calls before the first timed one, 0 or more."""
    img_size: Annotated[str | None, Flag("PIXELS")] = None
    """Side of the input, or HEIGHTxWIDTH, for a file that takes any image size."""
    seed: int = 0
    """Seed for synthetic input and for choosing images."""
    junit: Annotated[Path | None, Flag("FILE", common=True)] = None
    """File to write the checks to, as JUnit's XML."""
    save: Annotated[Path | None, Flag("FILE")] = None
    """File to write the result to, as JSON."""
    json: Annotated[bool, Flag(common=True)] = False
    """Print the result as one JSON object and nothing else."""
    overwrite: bool = False
    """Replace existing files of --junit and --save."""

    def __post_init__(self) -> None:
        settings.check(self)
        if self.split not in ("train", "val"):
            raise UsageError(f"--split {self.split}: expected one of train, val")
        self.require_read([self.engine])
        asked = (self.max_latency, self.max_slowdown, self.max_drop, self.min_agreement, self.max_memory)
        if self.before is None and asked == (None,) * len(asked):
            raise UsageError(
                "no limit given. Add --max-latency 5ms, --max-memory 200MB or --baseline old.onnx"
            )
        if self.before is None and (self.max_drop, self.min_agreement, self.max_slowdown) != (None,) * 3:
            raise UsageError(
                "--max-drop, --min-agreement and --max-slowdown compare with --baseline old.onnx. Add it"
            )
        if self.data is None and (self.max_drop, self.min_agreement) != (None, None):
            raise UsageError("--max-drop and --min-agreement need labeled images. Add --data photos")
        if self.python and self.is_saved:
            raise UsageError(
                f"--python runs an artifact, and {self.baseline} is a saved result. Leave one out"
            )
        if self.junit and self.save and self.junit.resolve() == self.save.resolve():
            raise UsageError(f"--junit and --save: both write {self.save}. Give two files")
        parse_time(self.max_latency)
        parse_bytes(self.max_memory)
        parse_percent(self.max_slowdown)

    @property
    def before(self) -> Path | None:
        """What it was before."""
        return self.baseline or (self.engine if self.python else None)

    @property
    def is_saved(self) -> bool:
        """Is that a saved result?"""
        return self.baseline is not None and self.baseline.suffix == ".json"

    def setup(self, path: Path) -> Setup:
        """How an artifact is called."""
        return Setup(
            path, self.of_engine, self.batch, "compute", self.img_size, self.data, self.split, self.seed
        )


def parse_time(text: str | None) -> float | None:
    """'5ms', '800us', '0.1s' -> milliseconds. Raises UsageError for anything else."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(us|ms|s)", text.strip())
    if not found or not 0 < float(found[1]) < MOST:
        raise UsageError(
            f"--max-latency {files.short(text)}: expected a time above 0 with its unit, such as 5ms or 800us"
        )
    return float(found[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[found[2]]


def parse_bytes(text: str | None) -> float | None:
    """'200MB', '1.5GiB' -> bytes. Raises UsageError for anything else."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?i?)b?", text.strip().lower())
    if not found or found[2] not in BYTES or not 0 < float(found[1]) < MOST:
        raise UsageError(f"--max-memory {files.short(text)}: expected a size above 0, such as 200MB or 1GiB")
    return float(found[1]) * BYTES[found[2]]


def parse_percent(text: str | None) -> float:
    """'5%' or '5' -> 5.0. Raises UsageError for anything else."""
    if text is None:
        return SLOWDOWN
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%?", text.strip())
    if not found or not float(found[1]) < MOST:
        raise UsageError(
            f"--max-slowdown {files.short(text)}: expected a percentage of 0 or more, such as 5%"
        )
    return float(found[1])
