"""What a search found: on the screen, as a file that bench report and bench table read.

In:  a `Search` that has run, and its winner where there is one.
Out: a table with notes; FOLDER/search.json, a result of the kind that bench table saves.
Elsewhere: the page (bench.results.page), the format of the file (docs/format.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench import report
from bench.results import saved
from bench.results.gathered import gather
from bench.table import Row
from runtime import env
from runtime.intervals import wilson

from .candidates import Candidate
from .journal import Timed, Trained
from .search import Search, Winner, epochs_in_words
from .steps import WON

NAME = "search.json"
PAGE = "report.html"


@dataclass(frozen=True)
class Point:
    """A candidate and what is known of it."""

    candidate: Candidate
    outcome: str
    timed: Timed | None
    """Of the winner as it was trained, of the others untrained."""
    trained: Trained | None
    """Its longest training."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % of top-1, percent (Wilson)."""
        if not self.trained or not self.trained.images:
            return None
        right = round(self.trained.top1_percent * self.trained.images / 100)
        low, high = wilson(right, self.trained.images)
        return 100 * low, 100 * high


@dataclass(frozen=True)
class Found:
    """The result of a search."""

    folder: Path
    limit_ms: float
    points: list[Point]
    """The winner first, then the longest trained and most accurate, at last the slowest."""
    winner: Winner | None
    reproduce: str
    """The command that trains the winner again; empty without one."""
    seconds: float
    """All steps together."""
    rows: list[Row]
    warnings: list[dict[str, Any]]
    """Reasons not to quote the times."""
    data: str

    def to_dict(self) -> dict[str, Any]:
        """What search.json holds: the table of bench, and under `search` what only a search knows."""
        images = next((point.trained.images for point in self.points if point.trained), 0)
        conditions = {
            "data": self.data,
            "split": "val",
            "images": images,
            "batch": 1,
            "boundary": "compute",
            "hint": None,
            "warnings": self.warnings,
            "fingerprint": env.fingerprint(),
        }
        return {
            "rows": [asdict(row) for row in self.rows],
            "conditions": conditions,
            "search": {
                "limit_ms": self.limit_ms,
                "seconds": self.seconds,
                "candidates": [_plain(point) for point in self.points],
                "winner": self.winner and _winner(self.winner),
                "reproduce": self.reproduce,
            },
        }


def found(search: Search, winner: Winner | None, reproduce: str) -> Found:
    """What there is by now."""
    points = sorted((_point(search, each, winner) for each in search.candidates), key=_place)
    paths = {point: path for point in points if (path := _saved(search, point, winner))}
    read = {point: saved.read(path) for point, path in paths.items()}
    timed = {point: gather([each], False).rows[0] for point, each in read.items()}
    ran_on = next((row.ran_on for row in timed.values()), "")
    return Found(
        folder=search.asked.folder,
        limit_ms=search.asked.limit_ms,
        points=points,
        winner=winner,
        reproduce=reproduce,
        seconds=search.journal.seconds,
        rows=[_row(search, point, timed.get(point), ran_on) for point in points] if timed else [],
        warnings=[*_warnings(list(read.values())), *_unlike(points)],
        data=search.asked.training.data,
    )


def _point(search: Search, candidate: Candidate, winner: Winner | None) -> Point:
    won = winner is not None and winner.candidate == candidate
    return Point(
        candidate,
        search.outcome.get(candidate, "not timed"),
        winner.timed if winner and won else search.timed.get(candidate),
        winner.trained if winner and won else search.trained.get(candidate),
    )


def _place(point: Point) -> tuple[float, ...]:
    trained, timed = point.trained, point.timed
    return (
        point.outcome != WON,
        -(trained.epochs if trained else 0),
        -(trained.top1_percent if trained else 0.0),
        timed.median_ms if timed else float("inf"),
    )


def _saved(search: Search, point: Point, winner: Winner | None) -> Path | None:
    """The file with the times of a candidate that has some."""
    if winner and point.candidate == winner.candidate:
        return winner.result
    path = search.steps.latency_file(point.candidate)
    return path if point.timed and path.is_file() else None


def _row(search: Search, point: Point, timed: Row | None, ran_on: str) -> Row:
    """The row of bench with the accuracy of the longest training; of one that was not timed what is known."""
    name = f"{point.candidate.name}: {point.outcome}"
    row = timed or Row(name, str(search.steps.file(point.candidate)), ran_on=ran_on)
    row = replace(row, artifact=name, role="student")
    if not point.trained or not point.interval:
        return row
    low, high = point.interval
    as_float = " as fp32" if search.asked.engine.int8 else ""
    run = search.training_of(point.candidate, point.trained.epochs, None).output
    return replace(
        row,
        artifact=f"{name}, top-1{as_float} after {epochs_in_words(point.trained.epochs)}",
        file=row.file if point.outcome == WON else run,
        top1_percent=point.trained.top1_percent,
        top1_low_percent=low,
        top1_high_percent=high,
        images=point.trained.images,
    )


