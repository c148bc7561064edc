"""`distill bench table`: teacher, control and students in one table of accuracy against latency.

In:  `Options`: artifacts and the labeled images they are judged on; or results that were saved.
Out: the table on stdout, with --json as one JSON object; with --output as Markdown, CSV and JSON.
Elsewhere: rows and conditions (bench.table), how they are shown (bench.tables).

All latencies come from one process in which the artifacts alternate, so that speed-ups compare artifacts and
not moments.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from runtime import Predictor, UsageError, env, files
from runtime.cli import settings
from runtime.cli.settings import Flag
from runtime.cli.terminal import loading, progress_bar
from runtime.env import conditions
from runtime.images import ImageSet, open_images

from .. import accuracy, report, stats, tables
from ..clock import calls, latency
from ..results import saved
from ..results.gathered import gather
from ..subject import RunOptions, describe, open_artifact, require_preprocess
from ..table import Conditions, Table, make_row, ran_under, with_differences

SUMMARY = "tabulate accuracy, size and latency against the teacher"
DESCRIPTION = """examples:
  {prog} --data photos --teacher teacher.onnx student.onnx student_int8.onnx
  {prog} --data photos --teacher teacher.onnx --control control.onnx --output results student.onnx
  {prog} --data photos --teacher teacher.plan student.plan student.int8.plan
  {prog} monday.json tuesday.json --mixed"""


@dataclass(frozen=True)
class Options(RunOptions):
    """Table: what is compared, and how."""

    students: Annotated[tuple[Path, ...], Flag("FILE", positional=True)]
    """Artifacts to compare with the teacher, one or more .onnx or .plan files; or results of bench latency,
    accuracy and table that --save wrote, .json files, which are put together and not measured again."""
    data: Annotated[str | None, Flag("DATA", common=True)] = None
    """Labeled images: DIR, npz:FILE or digits; has to be given to measure."""
    teacher: Annotated[Path | None, Flag("FILE", common=True)] = None
    """Artifact that everything is compared with; has to be given to measure."""
    control: Annotated[Path | None, Flag("FILE", common=True)] = None
    """Artifact of the student trained for the same budget without the teacher."""
    split: Literal["train", "val"] = "val"
    """Part of --data to read."""
    batch: Annotated[int, Flag("N", aliases=("-b", "--batch-size"), common=True, least=1)] = 1
    """Images per timed call, 1 or more; accuracy is measured in batches of 64."""
    warmup: Annotated[int, Flag("N", least=0)] = 20
    """Untimed calls of each artifact before the first timed one, 0 or more."""
    iterations: Annotated[int, Flag("N", common=True, least=1)] = 200
    """Timed calls of each artifact, 1 or more."""
    limit: Annotated[int | None, Flag("N", least=1)] = None
    """Largest number of images for accuracy, spread evenly over the set, 1 or more."""
    skip_bad_images: bool = False
    """Leave out and count images that cannot be read, instead of stopping at the first."""
    seed: int = 0
    """Seed for choosing the timed images."""
    output: Annotated[Path | None, Flag("PREFIX", aliases=("-o",), common=True)] = None
    """Start of the names of the files to write: PREFIX.md, PREFIX.csv and PREFIX.json."""
    save: Annotated[Path | None, Flag("FILE", common=True)] = None
    """File to write the result to, as JSON with every single duration."""
    mixed: bool = False
    """Put results of different machines or engines into one table, each row marked with its own."""
    json: Annotated[bool, Flag(common=True)] = False
    """Print the table as one JSON object and nothing else."""
    overwrite: Annotated[bool, Flag(common=True)] = False
    """Replace existing files of --output and --save."""

    def __post_init__(self) -> None:
        settings.check(self)
        if not self.students:
            raise UsageError("no student given. Add one or more .onnx or .plan files after the flags")
        self._require_one_kind()
        if self.output and self.output.name in ("", ".."):
            raise UsageError(f"--output {self.output}: expected PREFIX, the start of the files' names")
        if self.save and self.save.resolve() in [path.resolve() for path in self.outputs]:
            raise UsageError(f"--save {self.save}: --output writes that file, too. Give another name to one")
        if not self.from_files:
            self.require_read([path for _, path in self.artifacts])
        paths = [path.resolve() for _, path in self.artifacts]
        twice = next((path for path in paths if paths.count(path) > 1), None)
        if twice:
            raise UsageError(f"{twice}: given twice. Name each artifact once")

    def _require_one_kind(self) -> None:
        """Raise UsageError where saved results and artifacts are mixed, or where one lacks what it needs."""
        results = [path for path in self.students if path.suffix == ".json"]
        if not results:
            if self.data is None or self.teacher is None:
                missing = "--data photos" if self.data is None else "--teacher teacher.onnx"
                raise UsageError(f"to measure, labeled images and a teacher are needed. Add {missing}")
            if self.mixed:
                raise UsageError("--mixed is for saved results, .json files. Leave it out")
        elif len(results) < len(self.students) or self.data or self.teacher or self.control or self.save:
            raise UsageError(
                f"{results[0]}: a saved result, which is shown and not measured. Give .json files alone,"
                " without --data, --teacher, --control and --save"
            )

    @property
    def from_files(self) -> bool:
        """Are saved results shown?"""
        return self.teacher is None

    @property
    def artifacts(self) -> list[tuple[str | None, Path]]:
        """(role, path) in the order of the rows; a student's role is None: the file says it."""
        control = [("control", self.control)] if self.control else []
        teacher = [("teacher", self.teacher)] if self.teacher else []
        return [*teacher, *control, *((None, path) for path in self.students)]

    @property
    def outputs(self) -> list[Path]:
        """The files of --output."""
        return (
            [self.output.with_name(self.output.name + suffix) for suffix in tables.WRITERS]
            if self.output
            else []
        )


