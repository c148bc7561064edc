"""`distill bench table`: teacher, control and students in one table of accuracy against latency.

In:  artifacts and the labelled images they are judged on.
Out: a `Table`, as a rich table, Markdown, CSV and JSON; the columns of CSV and JSON have the same names.
Elsewhere: accuracy (bench.accuracy), the clock (bench.latency), the timed calls (bench.subject).

All latencies come from one process in which the artifacts take turns, so that speed-ups compare artifacts and
not moments.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from runtime import Predictor, UsageError, env, files
from runtime.cli.settings import Flag
from runtime.images import ImageSet, open_images

from . import accuracy, latency, report, stats, subject

SUFFIXES = (".md", ".csv", ".json")

ENGINE_KEYS = ("engine", "backend", "provider", "device", "threads", "hint", "contexts", "cuda_graph")
"""What `subject.describe` says about where an artifact ran."""


@dataclass(frozen=True)
class TableOptions(subject.RunOptions):
    """Table: what is compared, and how."""

    students: Annotated[tuple[Path, ...], Flag("FILE", positional=True)]
    """Artifacts to compare with the teacher, one or more .onnx or .plan files."""
    data: Annotated[str, Flag("DATA", common=True)]
    """Labelled images: DIR, npz:FILE or digits."""
    teacher: Annotated[Path, Flag("FILE", common=True)]
    """Artifact that everything is compared with."""
    control: Annotated[Path | None, Flag("FILE", common=True)] = None
    """Artifact of the student trained for the same budget without the teacher."""
    split: Literal["train", "val"] = "val"
    """Part of --data to read."""
    batch: Annotated[int, Flag("N", aliases=("-b", "--batch-size"), common=True)] = 1
    """Images per timed call, 1 or more; accuracy is measured in batches of 64."""
    warmup: int = 20
    """Untimed calls of each artifact before the first timed one, 0 or more."""
    iterations: Annotated[int, Flag("N", common=True)] = 200
    """Timed calls of each artifact, 1 or more."""
    limit: int | None = None
    """Largest number of images for accuracy, spread evenly over the set, 1 or more."""
    skip_bad_images: bool = False
    """Leave out and count images that cannot be read, instead of stopping at the first."""
    seed: int = 0
    """Seed for choosing the timed images."""
    output: Annotated[Path | None, Flag("PREFIX", aliases=("-o",), common=True)] = None
    """Start of the names of the files to write: PREFIX.md, PREFIX.csv and PREFIX.json."""
    json: Annotated[bool, Flag(common=True)] = False
    """Print the table as one JSON object and nothing else."""
    overwrite: Annotated[bool, Flag(common=True)] = False
    """Replace existing files of --output."""

    def __post_init__(self) -> None:
        if (
            self.batch < 1
            or self.iterations < 1
            or self.warmup < 0
            or (self.limit is not None and self.limit < 1)
        ):
            raise UsageError(
                f"batch {self.batch}, iterations {self.iterations}, warmup {self.warmup}, limit {self.limit}:"
                " expected batch, iterations and limit of 1 or more, warmup of 0 or more"
            )
        if not self.students:
            raise UsageError("no student given. Add one or more .onnx or .plan files after the flags")
        self.require_read([path for _, path in self.artifacts])
        paths = [path.resolve() for _, path in self.artifacts]
        twice = next((path for path in paths if paths.count(path) > 1), None)
        if twice:
            raise UsageError(f"{twice}: given twice. Name each artifact once")

    @property
    def artifacts(self) -> list[tuple[str | None, Path]]:
        """(role, path) in the order of the rows; a student's role is None: the file says it."""
        control = [("control", self.control)] if self.control else []
        return [("teacher", self.teacher), *control, *((None, path) for path in self.students)]

    @property
    def outputs(self) -> list[Path]:
        """The files of --output."""
        return (
            [self.output.with_name(self.output.name + suffix) for suffix in SUFFIXES] if self.output else []
        )


@dataclass(frozen=True)
class Row:
    """One artifact. The field names are the CSV columns and the JSON keys; None is not measured or
    not known.
    """

    artifact: str
    """Role and precision."""
    file: str
    role: str | None
    precision: str | None
    model: str | None
    top1_percent: float
    delta_teacher_points: float | None
    delta_control_points: float | None
    parameters: int | None
    macs: int | None
    file_bytes: int
    latency_p50_ms: float
    """Boundary compute, like p99 and images/s."""
    latency_p99_ms: float
    throughput_images_per_s: float
    end_to_end_p50_ms: float
    speedup: float
    """Teacher's median / this median, boundary compute, from interleaved calls."""
    top5_percent: float
    loss_nats: float
    images: int
    skipped: int
    ran_on: str
    """Engine, provider, device, threads, as the engine reports them."""


