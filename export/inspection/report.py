"""The report of `distill inspect` for a person: tables of what the file says, sentences for what to mind.

In:  the values of export.commands.inspect, the same that --json prints.
Out: text on stdout.
Elsewhere: where the values come from (export.commands.inspect).
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from runtime.cli import terminal
from runtime.cli.terminal import printable

from .lineage import ABSENT, DIFFERS, MATCHES

PIPE_WIDTH = 120
"""Columns where the output goes to a file or a pipe."""
SHOWN = 6
"""Entries of a list that are printed; the others are counted."""
LONGEST = 10**6
"""Columns of a line that goes to a file or a pipe: it is not broken."""
FILES = ("onnx", "checkpoint", "student", "teacher")
"""Ancestors that are files, named beside what they are."""
COUNTED = {"parameters": "parameters", "macs": "MACs", "tensors": "tensors"}
"""Numbers of the metadata that are beside the size."""
OWN_TABLE = ("lineage", "quantization", "verification", "versions", "engine")
"""Entries of the metadata that are not in the first table."""


def show(values: Mapping[str, Any]) -> None:
    """Print everything."""
    screen = terminal.screen(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    about = values["metadata"]
    screen.print(_pairs(values["file"], _head(values)))
    for name in ("engine", "quantization", "verification"):
        if about.get(name):
            screen.print(_pairs(name, list(flat(about[name]))))
    if values["graph"]:
        screen.print(_operators(values["graph"]))
    if values["lineage"]:
        screen.print(_lineage(values["lineage"]))
    for warning in values["warnings"]:
        screen.print(Text(f"warning: {printable(warning)}", style="yellow"), soft_wrap=True)


def show_main(values: Mapping[str, Any]) -> None:
    """Print the main lines: what it is, what it takes and gives, how good it is, whether it is whole."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else LONGEST
    for name, words in main_lines(values):
        line = f"{name:<10} {printable(words)}"
        print(textwrap.fill(line, width, subsequent_indent=" " * 11, break_on_hyphens=False))
    for warning in values["warnings"]:
        print(f"warning: {printable(warning)}")
    print(f"everything it says: distill inspect {printable(values['file'])} --all")


def main_lines(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, words) of the lines that hold something."""
    about = values["metadata"]
    words = [
        ("file", values["file"]),
        (
            "kind",
            _joined(", ", values["kind"], about.get("role"), about.get("model"), about.get("precision")),
        ),
        ("size", _sizes(values)),
        ("input", _input(about.get("preprocess") or {})),
        ("classes", _classes(about.get("class_names") or [])),
        ("accuracy", _accuracy(about)),
        ("int8", _joined(", ", *_int8(about, values["graph"]))),
        ("built", _built(about.get("engine") or {})),
        ("trained on", _data(about)),
        ("SHA-256", values["sha256"]),
        ("seal", values["seal"] or ""),
        (
            "made from",
            _joined("; ", *(_ancestors(values["lineage"], now) for now in (MATCHES, DIFFERS, ABSENT))),
        ),
        ("made with", _versions(about.get("versions") or (about.get("lineage") or {}).get("versions") or {})),
    ]
    return [line for line in words if line[1]]


def _joined(between: str, *parts: Any) -> str:
    return between.join(str(part) for part in parts if part)


def _sizes(values: Mapping[str, Any]) -> str:
    about = values["metadata"]
    counted = [
        f"{about[name]:,} {word}" for name, word in COUNTED.items() if isinstance(about.get(name), int)
    ]
    return _joined(", ", f"{values['size_bytes']:,} bytes", *counted)


def _input(preprocess: Mapping[str, Any]) -> str:
    size = preprocess.get("input_size") or ()
    keys = ("crop_pct", "crop_mode", "interpolation", "mean", "std", "exif")
    how = [f"{key} {text(preprocess[key])}" for key in keys if preprocess.get(key) is not None]
    return _joined("; ", " x ".join(map(str, size)), *how) if size else ""


def _classes(names: list[str]) -> str:
    return (
        f"{len(names)}: {', '.join(map(str, names[:SHOWN]))}{', ...' * (len(names) > SHOWN)}" if names else ""
    )


def _accuracy(about: Mapping[str, Any]) -> str:
    """What was measured when it was written: of an artifact against its fp32 student, of a checkpoint on its
    validation images.
    """
    checks = about.get("verification") or {}
    found = []
    for name, reference in (("lowered", "fp32"), ("engine", "its ONNX file")):
        check = checks.get(name) or {}
        top1, drop = check.get("candidate_top1", check.get("top1")), check.get("drop")
        if top1 is not None:
            beside = f", {drop:.2f} points below fp32" if drop is not None else ""
            found.append(f"top-1 {top1:.2f} %{beside} (n={check.get('images')})")
        elif check.get("agreement") is not None:
            found.append(
                f"the same class as {reference} on {check['agreement']:.2f} % (n={check.get('images')})"
            )
    parity = checks.get("parity") or {}
    if not found and parity.get("top1_agreement") is not None:
        found.append(
            f"the same class as torch on {parity['top1_agreement']:.2f} % (n={parity.get('images')})"
        )
    metrics = about.get("metrics") or (about.get("training") or {}).get("metrics") or {}
    if isinstance(metrics.get("top1"), (int, float)):
        found.append(f"{'in training ' * bool(found)}top-1 {metrics['top1']:.2f} %")
    return "; ".join(found)


def _int8(about: Mapping[str, Any], graph: Mapping[str, Any] | None) -> list[str]:
    how = about.get("quantization") or {}
    shares = (graph or {}).get("macs_percent") or {}
    share = f"{shares['int8']:.1f} % of the MACs" if shares.get("int8") else ""
    names = ("method", "placement")
    layers = f"{len(how['float_layers'])} layers in float" if how.get("float_layers") else ""
    return [share, *(f"{name} {how[name]}" for name in names if how.get(name)), layers]


def _built(engine: Mapping[str, Any]) -> str:
    names = ("flavor", "version", "gpu", "platform")
    return _joined(", ", *(engine.get(name) for name in names))


def _data(about: Mapping[str, Any]) -> str:
    lineage = about.get("lineage") or {}
    data = lineage.get("data") if isinstance(lineage, Mapping) else None
    if not isinstance(data, Mapping) or not data.get("train_spec"):
        return ""
    count = f" ({data['train_images']} images)" if data.get("train_images") else ""
    return f"{data['train_spec']}{count}"


def _ancestors(lineage: list[Mapping[str, Any]], status: str) -> str:
    names = [
        _joined(
            " ", each["what"], PurePath(each["name"]).name if each["what"] in FILES and each["name"] else ""
        )
        for each in lineage
        if each["status"] == status
    ]
    return f"{status}: {', '.join(names)}" if names else ""


def _versions(versions: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, text) of every entry that holds something; whatever a later version adds is shown as
    well.
    """
    for name, value in values.items():
        if isinstance(value, Mapping) and value and not _is_short(value):
            yield from flat(value, f"{prefix}{name}.")
        elif value is not None and value not in ([], {}, ()):
            yield f"{prefix}{name}", text(value)


