"""`distill bench compare`: is one artifact faster than another, or can nobody tell?

In:  `Options`: two or more artifacts, each with flags of its own where it needs them, as FILE@threads=1.
Out: ratios with intervals and a verdict on stdout, with --json as one JSON object; with --results-file also
every single duration.
Elsewhere: alternating blocks (bench.comparing.race), intervals (bench.comparing.ratios), accuracy
(bench.comparing.paired).
"""

from __future__ import annotations

import re
import time
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from runtime import UsageError, env
from runtime.cli import flags, settings
from runtime.cli.settings import Flag
from runtime.cli.terminal import loading, progress_bar
from runtime.env import conditions
from runtime.images import ImageSet, open_images

from .. import accuracy, report, tables
from ..clock import calls
from ..comparing.isolated import isolated
from ..comparing.paired import Paired, paired
from ..comparing.race import Comparison, Contestant, Effort, play
from ..measuring.setup import Setup, opened
from ..results import saved
from ..subject import RunOptions, open_artifact

SUMMARY = "say which artifact is faster, with intervals, or that nobody can tell"
DESCRIPTION = """The first artifact is the reference. It is opened a second time, and what it differs from
itself is this machine's noise floor. An artifact may have flags of its own behind an @.

examples:
  {prog} student.onnx student.int8.onnx
  {prog} student.onnx@threads=1 student.onnx@threads=2 --precision 1%
  {prog} student.onnx student.onnx@engine-backend=openvino --isolated
  {prog} student.onnx student.int8.onnx --data photos --accuracy --json"""

OWN_FLAGS = re.compile(r"[a-z][a-z_-]*(=[^@,=]+)?(,[a-z][a-z_-]*(=[^@,=]+)?)*")
"""What may stand behind the @ of an artifact: threads=1,provider=cpu."""


@dataclass(frozen=True)
class Options(RunOptions):
    """Comparison."""

    artifacts: Annotated[tuple[str, ...], Flag("FILE", positional=True)]
    """Artifacts, two or more, the reference first; FILE@threads=1,provider=cpu has flags of its own."""
    precision: Annotated[str, Flag("PERCENT", common=True)] = "2%"
    """Half the width of the intervals at which to stop, as 2% of the ratio."""
    duration: Annotated[float, Flag("SECONDS", common=True, above=0)] = 60.0
    """Time after which to stop where the precision is not reached; up to ten times as long where 20 blocks,
    the fewest that make an interval, take so long."""
    isolated: Annotated[bool, Flag(common=True)] = False
    """Give each artifact a process of its own."""
    batch: Annotated[int, Flag("N", aliases=("-b", "--batch-size"), common=True, least=1)] = 1
    """Images per call, 1 or more."""
    boundary: Annotated[Literal["compute", "end-to-end"], Flag(common=True)] = "compute"
    """Part that is timed: compute, a preprocessed batch in memory to logits; end-to-end, encoded images to
    the top-5 classes."""
    warmup: Annotated[int, Flag("N", least=0)] = 20
    """Untimed calls of each artifact before the first timed one, 0 or more."""
    data: Annotated[str | None, Flag("DATA", common=True)] = None
    """Images to feed, and to judge --accuracy on (DIR, npz:FILE, digits); without it synthetic ones."""
    split: Literal["train", "val"] = "val"
    """Part of --data to read."""
    accuracy: Annotated[bool, Flag(common=True)] = False
    """Compare the answers on the labeled images of --data, too."""
    limit: Annotated[int | None, Flag("N", least=1)] = None
    """Largest number of images for --accuracy, spread evenly over the set, 1 or more."""
    img_size: Annotated[str | None, Flag("PIXELS")] = None
    """Side of the input, or HEIGHTxWIDTH, for files that take any image size."""
    seed: int = 0
    """Seed for synthetic input and for choosing images."""
    results_file: Annotated[Path | None, Flag("FILE", aliases=("--save",), common=True)] = None
    """File to write the result to, as JSON with every single duration."""
    json: Annotated[bool, Flag(common=True)] = False
    """Print the result as one JSON object and nothing else."""
    overwrite: bool = False
    """Replace an existing --results-file."""

    def __post_init__(self) -> None:
        settings.check(self)
        parse_precision(self.precision)
        if len(self.artifacts) < 2:
            raise UsageError(
                f"artifacts to compare: {len(self.artifacts)} given, expected two or more. Name the reference"
                " first: student.onnx student.int8.onnx"
            )
        if self.accuracy and self.data is None:
            raise UsageError("--accuracy needs labeled images. Add --data photos")
        if self.img_size is not None:
            calls.parse_size(self.img_size)
        for subject in self.subjects:
            subject.on.require_read([subject.path])

    @property
    def subjects(self) -> list[Subject]:
        """What is compared, the reference first. Raises UsageError for flags that do not exist."""
        return [parse_subject(text, self.of_engine) for text in self.artifacts]


@dataclass(frozen=True)
class Subject:
    """One artifact and what it runs on."""

    path: Path
    on: RunOptions
    own_flags: str
    """As typed behind the @; empty: none."""