def _warnings(results: list[saved.Saved]) -> list[dict[str, Any]]:
    """One of each kind, with the number of candidates that it holds for."""
    each = [one for result in results for one in result.need("warnings", list)]
    kinds = {one["kind"]: one for one in each}
    counts = {kind: sum(one["kind"] == kind for one in each) for kind in kinds}
    return [
        {"kind": kind, "text": f"{counts[kind]} of {len(results)} candidates, such as: {one['text']}"}
        for kind, one in kinds.items()
    ]


def _unlike(points: Sequence[Point]) -> list[dict[str, Any]]:
    """A warning where a page would compare accuracies after different numbers of epochs."""
    lengths = Counter(point.trained.epochs for point in points if point.trained)
    if len(lengths) < 2:
        return []
    counts = ", ".join(
        f"{count} after {epochs_in_words(length)}" for length, count in sorted(lengths.items())
    )
    text = (
        f"accuracies are not all after as many epochs ({counts}): a front or a rank says little across them"
    )
    return [{"kind": "epochs", "text": text}]


def _plain(point: Point) -> dict[str, Any]:
    low, high = point.interval or (None, None)
    return {
        "name": point.candidate.name,
        "student": point.candidate.network,
        "student_args": list(point.candidate.args),
        "img_size": point.candidate.size,
        "outcome": point.outcome,
        "latency_p50_ms": point.timed and point.timed.median_ms,
        "latency_low_ms": point.timed and point.timed.low_ms,
        "latency_high_ms": point.timed and point.timed.high_ms,
        "epochs": point.trained and point.trained.epochs,
        "top1_percent": point.trained and point.trained.top1_percent,
        "top1_low_percent": low,
        "top1_high_percent": high,
    }


def _winner(winner: Winner) -> dict[str, Any]:
    return {
        "name": winner.candidate.name,
        "run": str(winner.run),
        "artifact": str(winner.artifact),
        "epochs": winner.trained.epochs,
        "top1_percent": winner.trained.top1_percent,
        "images": winner.trained.images,
        "int8_top1_percent": winner.int8_top1_percent,
        "latency_p50_ms": winner.timed.median_ms,
        "latency_low_ms": winner.timed.low_ms,
        "latency_high_ms": winner.timed.high_ms,
    }


def shown(result: Found) -> Any:
    """A row for each candidate, and what is to be known of them below; for rich."""
    made = report.table(
        f"candidates, at most {result.limit_ms:g} ms",
        left=["candidate", "outcome"],
        right=["p50 ms", "95 % interval", "epochs", "top-1 %", "95 % interval"],
    )
    for point in result.points:
        timed, trained = point.timed, point.trained
        between = _between(timed.low_ms, timed.high_ms, report.significant) if timed else report.UNKNOWN
        top1 = _between(*point.interval, report.number) if point.interval else report.UNKNOWN
        made.add_row(
            report.plain_text(point.candidate.name),
            report.plain_text(point.outcome),
            report.significant(timed.median_ms if timed else None),
            between,
            str(trained.epochs) if trained else report.UNKNOWN,
            report.number(trained.top1_percent if trained else None),
            top1,
        )
    return report.with_notes([made], list(_notes(result)))


def _between(low: float | None, high: float | None, form: Any) -> str:
    return f"{form(low)} to {form(high)}" if low is not None and high is not None else report.UNKNOWN


def _notes(result: Found) -> Iterator[str]:
    yield (
        "p50: of one image at a time, a preprocessed batch to logits; of untrained networks, and of the"
        " winner as it was trained. top-1: on the validation images, by which the winner was chosen; how good"
        " it is, other images tell. Only accuracies after as many epochs can be compared."
    )
    yield report.machine(env.fingerprint())
    yield from (f"warning: {each['text']}" for each in result.warnings)
    if winner := result.winner:
        int8 = winner.int8_top1_percent
        as_int8 = f", {int8:.2f} % as int8" if int8 is not None else ""
        yield (
            f"winner: {winner.candidate.name}, top-1 {winner.trained.top1_percent:.2f} % after"
            f" {epochs_in_words(winner.trained.epochs)} (n={winner.trained.images}){as_int8},"
            f" {winner.timed.words}: {winner.artifact}, {winner.run}"
        )
        yield "to train it again:"
