"""Results as tables: for a person on a terminal, and as Markdown, CSV and JSON.

In:  a `LatencyResult`, an `AccuracyReport`, a `Comparison` or a `Table`.
Out: what rich prints; text; files.
Elsewhere: measuring (bench.clock.latency, bench.accuracy, bench.comparing.race), short forms of
numbers (bench.report).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from runtime import files
from runtime.env.conditions import Warned
from runtime.images.summary import balanced_line

from . import report
from .accuracy import AccuracyReport
from .clock.calls import BOUNDARIES
from .clock.latency import LatencyResult
from .comparing.gate import Verdict
from .comparing.paired import Paired
from .comparing.race import Against, Comparison
from .comparing.ratios import LEAST_BLOCKS, LEVEL, Ratio
from .table import Origins, Row, Table


def latency(result: LatencyResult) -> Any:
    """One row per boundary, the conditions below."""
    summaries = {name: timing.summary for name, timing in result.timings.items()}
    percents = list(next(iter(summaries.values())).percentiles_ms) if summaries else []
    made = report.table(
        f"{result.subject.name}  batch {result.batch}  latency in ms",
        left=["boundary"],
        right=[*(f"p{percent:g}" for percent in percents), "mean", "max", "images/s", "n"],
    )
    for name, summary in summaries.items():
        values = [*summary.percentiles_ms.values(), summary.mean_ms, summary.max_ms]
        made.add_row(
            _boundary(name),
            *(report.significant(value) for value in values),
            report.rate(summary.throughput_images_per_s),
            str(summary.n),
        )
    return report.with_notes([made], _latency_conditions(result))


def _latency_conditions(result: LatencyResult) -> list[str]:
    lines = [f"{result.subject.file}: {result.subject.ran_on}; warm-up {result.warmup}"]
    for name in BOUNDARIES:
        if name in result.timings:
            lines.append(f"{_boundary(name)}: {result.timings[name].input}")
        elif "see --boundary" not in result.not_measured[name]:
            lines.append(f"{_boundary(name)}: not measured: {result.not_measured[name]}")
    if result.subject.unknown:
        lines.append(f"the file carries no {' and no '.join(result.subject.unknown)}")
    return [*lines, *result.notes, report.machine(result.fingerprint), *warning_lines(result.warned)]


def _boundary(name: str) -> str:
    """As it is typed: end_to_end -> end-to-end."""
    return name.replace("_", "-")


def accuracy(found: AccuracyReport) -> Any:
    """A row per artifact, the conditions below."""
    headings = ["top-1 %", "top-5 %", "balanced %", "loss nats", "Δ top-1"]
    made = report.table("accuracy", left=["artifact"], right=headings)
    result, compared = found.result, found.comparison
    name, other = found.subject.name, found.reference.name if found.reference else ""
    if found.reference and name == other:
        name, other = report.short_names([found.subject.file, found.reference.file])
    made.add_row(
        name,
        report.number(result.top1),
        report.number(result.top5),
        report.number(result.balanced),
        report.number(result.loss, 4),
        report.number(compared.top1_difference_points if compared else None, sign=True),
    )
    skipped = f", {len(result.skipped)} unreadable images left out" if result.skipped else ""
    notes = [f"n={result.n} images of {found.data}{skipped}; {found.subject.file}; {found.subject.ran_on}"]
    low, high = result.top1_interval
    notes.append(f"top-1 {low:.2f} to {high:.2f} % (95 % interval on {result.n} images)")
    notes.append(balanced_line(result.classes))
    if found.reference and compared:
        made.add_row(f"reference: {other}", report.number(compared.reference_top1_percent), "", "", "", "")
        below, above = compared.difference_low_points, compared.difference_high_points
        notes.append(
            f"Δ top-1 {below:+.2f} to {above:+.2f} points (95 % interval for pairs), {told(below, above)}:"
            f" {compared.only_this_right} images only this one gets right, {compared.only_reference_right}"
            " only the reference"
        )
        notes.append(
            f"agreement {compared.agreement_percent:.2f} % ({compared.agreement_low_percent:.2f} to"
            f" {compared.agreement_high_percent:.2f}; same best class as {found.reference.file}); "
            f"largest logit difference {compared.max_abs_logit_difference:.3g}"
        )
    return report.with_notes([made], [*notes, report.machine(found.fingerprint)])


def told(low: float, high: float) -> str:
    """Whether a difference with this interval is one."""
    return "which is clear" if low > 0 or high < 0 else "which cannot be told from none"


def comparison(found: Comparison, names: Sequence[str], judged: Sequence[Paired] | None) -> Any:
    """A row per artifact, the reference first, with ratios to it; conditions and warnings below."""
    made = report.table(
        f"{found.boundary}, batch {found.batch}, against {names[0]}",
        left=["artifact", "verdict"],
        right=["p50 ms", "p99 ms", "images/s", "time, ratio", "p99, ratio"],
    )
    compared: list[Against | None] = [None, *found.against_reference()]
    for name, summary, one in zip(names, found.summaries(), compared, strict=True):
        made.add_row(
            report.plain_text(name),
            one.verdict if one else "reference",
            report.significant(summary.percentiles_ms[50]),
            report.significant(summary.percentiles_ms[99]),
            report.rate(summary.throughput_images_per_s),
            _ratio(one.median) if one else "",
            _ratio(one.p99) if one else "",
        )
    notes = [*_comparison_notes(found, names), *warning_lines(found.warned)]
    if not judged:
        return report.with_notes([made], notes)
    return report.with_notes([made, _judged(names, judged)], [*_judged_notes(names, judged), *notes])


def _ratio(ratio: Ratio | None) -> str:
    return f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f})" if ratio else report.UNKNOWN


def _comparison_notes(found: Comparison, names: Sequence[str]) -> list[str]:
    asked, level = 100 * found.effort.precision, round(100 * LEVEL)
    reached = (
        f"every interval is within {asked:g} %"
        if found.is_precise
        else f"stopped after {found.seconds:.0f} s, before every interval was within {asked:g} %"
    )
    few = f"; no interval from fewer than {LEAST_BLOCKS} blocks" if found.blocks < LEAST_BLOCKS else ""
    return [
        f"ratios: this one / {names[0]}, with {level} % intervals over {found.blocks} alternating blocks of"
        f" {found.samples[0].shape[1]} calls; below 1 is faster; {reached}{few}",
        f"noise floor: {names[0]} against itself {_ratio(found.floor)}",
        *(f"{name}: {each.ran_on}" for name, each in zip(names, found.contestants, strict=True)),
        f"input: {found.fed[0]}",
        report.machine(found.fingerprint),
    ]


def gated(found: Verdict, engines: Sequence[str], warned: Sequence[Warned]) -> Any:
    """A row for each limit, what it ran on below."""
    made = report.table(found.file, left=["limit", "holds", "measured"], right=[])
    for check in found.checks:
        made.add_row(check.name, "yes" if check.passed else "NO", report.plain_text(check.text))
    return report.with_notes([made], [*engines, *warning_lines(warned)])


def warning_lines(warned: Sequence[Warned]) -> list[str]:
    """What to say under a result whose times should not be quoted."""
    lines = [f"warning: {each.text}" for each in warned]
    return [*lines, "do not quote these times; measure again on a quiet machine"] if lines else []


def _judged(names: Sequence[str], judged: Sequence[Paired]) -> Any:
    made = report.table(
        f"accuracy, n={judged[0].images}",
        left=["artifact"],
        right=["top-1 %", "difference, points", "gained", "lost", "p", "agreement %", "ECE %"],
    )
    made.add_row(
        report.plain_text(names[0]),
        report.number(judged[0].reference_top1_percent),
        *("",) * 5,
        report.number(judged[0].reference_calibration_error_percent),
    )
    for name, one in zip(names[1:], judged, strict=True):
        low, high = one.difference_low_points, one.difference_high_points
        made.add_row(
            report.plain_text(name),
            report.number(one.top1_percent),
            f"{one.difference_points:+.2f} ({low:+.2f} to {high:+.2f})",
            str(one.only_this_right),
            str(one.only_reference_right),
            f"{one.mcnemar_p:.2g}",
            report.number(one.agreement_percent),
            report.number(one.calibration_error_percent),
        )
    return made


def _judged_notes(names: Sequence[str], judged: Sequence[Paired]) -> list[str]:
    lines = [
        "gained, lost: images that only this one, only the reference gets right; p: McNemar's exact"
        " test of the"
        " two; ECE: expected calibration error"
    ]
    for name, one in zip(names[1:], judged, strict=True):
        low, high = one.top1_low_percent, one.top1_high_percent
        worst = (
            f"; lost most in {one.worst_class}: {one.worst_class_lost} of {one.worst_class_images} images"
            if one.worst_class
            else ""
        )
        said = "is clear" if one.is_clear else "cannot be told from none"
        lines.append(f"{name}: top-1 between {low:.1f} and {high:.1f} %; its difference {said}{worst}")
    return lines


@dataclass(frozen=True)
class Column:
    """How a field of Row is shown to a person."""

    heading: str
    shown: Callable[[Row], str]

    @property
    def one_line(self) -> str:
        """The heading without its line breaks."""
        return self.heading.replace("\n/", "/").replace("\n-", "-").replace("\n", " ")


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
    Column("speed\n-up", lambda row: f"{report.number(row.speedup)}x" if row.speedup else report.UNKNOWN),
    Column("e2e p50\nms", lambda row: report.significant(row.end_to_end_p50_ms)),
)
COLUMNS = (*QUALITY, *SPEED)


def caption(table: Table) -> list[str]:
    """The conditions in words, one line each."""
    c = table.conditions
    if isinstance(c, Origins):
        return [*c.lines, *interval_lines(table), *warning_lines(c.warnings)]
    skipped = f" ({c.skipped} unreadable ones left out)" if c.skipped else ""
    engines: dict[str, list[str]] = {}
    for row, name in zip(table.rows, names(table), strict=True):
        engines.setdefault(row.ran_on, []).append(name)
    ran_on = (
        next(iter(engines))
        if len(engines) == 1
        else "; ".join(f"{', '.join(names)} on {engine}" for engine, names in engines.items())
    )
    return [
        (
            f"Accuracy: n={c.images} images of {c.data}{skipped}; Δ in points of top-1. Latency: batch"
            f" {c.batch}, n={c.iterations}, warm-up {c.warmup}, {ran_on}; artifacts"
            " alternated in one process."
        ),
        (
            "p50, p99, images/s, speed-up (teacher's median / this one): boundary compute, a preprocessed"
            " batch to logits. e2e: boundary end-to-end, encoded image to the top 5 classes."
        ),
        *interval_lines(table),
        report.machine(c.fingerprint),
        *warning_lines(c.warnings),
    ]


def interval_lines(table: Table) -> list[str]:
    """The 95 % intervals of each row's accuracy and differences."""
    lines = []
    for row, name in zip(table.rows, names(table), strict=True):
        if row.top1_low_percent is None or row.top1_high_percent is None:
            continue
        differences = [
            f"Δ {other} {low:+.2f} to {high:+.2f}, {told(low, high)}"
            for other, low, high in (
                ("teacher", row.delta_teacher_low_points, row.delta_teacher_high_points),
                ("control", row.delta_control_low_points, row.delta_control_high_points),
            )
            if low is not None and high is not None
        ]
        top1 = f"top-1 {row.top1_low_percent:.2f} to {row.top1_high_percent:.2f} %"
        lines.append(f"95 % interval, {name}: {'; '.join([top1, *differences])}")
    return lines


