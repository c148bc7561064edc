"""A model card: what one artifact is and what was measured of it, for the people it is given to.

In:  an artifact; results that `bench` saved of it.
Out: Markdown. Every number in it was measured: by the export, which the artifact itself records, or in a
     saved result, whose conditions and command are named. What was not measured is named, too.
Elsewhere: rows (bench.results.gathered), robustness (bench.results.robust), what `inspect` shows
     (export.inspection).

The sections follow Mitchell et al., "Model Cards for Model Reporting", 2019 (arXiv:1810.03993), as far as a
program can fill them; intended use and ethical considerations are for people to write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime import UsageError, files
from runtime.artifact import Metadata, check_file, read_map, read_sidecar
from runtime.backends.onnx_file import metadata_props
from runtime.cli.terminal import printable
from runtime.records import Judged, Quantization

from .. import report
from ..table import Row
from . import gathered, robust
from .saved import Saved

MOST_CLASSES = 20
"""Classes that are named; of more the first ones."""
MARKS = str.maketrans({"&": "&amp;", "<": "&lt;", "`": "'", "|": "\\|", "[": "\\[", "]": "\\]"})
TAGS = {"int8": ["int8"], "fp16": ["fp16"], "int8+fp16": ["int8", "fp16"]}
SHOWN_SETTINGS = ("epochs", "batch", "lr", "opt", "kd_loss", "feature_loss", "aa", "mixup", "cutmix", "seed")
"""Settings of the training that are named where they say something."""


@dataclass(frozen=True)
class Subject:
    """The artifact, and what the results say of it."""

    path: Path
    meta: Metadata
    sha256: str
    is_sealed: bool
    rows: Sequence[Row]
    results: Sequence[Saved]


def subject(path: Path, results: Sequence[Saved], mixed: bool) -> Subject:
    """Read the artifact, and look for it in the results. mixed: take those of several machines.

    Raises ArtifactError for a file that is damaged, UsageError for a result that is not about it.
    """
    if not path.is_file():
        raise files.no_artifact(path)
    is_sealed = check_file(path)
    meta = read_sidecar(path) if path.suffix == ".plan" else read_map(metadata_props(path), str(path))
    sha256 = files.sha256(path)
    measured = [each for each in results if each.kind in gathered.KINDS]
    every = gathered.gather(measured, mixed).rows if measured else []
    for each in results:
        if not _is_about(each, sha256, path):
            raise UsageError(
                f"{each.path}: has nothing about {path}, whose SHA-256 begins with {sha256[:12]}. Measure"
                " this file with --save, or leave the result out"
            )
    return Subject(path, meta, sha256, is_sealed, [row for row in every if row.sha256 == sha256], results)


def _is_about(result: Saved, sha256: str, path: Path) -> bool:
    """Whether a result tells of the file: by its hash, and where the result has none by its name."""
    if result.kind == "table":
        parts = result.need("rows", list)
    elif result.kind in ("compare", "robustness"):
        parts = result.need("artifacts", list)
    else:
        parts = [result.values]
    found = [each for each in parts if isinstance(each, Mapping)]
    return any(
        each["sha256"] == sha256 if each.get("sha256") else Path(str(each.get("file"))).name == path.name
        for each in found
    )


def to_markdown(about: Subject) -> str:
    """The card."""
    meta = about.meta
    words = (meta.model or about.path.stem, meta.role, meta.precision)
    parts = [
        _front_matter(meta),
        f"# {' '.join(plain(word) for word in words if word)}",
        _identity(about),
    ]
    for title, section in SECTIONS:
        found = [each for each in section(about) if each]
        parts += [f"## {title}", *found] if found else []
    missing = [f"- {what}: `distill bench {way}`" for what, way in _missing(about)]
    if missing:
        parts += ["## Not measured", "\n".join(missing).format(file=about.path.name.replace("`", "'"))]
    return "\n\n".join([*parts, "## For people to write", PEOPLE]) + "\n"


def _missing(about: Subject) -> Iterator[tuple[str, str]]:
    """What no result tells of the file, and the words that measure it."""
    if all(row.top1_percent is None for row in about.rows):
        yield "accuracy of this file", "accuracy --engine {file} --data DIR --save accuracy.json"
    if all(row.latency_p50_ms is None for row in about.rows):
        yield "speed of this file", "latency --engine {file} --save latency.json"
    if all(each.kind != "robustness" for each in about.results):
        yield "robustness", "robustness {file} --data DIR --save robustness.json"


PEOPLE = """What the network is for and what it must not be used for, whom the images show and who agreed to \
that, what a wrong answer costs, and the license. No program knows these."""


def plain(value: object) -> str:
    """Words of a file in Markdown: one line, no HTML, no links, no code, no new cells."""
    return printable(str(value)).translate(MARKS)


def _front_matter(meta: Metadata) -> str:
    """What model hubs read."""
    tags = ["image-classification", *TAGS.get(meta.precision, [])]
    if isinstance(meta.lineage.get("teacher"), Mapping):
        tags.append("knowledge-distillation")
    lines = ["---", "library_name: large2small", "pipeline_tag: image-classification", "tags:"]
    return "\n".join([*lines, *(f"- {tag}" for tag in tags), "---"])


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    marks = ["| " + " | ".join(line) + " |" for line in (heading, ["---"] * len(heading), *rows)]
    return "\n".join(marks)


def _identity(about: Subject) -> str:
    meta = about.meta
    spec = meta.preprocess
    size = " x ".join(str(side) for side in spec.input_size) if spec else report.UNKNOWN
    rows = [
        ("file", f"{plain(about.path.name)}, {report.size(about.path.stat().st_size)}"),
        ("SHA-256", about.sha256),
        ("seal", "intact" if about.is_sealed else "none: not written by distill export"),
        ("input", f"{size} (channels, height, width)"),
        ("classes", _classes(meta.class_names)),
        ("parameters", report.count(meta.parameters)),
        ("multiply-accumulates", f"{report.count(meta.macs)} for one image"),
    ]
    return _table(("", ""), rows)


def _classes(names: Sequence[str] | None) -> str:
    if not names:
        return "not named in the file"
    more = f" and {len(names) - MOST_CLASSES} more" if len(names) > MOST_CLASSES else ""
    return f"{len(names)}: {', '.join(plain(name) for name in names[:MOST_CLASSES])}{more}"


def _accuracy(about: Subject) -> Iterator[str]:
    rows = [row for row in about.rows if row.top1_percent is not None]
    if rows:
        heading = ("top-1 %", "95 % interval", "top-5 %", "balanced %", "images", "engine")
        yield _table(heading, [_accuracy_cells(row) for row in rows])
    for row in rows:
        yield from _differences(row)
    if judged := about.meta.verification.lowered:
        yield _judged(judged)


def _differences(row: Row) -> Iterator[str]:
    for other in ("teacher", "control"):
        points, low, high = (getattr(row, f"delta_{other}_{name}points") for name in ("", "low_", "high_"))
        if points is not None:
            between = f" ({low:+.2f} to {high:+.2f})" if low is not None and high is not None else ""
            yield f"Against the {other}: {points:+.2f} points of top-1{between}."


def _accuracy_cells(row: Row) -> list[str]:
    return [
        report.number(row.top1_percent),
        _between(row.top1_low_percent, row.top1_high_percent),
        report.number(row.top5_percent),
        report.number(row.balanced_percent),
        str(row.images) if row.images is not None else report.UNKNOWN,
        plain(row.ran_on),
    ]


def _between(low: float | None, high: float | None, form: Callable[[float], str] = report.number) -> str:
    return f"{form(low)} to {form(high)}" if low is not None and high is not None else report.UNKNOWN


def _judged(judged: Judged) -> str:
    """What the export measured of a file in int8 or fp16."""
    lines = [
        f"At export, on {judged.images} images: top-1 {report.number(judged.candidate_top1)} %, the fp32"
        f" student {report.number(judged.reference_top1)} %"
    ]
    if judged.drop_points is not None:
        between = _between(judged.drop_low_points, judged.drop_high_points)
        lines.append(f"a drop of {judged.drop_points:.2f} points (95 % interval for pairs {between})")
    if judged.agreement is not None:
        lines.append(f"the same class for {judged.agreement:.2f} % of the images")
    worst = judged.worst_class
    if worst and worst.class_name is not None and (worst.drop_points or 0) > 0:
        name, points = plain(worst.class_name), report.number(worst.drop_points)
        lines.append(f"most is lost in the class {name}: {points} points on {worst.images} images")
    return "; ".join(lines) + "."


def _speed(about: Subject) -> Iterator[str]:
    rows = [row for row in about.rows if row.latency_p50_ms is not None]
    if rows:
        heading = ("p50 ms", "95 % interval", "p99 ms", "images/s", "end to end p50 ms", "batch", "engine")
        yield _table(heading, [_speed_cells(row) for row in rows])
    timed = [each for each in about.results if each.kind in ("latency", "table")]
    if rows and timed:
        yield "\n".join(f"- {plain(line)}" for line in gathered.machines(timed))
        yield "\n".join(f"- warning: {plain(line)}" for line in _warnings(timed))
    judged = about.meta.verification.lowered
    speed = judged.speed if judged else None
    if speed and speed.ratio and speed.low and speed.high and not speed.warnings:
        yield (
            f"At export the file took {speed.ratio:.3f} ({_between(speed.low, speed.high, _ratio)}) of fp32's"
            f" time, on {plain(speed.engine)} with {speed.threads} threads, batch {speed.batch}."
        )


def _ratio(value: float) -> str:
    return f"{value:.3f}"


def _speed_cells(row: Row) -> list[str]:
    return [
        report.significant(row.latency_p50_ms),
        _between(row.latency_low_ms, row.latency_high_ms, report.significant),
        report.significant(row.latency_p99_ms),
        report.rate(row.throughput_images_per_s),
        report.significant(row.end_to_end_p50_ms),
        str(row.batch) if row.batch is not None else report.UNKNOWN,
        plain(row.ran_on),
    ]


def _warnings(results: Sequence[Saved]) -> list[str]:
    return list(dict.fromkeys(each.text for result in results for each in gathered.warnings_of(result)))


def _quantization(about: Subject) -> Iterator[str]:
    made = about.meta.quantization
    if made is None:
        return
    yield _ranges(made)
    if made.budget and made.budget.int8_macs_percent is not None:
        yield f"{made.budget.int8_macs_percent:.1f} % of the multiply-accumulates are in int8."
    left = made.float_layers or {}
    if left:
        yield "Layers that stayed in float:"
        yield "\n".join(f"- {plain(layer)}: {plain(reason)}" for layer, reason in list(left.items())[:50])


def _ranges(made: Quantization) -> str:
    images = f"{len(made.images)} training images" if made.images else "noise, not images"
    layers = f"{made.int8_layers} layers in int8, " if made.int8_layers is not None else ""
    return f"{layers}placement {plain(made.placement)}; ranges by {plain(made.method)} from {images}."


def _robustness(about: Subject) -> Iterator[str]:
    for each in about.results:
        if each.kind == "robustness":
            rows = [row for row in robust.rows(each) if Path(row[0]).name == printable(about.path.name)]
            yield _table(robust.HEADINGS, [[plain(cell) for cell in row[1:]] for row in rows])
            yield f"{plain(robust.conditions(each))}."


def _training(about: Subject) -> Iterator[str]:
    recipe, lineage = about.meta.training.get("recipe"), about.meta.lineage
    lines = []
    teacher, data = lineage.get("teacher"), lineage.get("data")
    if isinstance(teacher, Mapping):
        lines.append(f"teacher: {plain(teacher.get('model'))}, file {_file(teacher)}")
    if isinstance(data, Mapping):
        for split, name in (("train", "training"), ("val", "validation")):
            if data.get(f"{split}_images") is not None:
                lines.append(
                    f"{name} images: {plain(data[f'{split}_images'])} of {plain(data.get(f'{split}_spec'))},"
                    f" fingerprint {plain(data.get(f'{split}_sha256'))}"
                )
    if isinstance(recipe, Mapping):
        known = [(name, recipe.get(name)) for name in SHOWN_SETTINGS]
        said = [f"{name} {plain(value)}" for name, value in known if value not in (None, "", 0.0, "none")]
        lines.append(f"settings: {', '.join(said)}")
    if isinstance(lineage.get("checkpoint"), Mapping):
        lines.append(f"checkpoint: {_file(lineage['checkpoint'])}")
    yield "\n".join(f"- {line}" for line in lines)


def _file(known: Mapping[str, Any]) -> str:
    name, sha256 = (plain(known.get(key) or report.UNKNOWN) for key in ("file", "sha256"))
    return f"{name}, SHA-256 {sha256}"


def _input(about: Subject) -> Iterator[str]:
    if spec := about.meta.preprocess:
        values = {name: value for name, value in spec.to_dict().items() if name != "input_size"}
        yield "\n".join(f"- {name}: {plain(value)}" for name, value in values.items())


def _commands(about: Subject) -> Iterator[str]:
    yield "\n".join(f"- {plain(each.made)}: {plain(each.command)}" for each in about.results)
    if about.meta.versions:
        yield (
            "Made with "
            + ", ".join(f"{plain(name)} {plain(version)}" for name, version in about.meta.versions.items())
            + "."
        )


SECTIONS: Sequence[tuple[str, Callable[[Subject], Iterator[str]]]] = (
    ("Accuracy", _accuracy),
    ("Speed", _speed),
    ("Robustness", _robustness),
    ("Quantization", _quantization),
    ("Training", _training),
    ("From an image to the input", _input),
    ("How it was measured and made", _commands),
)
"""Title, and what is known."""