@dataclass(frozen=True)
class Column:
    """How a field of Row is shown to a person."""

    heading: str
    shown: Callable[[Row], str]


QUALITY = (
    Column("top-1\n%", lambda row: report.number(row.top1_percent)),
    Column("Δ\nteacher", lambda row: report.number(row.delta_teacher_points, sign=True)),
    Column("Δ\ncontrol", lambda row: report.number(row.delta_control_points, sign=True)),
    Column("params", lambda row: report.count(row.parameters)),
    Column("MACs", lambda row: report.count(row.macs)),
    Column("size", lambda row: report.size(row.file_bytes)),
)
SPEED = (
    Column("p50\nms", lambda row: report.significant(row.latency_p50_ms)),
    Column("p99\nms", lambda row: report.significant(row.latency_p99_ms)),
    Column("images\n/s", lambda row: report.rate(row.throughput_images_per_s)),
    Column("speed\n-up", lambda row: f"{report.number(row.speedup)}x"),
    Column("e2e p50\nms", lambda row: report.significant(row.end_to_end_p50_ms)),
)
COLUMNS = (*QUALITY, *SPEED)


@dataclass(frozen=True)
class Table:
    """The rows, and the conditions they were measured under."""

    rows: list[Row]
    conditions: dict[str, Any]


def build(options: TableOptions) -> Table:
    """Measure everything. Raises what opening, reading and evaluating raise; see bench.accuracy.evaluate."""
    images = open_images(options.data, options.split)
    with ExitStack() as open_files:
        predictors = [
            open_files.enter_context(subject.open_artifact(path, options)) for _, path in options.artifacts
        ]
        calls = [subject.make_calls(p, options.batch, images=images, seed=options.seed) for p in predictors]
        for call in calls:  # what a file cannot do, such as this batch, is said before accuracy is measured
            call.functions["compute"]()
        results = [_evaluate(predictor, images, options) for predictor in predictors]
        samples = {
            boundary: latency.interleaved(
                {str(i): c.functions[boundary] for i, c in enumerate(calls)},
                iterations=options.iterations,
                warmup=options.warmup,
            )
            for boundary in subject.BOUNDARIES
        }
        abouts = [subject.describe(predictor, options) for predictor in predictors]
        rows = [
            _row(
                role,
                predictor,
                result,
                {name: samples[name][str(i)] for name in samples},
                options.batch,
                subject.where(abouts[i]),
            )
            for i, ((role, _), predictor, result) in enumerate(
                zip(options.artifacts, predictors, results, strict=True)
            )
        ]
    conditions = {
        "data": images.name,
        "split": options.split,
        "images": rows[0].images,
        "skipped": rows[0].skipped,
        "batch": options.batch,
        "iterations": options.iterations,
        "warmup": options.warmup,
        "seed": options.seed,
        **{key: _common([about[key] for about in abouts]) for key in ENGINE_KEYS},
        "boundary": "compute (p50, p99, images/s, speed-up); end-to-end (e2e)",
        "input": {boundary: calls[0].inputs[boundary] for boundary in subject.BOUNDARIES},
        "fingerprint": env.fingerprint(),
    }
    return Table(with_differences(rows), conditions)


def with_differences(rows: Sequence[Row]) -> list[Row]:
    """Differences to the teacher (the first row) and to the control (the second, if it is one); None to
    oneself.
    """
    teacher = rows[0]
    control = rows[1] if len(rows) > 1 and rows[1].role == "control" else None

    def difference(row: Row, other: Row | None) -> float | None:
        return (
            None if other is None or row is teacher or row is other else row.top1_percent - other.top1_percent
        )

    return [
        replace(
            row,
            delta_teacher_points=difference(row, teacher),
            delta_control_points=difference(row, control),
            speedup=teacher.latency_p50_ms / row.latency_p50_ms,
        )
        for row in rows
    ]


def _evaluate(predictor: Predictor, images: ImageSet, options: TableOptions) -> accuracy.AccuracyResult:
    subject.require_preprocess(predictor)
    with accuracy.progress_bar(
        predictor.path.name, len(accuracy.spread(len(images), options.limit))
    ) as advance:
        return accuracy.evaluate(
            predictor, images, limit=options.limit, skip_bad=options.skip_bad_images, progress=advance
        )