def run(options: Options) -> None:
    """Tabulate accuracy, size and latency against the teacher, and print the result."""
    for path in options.outputs:
        files.refuse_existing(path, options.overwrite)
        files.require_writable(path)
    report.require_place(options.save, options.overwrite)
    made, samples = shown(options)
    if not options.json:  # shown first: what was measured is not lost when it cannot be written
        console = report.console()
        console.print(tables.trade_off(made, console.width))
    if options.output:
        tables.write(made, options.outputs)
    if options.save:
        kept = asdict(made) | {"samples_ms": samples}
        saved.write(options.save, "table", saved.command_line("bench table", options), kept)
    if options.json:  # last: stdout is one object, this one or that of an error
        print(tables.to_json(made), end="")


def shown(options: Options) -> tuple[Table, dict[str, Any]]:
    """The table, measured now or put together from files; and every duration that was measured, ms."""
    if options.from_files:
        return gather([saved.read(path) for path in options.students], options.mixed), {}
    return with_samples(options)


def measure(options: Options) -> Table:
    """The table alone."""
    return shown(options)[0]


def with_samples(options: Options) -> tuple[Table, dict[str, Any]]:
    """Measure everything. Raises what opening, reading and evaluating raise; see bench.accuracy.evaluate."""
    assert options.data is not None
    with loading(f"looking for the images of {options.data}"):
        images = open_images(options.data, options.split)
    with ExitStack() as open_files:
        predictors = [open_files.enter_context(open_artifact(path, options)) for _, path in options.artifacts]
        made = [calls.make_calls(p, options.batch, images=images, seed=options.seed) for p in predictors]
        for call in made:  # what a file cannot do, such as this batch, is said before accuracy is measured
            call.functions["compute"]()
        results = [_evaluate(predictor, images, options) for predictor in predictors]
        before = conditions.now()
        with loading("timing all of them in turn", still=True):
            samples = {
                boundary: latency.interleaved(
                    {str(i): call.functions[boundary] for i, call in enumerate(made)},
                    iterations=options.iterations,
                    warmup=options.warmup,
                )
                for boundary in calls.BOUNDARIES
            }
        subjects = [describe(predictor, options) for predictor in predictors]
        warned = conditions.warnings(
            before,
            [each for name in calls.ALIKE for each in samples[name].values()],
            [subject.device for subject in subjects],
        )
        rows = [
            make_row(
                role,
                predictors[i],
                subjects[i],
                results[i],
                {name: samples[name][str(i)] for name in samples},
                options.batch,
            )
            for i, (role, _) in enumerate(options.artifacts)
        ]
    under = Conditions(
        data=images.name,
        split=options.split,
        images=results[0].n,
        skipped=len(results[0].skipped),
        batch=options.batch,
        iterations=options.iterations,
        warmup=options.warmup,
        seed=options.seed,
        **ran_under(subjects),
        boundary="compute (p50, p99, images/s, speed-up); end-to-end (e2e)",
        input={boundary: made[0].inputs[boundary] for boundary in calls.BOUNDARIES},
        warnings=warned,
        fingerprint=env.fingerprint(),
    )
    durations = {
        str(path): {name: (taken[str(i)] / stats.NS_PER_MS).tolist() for name, taken in samples.items()}
        for i, (_, path) in enumerate(options.artifacts)
    }
    return Table(with_differences(rows, results), under), durations


def _evaluate(predictor: Predictor, images: ImageSet, options: Options) -> accuracy.AccuracyResult:
    require_preprocess(predictor)
    count = len(accuracy.spread(len(images), options.limit))
    with progress_bar(predictor.path.name, count) as advance:
        return accuracy.evaluate(
            predictor,
            images,
            limit=options.limit,
            skip_bad=options.skip_bad_images,
            split=options.split,
            progress=advance,
        )