def text(value: Any) -> str:
    """A value on one line; of a long list the first entries and the count."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {text(each)}" for name, each in value.items())
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(each, (list, tuple)) for each in value):
            return f"{len(value)}"
        more = f", ... ({len(value)})" if len(value) > SHOWN else ""
        return ", ".join(text(each) for each in value[:SHOWN]) + more
    return str(value)


def _is_short(value: Mapping[str, Any]) -> bool:
    """Does it fit into one line?"""
    return (
        len(value) <= SHOWN
        and all(isinstance(each, (str, int, float)) for each in value.values())
        and len(text(value)) <= 90
    )


def _head(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    about, graph = values["metadata"], values["graph"]
    rows = [
        ("kind", values["kind"]),
        ("SHA-256", values["sha256"]),
        ("size", f"{values['size_bytes']:,} bytes"),
        ("seal", values["seal"] or ""),
    ]
    if graph:
        rows += [("opset", text(graph["opset"])), ("producer", graph["producer"] or "")]
        rows += [
            (kind[:-1], f"{each['name']} {each['type']} ({', '.join(map(str, each['shape']))})")
            for kind in ("inputs", "outputs")
            for each in graph[kind]
        ]
    names = about.get("class_names")
    if names:
        rows.append(
            ("classes", f"{len(names)}: {text(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}")
        )
    for name in ("parameters", "macs"):
        if about.get(name) is not None:
            rows.append((name, f"{about[name]:,}"))
    shown = {"class_names", "parameters", "macs", *OWN_TABLE}
    rows += flat({name: value for name, value in about.items() if name not in shown})
    return [row for row in [*rows, ("versions", text(about.get("versions") or {}))] if row[1]]


def _table(title: str, *columns: str) -> Table:
    made = Table(
        *columns,
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for column in made.columns:
        column.overflow = "fold"
    return made


def _pairs(title: str, rows: list[tuple[str, str]]) -> Table:
    made = _table(title, "", "")
    made.show_header = False
    for row in rows:
        made.add_row(*(Text(printable(cell)) for cell in row))
    return made


def _operators(graph: Mapping[str, Any]) -> Table:
    """Nodes by operator and precision; the share of multiply-accumulates where the operator has any."""
    from ..graph.precision import PRECISIONS  # a graph was read, so the package onnx is there

    shares = graph["macs_percent"]
    total = sum(sum((row["macs"] or {}).values()) for row in graph["operators"])
    made = _table("precision", "operator", *PRECISIONS, "share of MACs")
    for column in made.columns[1:]:
        column.justify = "right"
    for row in graph["operators"]:
        macs = sum((row["macs"] or {}).values())
        made.add_row(
            row["operator"],
            *(str(row["count"].get(name) or "") for name in PRECISIONS),
            f"{100 * macs / total:.1f} %" if shares and macs else "",
        )
    if shares:
        made.add_section()
        made.add_row(
            "MACs", *(f"{shares[name]:.1f} %" if shares[name] else "" for name in PRECISIONS), "100 %"
        )
    pairs = ", ".join(f"{count} {name}" for name, count in graph["conversions"].items() if count)
    if pairs:
        made.caption = (
            f"{pairs}. Counted as the graph has them: engines fuse activations and additions into the int8"
            " layers before them."
        )
        made.caption_justify = "left"
    return made


def _lineage(ancestors: list[Mapping[str, Any]]) -> Table:
    made = _table("lineage", "made from", "called", "SHA-256", "now", "looked at")
    colors = {MATCHES: "green", DIFFERS: "bold red"}
    for each in ancestors:
        where = " ".join(
            part for part in (each["looked_at"], f"({each['note']})" if each["note"] else "") if part
        )
        status = Text(each["status"], colors.get(each["status"], ""))
        made.add_row(each["what"], Text(each["name"] or ""), each["sha256"][:12], status, Text(where))
    return made