def _common(values: Sequence[Any]) -> Any:
    """The value that all artifacts have; the rows say which has which where they differ."""
    return values[0] if all(value == values[0] for value in values) else "differs, see ran_on of the rows"


def _row(
    role: str | None,
    predictor: Predictor,
    result: accuracy.AccuracyResult,
    samples: Mapping[str, np.ndarray],
    batch: int,
    ran_on: str,
) -> Row:
    metadata = predictor.metadata
    timing = stats.summary(samples["compute"], batch, (50, 99))
    role = role or metadata.role or "student"
    return Row(
        artifact=subject.label(predictor, role),
        file=str(predictor.path),
        role=role,
        precision=None if metadata.precision == "unknown" else metadata.precision,
        model=metadata.model,
        top1_percent=result.top1,
        delta_teacher_points=None,
        delta_control_points=None,
        parameters=metadata.parameters,
        macs=metadata.macs,
        file_bytes=predictor.path.stat().st_size,
        latency_p50_ms=timing["latency_p50_ms"],
        latency_p99_ms=timing["latency_p99_ms"],
        throughput_images_per_s=timing["throughput_images_per_s"],
        end_to_end_p50_ms=stats.percentile(samples["end_to_end"] / stats.NS_PER_MS, 50),
        speedup=1.0,
        top5_percent=result.top5,
        loss_nats=result.loss,
        images=result.n,
        skipped=len(result.skipped),
        ran_on=ran_on,
    )


def caption(table: Table) -> list[str]:
    """The conditions in words, one line each."""
    c = table.conditions
    skipped = f" ({c['skipped']} unreadable ones left out)" if c["skipped"] else ""
    engines = {
        row.ran_on: [Path(each.file).name for each in table.rows if each.ran_on == row.ran_on]
        for row in table.rows
    }
    ran_on = (
        next(iter(engines))
        if len(engines) == 1
        else "; ".join(f"{', '.join(names)} on {engine}" for engine, names in engines.items())
    )
    return [
        (
            f"Accuracy: n={c['images']} images of {c['data']}{skipped}; Δ in points of top-1. Latency: batch"
            f" {c['batch']}, n={c['iterations']}, warm-up {c['warmup']}, {ran_on}; artifacts took turns in"
            " one process."
        ),
        (
            "p50, p99, images/s, speed-up (teacher's median / this one): boundary compute, a preprocessed"
            " batch to logits. e2e: boundary end-to-end, encoded image to the top 5 classes."
        ),
        report.machine(c["fingerprint"]),
    ]


def to_rich(table: Table, width: int = report.PIPE_WIDTH) -> Any:
    """For a terminal of so many columns, with names of ordinary length; below 100 as two tables, so that no
    figure is cut.
    """
    parts: list[tuple[str, Sequence[Column]]] = [("accuracy against latency", COLUMNS)]
    if width < report.PIPE_WIDTH:
        parts = [("accuracy and size", QUALITY), ("latency", SPEED)]
    made = []
    for title, columns in parts:
        made.append(report.table(title, left=["artifact"], right=[column.heading for column in columns]))
        for row in table.rows:
            made[-1].add_row(
                f"{row.artifact}\n{Path(row.file).name}", *(column.shown(row) for column in columns)
            )
    return report.with_notes(made, caption(table))


def to_markdown(table: Table) -> str:
    """A Markdown table, the conditions below it."""
    lines = [
        [
            "artifact",
            *(
                column.heading.replace("\n/", "/").replace("\n-", "-").replace("\n", " ")
                for column in COLUMNS
            ),
        ],
        ["---", *("---:" for _ in COLUMNS)],
    ]
    for row in table.rows:
        lines.append(
            [f"{row.artifact} (`{Path(row.file).name}`)", *(column.shown(row) for column in COLUMNS)]
        )
    text = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join(text) + "\n\n" + "\n".join(f"{line}  " for line in caption(table)) + "\n"


def to_csv(table: Table) -> str:
    """One line per row; an empty cell is not measured or not known."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in table.rows)
    return text.getvalue()


def to_json(table: Table) -> str:
    """{"rows": [...], "conditions": {...}}."""
    return report.to_json(asdict(table))


def write(table: Table, outputs: Sequence[Path]) -> None:
    """Write the files of `TableOptions.outputs`, each whole or not at all."""
    for path, render in zip(outputs, (to_markdown, to_csv, to_json), strict=True):
        files.write_text(path, render(table))
