"""The report of `distill inspect` for a person: tables of what the file says, sentences for what to mind.

In:  the values of export.commands.inspect, the same that --json prints.
Out: text on stdout.
Elsewhere: where the values come from (export.commands.inspect).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..graph.precision import PRECISIONS
from .lineage import DIFFERS, MATCHES

PIPE_WIDTH = 120
"""Columns where the output goes to a file or a pipe."""
SHOWN = 6
"""Entries of a list that are printed; the others are counted."""
OWN_TABLE = ("lineage", "quantization", "verification", "versions", "engine")
"""Entries of the metadata that are not in the first table."""


def show(values: Mapping[str, Any]) -> None:
    """Print everything."""
    screen = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
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
        screen.print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True)


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
        made.add_row(*map(Text, row))
    return made


def _operators(graph: Mapping[str, Any]) -> Table:
    """Nodes by operator and precision; the share of multiply-accumulates where the operator has any."""
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
    colours = {MATCHES: "green", DIFFERS: "bold red"}
    for each in ancestors:
        where = " ".join(
            part for part in (each["looked_at"], f"({each['note']})" if each["note"] else "") if part
        )
        status = Text(each["status"], colours.get(each["status"], ""))
        made.add_row(each["what"], Text(each["name"] or ""), each["sha256"][:12], status, Text(where))
    return made