def parse_subject(text: str, general: RunOptions) -> Subject:
    """'student.onnx@threads=1' -> the path, and `general` with these flags on top.

    A file of exactly this name is meant where there is one. Raises UsageError for a flag that does not exist
    or a value that it does not take.
    """
    path, at, own = text.rpartition("@")
    if not at or not OWN_FLAGS.fullmatch(own) or Path(text).exists():
        return Subject(Path(text), general, "")
    words = [f"--{word}" for word in own.split(",")]
    if "--help" in words or "--help-all" in words:
        raise UsageError(f"{text}: help is not a flag of one artifact. See distill bench compare --help")
    try:
        return Subject(
            Path(path), flags.parse(RunOptions, words, "distill bench compare", default=general), own
        )
    except UsageError as error:
        raise UsageError(f"{text}: {error}") from None


def parse_precision(text: str) -> float:
    """'2%' or '2' -> 0.02. Raises UsageError for anything that is not above 0 and below 100."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*%?", text.strip())
    if not found or not 0 < float(found[1]) < 100:
        raise UsageError(f"precision {text!r}: expected a percentage above 0 and below 100, such as 2%")
    return float(found[1]) / 100


@dataclass(frozen=True, eq=False)
class Compared:
    """What the command found."""

    speed: Comparison
    names: list[str]
    """What each artifact is called: so much of its path, and its own flags, that no two are alike."""
    accuracy: list[Paired] | None
    """For each artifact but the reference; None when not asked for."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        found = self.speed.to_dict()
        for name, each in zip(self.names, found["artifacts"], strict=True):
            each["name"] = name
        for each, one in zip(found["artifacts"][1:], self.accuracy or [], strict=bool(self.accuracy)):
            each["accuracy_against_reference"] = one.to_dict()
        return found


def run(options: Options) -> None:
    """Say which artifact is faster, and print the result."""
    report.require_place(options.results_file, options.overwrite)
    found = do(options)
    report.deliver(
        found,
        options.json,
        lambda: tables.comparison(found.speed, found.names, found.accuracy),
        lambda: keep(options, found),
    )


def keep(options: Options, found: Compared) -> None:
    """Write --results-file, with every single duration."""
    if options.results_file:
        kept = found.to_dict() | {"samples_ms": found.speed.samples_ms()}
        saved.write(options.results_file, "compare", saved.command_line("bench compare", options), kept)


def do(options: Options) -> Compared:
    """Measure. Raises what opening, reading and evaluating raise."""
    subjects = options.subjects
    images = open_images(options.data, options.split) if options.data else None
    judged = _judge(subjects, images, options) if options.accuracy and images else None
    return Compared(_race(subjects, options), names_of(subjects), judged)


def names_of(subjects: list[Subject]) -> list[str]:
    """The shortest names that tell them apart; the same one twice is numbered."""
    short = report.short_names([str(subject.path) for subject in subjects])
    full = [f"{name}@{s.own_flags}" if s.own_flags else name for name, s in zip(short, subjects, strict=True)]
    return [
        f"{name} #{full[:i].count(name) + 1}" if full.count(name) > 1 else name for i, name in enumerate(full)
    ]


def _race(subjects: list[Subject], options: Options) -> Comparison:
    effort = Effort(parse_precision(options.precision), options.duration, options.warmup)
    with ExitStack() as stack:
        contestants = [stack.enter_context(_ready(each, options)) for each in [*subjects, subjects[0]]]
        stack.enter_context(loading("comparing", still=True))
        before, began = conditions.now(), time.perf_counter()
        taken = play(contestants, effort)
        seconds = time.perf_counter() - began
        descriptions = [contestant.description for contestant in contestants]
        warned = conditions.warnings(
            before,
            [each.ravel() for each in taken] if options.boundary in calls.ALIKE else [],
            [each.device for each in descriptions],
        )
        return Comparison(
            descriptions[:-1],
            [contestant.fed for contestant in contestants[:-1]],
            taken[:-1],
            taken[-1],
            options.batch,
            options.boundary,
            effort,
            seconds,
            warned,
            env.fingerprint(),
        )


def _ready(subject: Subject, options: Options) -> AbstractContextManager[Contestant]:
    """The contestant, in this process or in one of its own."""
    setup = Setup(
        subject.path,
        subject.on,
        options.batch,
        options.boundary,
        options.img_size,
        options.data,
        options.split,
        options.seed,
    )
    return isolated(opened, setup) if options.isolated else opened(setup)


def _judge(subjects: list[Subject], images: ImageSet, options: Options) -> list[Paired]:
    results = [_answers(subject, images, options) for subject in subjects]
    return [paired(result, results[0], images.class_names) for result in results[1:]]


def _answers(subject: Subject, images: ImageSet, options: Options) -> accuracy.AccuracyResult:
    count = len(accuracy.spread(len(images), options.limit))
    with (
        open_artifact(subject.path, subject.on) as predictor,
        progress_bar(predictor.path.name, count) as advance,
    ):
        return accuracy.evaluate(
            predictor, images, limit=options.limit, split=options.split, progress=advance
        )