def mark(row: Row) -> str:
    """The number of the row's machine, in a table of several."""
    return f" [{row.group}]" if row.group else ""


def names(table: Table) -> list[str]:
    """What each row's file is called: its name, or so much of its path that no two are alike."""
    return report.short_names([row.file for row in table.rows])


def trade_off(table: Table, width: int = report.PIPE_WIDTH) -> Any:
    """For a terminal of so many columns, with names of ordinary length; below 100 as two tables, so that no
    figure is cut.
    """
    parts: list[tuple[str, Sequence[Column]]] = [("accuracy against latency", COLUMNS)]
    if width < report.PIPE_WIDTH:
        parts = [("accuracy and size", QUALITY), ("latency", SPEED)]
    made = []
    for title, columns in parts:
        made.append(report.table(title, left=["artifact"], right=[column.heading for column in columns]))
        for row, name in zip(table.rows, names(table), strict=True):
            about = report.plain_text(f"{row.artifact}{mark(row)}\n{name}")
            made[-1].add_row(about, *(column.shown(row) for column in columns))
    return report.with_notes(made, caption(table))


def to_markdown(table: Table) -> str:
    """A Markdown table, the conditions below it."""
    lines = [
        [
            "artifact",
            *(column.one_line for column in COLUMNS),
        ],
        ["---", *("---:" for _ in COLUMNS)],
    ]
    for row, name in zip(table.rows, names(table), strict=True):
        code = name.replace("`", "'")  # which would end the code span
        lines.append([f"{row.artifact} (`{code}`){mark(row)}", *(column.shown(row) for column in COLUMNS)])
    return report.markdown(lines) + "\n\n" + "\n".join(f"{line}  " for line in caption(table)) + "\n"


def to_csv(table: Table) -> str:
    """One line per row; an empty cell is not measured or not known."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(report.csv_values(asdict(row)) for row in table.rows)
    return text.getvalue()


def classes_csv(found: AccuracyReport) -> str:
    """One line for each class; percent is empty without images."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["name", "images", "right", "percent"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(report.csv_values(each.to_dict()) for each in found.result.classes)
    return text.getvalue()


def to_json(table: Table) -> str:
    """{"rows": [...], "conditions": {...}}."""
    return report.to_json(asdict(table))


WRITERS: dict[str, Callable[[Table], str]] = {".md": to_markdown, ".csv": to_csv, ".json": to_json}
"""Ending of a file of `--output` -> its content."""


def write(table: Table, outputs: Sequence[Path]) -> None:
    """Write the files of `bench table --output`, each whole or not at all."""
    for path in outputs:
        files.write_text(path, WRITERS[path.suffix](table))
