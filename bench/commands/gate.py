"""`distill bench gate`: is an artifact as fast, as small and as right as it has to be?

In:  `Options`: an artifact, limits, and what it was before: an artifact, a saved result, another environment.
Out: a table of the limits on stdout; exit code 1 with the reasons where one does not hold; with --junit the
same for a CI system.
Elsewhere: the limits (bench.comparing.gate), the processes (bench.measuring.elsewhere), the race
(bench.comparing.race).
"""

from __future__ import annotations

import re
import time
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from runtime import MissingError, UsageError, env, files
from runtime.cli import settings
from runtime.cli.settings import Flag
from runtime.cli.terminal import loading
from runtime.env import conditions
from runtime.env.conditions import Warned
from runtime.errors import GateError
from runtime.images import open_images

from .. import accuracy, report, stats, tables
from ..accuracy import Answers
from ..comparing import gate
from ..comparing.race import Contestant, Effort, against, play
from ..comparing.ratios import LEAST_BLOCKS, Ratio
from ..measuring import worker
from ..measuring.elsewhere import elsewhere
from ..measuring.setup import Setup, opened
from ..results import saved
from ..results.saved import Saved
from ..subject import RunOptions, open_artifact

SUMMARY = "hold an artifact to limits, and to what it was before"
DESCRIPTION = """Exit code 1 and the reasons where a limit does not hold. With --python the artifact before
runs in another environment: the same file is then compared between two versions of an engine.

examples:
  {prog} student.int8.onnx --max-latency 5ms --max-memory 200MB
  {prog} new.onnx --baseline old.onnx --data photos --max-drop 0.5 --min-agreement 98 --junit gate.xml
  {prog} new.onnx --baseline old-accuracy.json --data photos --max-drop 0.5
  {prog} student.onnx --python upgraded/bin/python --data photos --min-agreement 99.9"""

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


def run(options: Options) -> int:
    """Hold the artifact to its limits, and print how it stands; 1 where one does not hold."""
    found = do(options)
    if options.json:
        report.print_json(found.to_dict())
        return int(bool(found.verdict.reasons))
    report.console().print(tables.gated(found.verdict, found.engines, found.warned))
    if found.verdict.reasons:
        raise GateError(f"{options.engine}: {'; '.join(found.verdict.reasons)}")
    return 0


def do(options: Options) -> Gated:
    """Measure, compare, and write --junit and --save. Raises what opening, reading and evaluating raise."""
    for path in (options.junit, options.save):
        report.require_place(path, options.overwrite)
    found = measure(options)
    if options.junit:
        notes = [*found.engines, *(each.text for each in found.warned)]
        files.write_text(options.junit, gate.to_junit(found.verdict, found.seconds, notes))
    if options.save:
        saved.write(options.save, "gate", saved.command_line("bench gate", options), found.to_dict())
    return found


def measure(options: Options) -> Gated:
    """The checks of all limits that were given."""
    began, before = time.perf_counter(), conditions.now()
    checks: list[gate.Check] = []
    kept, most = _kept(options), parse_bytes(options.max_memory)
    if most is not None and worker.peak_bytes() is None:
        raise MissingError("--max-memory: this system does not tell the memory of a process. Leave it out")
    with loading(f"timing {options.engine.name}", still=True):
        timed = _timed(options, kept)
    warned = conditions.warnings(before, [each.ravel() for each in timed.samples], timed.devices)
    limit = parse_time(options.max_latency)
    if limit is not None:
        checks.append(gate.latency(timed.samples[0].ravel(), limit))
    if timed.ratio is not None:
        checks.append(gate.slowdown(timed.ratio, parse_percent(options.max_slowdown), timed.floor))
    checks += _accuracy_checks(options, kept)
    if most is not None:
        checks.append(gate.memory(_peak(options), most))
    verdict = gate.Verdict(str(options.engine), checks)
    return Gated(verdict, timed.engines, warned, time.perf_counter() - began, env.fingerprint())


@dataclass(frozen=True, eq=False)
class _Kept:
    """What a saved result has that an artifact can be held to: one of both."""

    saved: Saved
    durations: np.ndarray | None = None
    """(n,) ns, of the boundary compute."""
    answers: Answers | None = None


def _kept(options: Options) -> _Kept | None:
    """The saved --baseline, read and held against the options before anything is measured.

    Raises UsageError where it holds nothing of what is asked for, or of another machine or other images.
    """
    if options.baseline is None or not options.is_saved:
        return None
    found = saved.read(options.baseline)
    if found.kind == "latency":
        return _Kept(found, durations=_durations(found, options))
    if found.kind == "accuracy":
        return _Kept(found, answers=_known_answers(found, options))
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
        raise _another(kept, different[0] if different else "batch")
    found = 1e6 * np.array(durations, float)
    if stats.interval_of_median(found)[0] is None:
        raise UsageError(
            f"{kept.path}: {len(durations)} durations make no interval. Measure more, 20 or above"
        )
    return found


def _another(kept: Saved, what: str) -> UsageError:
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
        raise _other_images(options)
    return found


def _other_images(options: Options) -> UsageError:
    return UsageError(
        f"{options.before}: its answers are to other images than those of {options.data} with this"
        " --split and --limit. Give the same, or the artifact itself"
    )


@dataclass(frozen=True, eq=False)
class _Timed:
    samples: list[np.ndarray]
    """Durations (blocks, calls) ns of the artifact, then of the one before."""
    engines: list[str]
    devices: list[str]
    ratio: Ratio | None = None
    """Of the artifact over the one before."""
    floor: Ratio | None = None


def _timed(options: Options, kept: _Kept | None) -> _Timed:
    with ExitStack() as stack:
        this = stack.enter_context(_contestant(options, options.engine, None))
        path = options.before
        if path is None or kept is not None:
            durations = kept.durations if kept else None
            if kept and durations is not None:
                _require_same_way(kept.saved, this)
            is_timed = options.max_latency is not None or durations is not None
            seconds = options.duration if is_timed else 0.0  # then one block, to say what it ran on
            taken = play([this, this], Effort(1e-9, seconds, options.warmup))
            alone = _Timed([taken[0]], [this.description.ran_on], [this.description.device])
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
        return _Timed(
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


def _require_same_way(kept: Saved, this: Contestant) -> None:
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
            raise _another(kept, f"{words} ({kept.values.get(name)} against {ran[name]})")
    fed = kept.need("input", str, kept.need("compute", dict))
    if fed != this.fed:
        raise _another(kept, f"input ({files.short(fed)} against {this.fed})")


def _against_saved(alone: _Timed, kept: Saved, durations: np.ndarray, options: Options) -> _Timed:
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


def _accuracy_checks(options: Options, kept: _Kept | None) -> list[gate.Check]:
    if options.data is None or options.before is None or (kept is not None and kept.answers is None):
        return []
    this = _answers(options, options.engine, None)
    before = kept.answers if kept else None
    if before is None:
        before = _answers(options, options.before, options.python)
    if not this.same_images(before):
        raise _other_images(options)
    checks = [gate.drop(this, before, DROP if options.max_drop is None else options.max_drop)]
    if options.min_agreement is not None:
        checks.append(gate.agreement(this, before, options.min_agreement))
    return checks


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
