"""Which layers pay for int8: the damage each group of layers does, and the fewest groups that must go back to
float.

In:  fp32 model and its Layout; `evaluate(int8 layers)` -> logits of ranking images; `gate(int8 layers)` ->
Accuracy on --data.
Out: an Outcome: the layers that stay int8, the sensitivity table, every try; GateError when the budget cannot
be met.
Elsewhere: building and running the graphs (the caller), accuracy (export.checks.verify), multiply-accumulates
(export.graph.macs).

Ranking images are the selection images, labeled training images that are not calibrated on: were --data
used to rank, the same images would choose the layers and then judge the choice. Groups are ranked by
KL(fp32 || int8), not by points: on some hundred images most groups lose no image or one, while KL still
tells them apart. The budget itself is always accuracy on --data, looked at once per try, so the drop that
is kept is flattered a little by the choice; the Outcome's history says how many tries.
"""

from __future__ import annotations

import contextlib
import glob
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import ModelProto
from rich.console import Group as Stacked
from rich.live import Live
from rich.table import Table
from rich.text import Text  # a plain str would be read as markup, and layer names may hold brackets

from runtime import files
from runtime.cli.terminal import console, hidden
from runtime.errors import GateError

from ..checks.verify import Accuracy, flips, hits, mean_kl
from ..graph import macs
from ..graph.view import View
from .quantize import Layout

Evaluate = Callable[[frozenset[str]], np.ndarray]
"""Names of the layers in int8, never empty, all others float -> logits (N, K)."""
Gate = Callable[[frozenset[str]], Accuracy]
"""The same -> accuracy of that graph against the fp32 student on --data."""

SHOWN = 15
"""Rows of the live table, the worst so far."""


@dataclass(frozen=True)
class Ranking:
    """What groups are ranked by: graphs on the selection images."""

    evaluate: Evaluate
    fp32: np.ndarray
    """(N, K) logits of the float network."""
    labels: np.ndarray
    """(N,)."""


@dataclass(frozen=True)
class Bar:
    """What a graph is held against."""

    first: Accuracy
    """With all groups in int8."""
    max_drop: float
    """Points of top-1 it may lose against the fp32 student."""
    gate: Gate
    min_agreement: float = 0.0
    """Share of images, percent, on which it has to choose the fp32 student's class."""

    def allows(self, found: Accuracy) -> bool:
        """Is the accuracy within both budgets?"""
        return found.drop <= self.max_drop and found.agreement >= self.min_agreement

    def missing(self, found: Accuracy) -> tuple[float, float]:
        """(points of top-1, percent of agreement) that are missing; 0 where a budget holds."""
        return max(found.drop - self.max_drop, 0.0), max(self.min_agreement - found.agreement, 0.0)

    @property
    def allowed(self) -> str:
        """The budgets in words."""
        agreement = f", at least {self.min_agreement:g} % agreement" if self.min_agreement else ""
        return f"{self.max_drop:g}{agreement}"


@dataclass(frozen=True)
class Group:
    """Quantized layers that go to float together."""

    layers: tuple[str, ...]
    """Node names; the first gives the group its name."""
    macs_percent: float
    """Of the multiply-accumulates of all weighted layers of the network."""

    @property
    def name(self) -> str:
        return self.layers[0]


@dataclass(frozen=True)
class Row:
    """A line of the sensitivity table: what int8 in this group alone does."""

    group: Group
    damage_points: float
    """Top-1 lost on the ranking images, points."""
    damage_kl: float
    """Mean KL(fp32 || int8) on them, nats per image."""
    precision: str = "int8"
    """In which it ended."""


@dataclass(frozen=True)
class Try:
    """One graph that was held against the budget."""

    float_groups: int
    drop_points: float
    int8_macs_percent: float
    agreement_percent: float


@dataclass(frozen=True)
class Outcome:
    """What the budget came to."""

    int8_layers: frozenset[str]
    float_layers: tuple[str, ...]
    """Rolled back, the most damaging first."""
    int8_macs_percent: float
    accuracy: Accuracy
    max_drop: float
    history: tuple[Try, ...]
    """In the order tried; the first is the graph with all groups in int8."""
    rows: tuple[Row, ...] = ()
    """Worst first; empty when nothing had to be ranked."""
    ranking_images: int = 0
    min_agreement: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """For the metadata and for sensitivity.json; max_drop_points and min_agreement_percent are null where
        no such budget was set.
        """
        return {
            "max_drop_points": self.max_drop if math.isfinite(self.max_drop) else None,
            "drop_points": self.accuracy.drop,
            "min_agreement_percent": self.min_agreement or None,
            "agreement_percent": self.accuracy.agreement,
            "images": self.accuracy.images,
            "int8_macs_percent": self.int8_macs_percent,
            "float_layers": list(self.float_layers),
            "ranking_images": self.ranking_images,
            "history": [vars(each) for each in self.history],
            "groups": [
                {
                    "layers": list(row.group.layers),
                    "damage_points": row.damage_points,
                    "damage_kl_nats": row.damage_kl,
                    "macs_percent": row.group.macs_percent,
                    "precision": row.precision,
                }
                for row in self.rows
            ],
        }


Show = Callable[[Sequence[Row], str], None]
"""Called after each evaluation with the rows so far and a line about what was found."""


def silent(rows: Sequence[Row], said: str) -> None:
    """Shows nothing."""


def groups(model: ModelProto, layout: Layout) -> list[Group]:
    """Every quantized layer in exactly one group, in the graph's order.

    A layer is its own group: TensorRT fuses it with its bias, its activation and the residual Add that
    follows, but never with a second layer. The exception are two quantized layers that meet in one Add (a
    block's end and its shortcut layer): the one fuses with it, the other is its quantized skip input, and
    with only one of them in float the Q/DQ at the Add would move to the other side instead of going away.
    Layers that merely share a scale (Concat) stay apart: the pair belongs to the layer that reads it.
    """
    view, costs = View(model), macs.count(model)
    together: dict[str, tuple[str, ...]] = {name: (name,) for name in layout.layers}
    for node in model.graph.node:
        meeting = [
            view.producer[tensor].name
            for tensor in node.input
            if tensor in view.producer
            and view.producer[tensor].name in together
            and view.only_reader(tensor) is node
        ]
        if node.op_type == "Add" and len(meeting) == 2:
            deepest_first = sorted(meeting, key=lambda name: -view.depth[view.nodes[name].output[0]])
            together |= dict.fromkeys(meeting, tuple(deepest_first))
    total = sum(costs.values())
    return [
        Group(layers, 100 * sum(costs[name] for name in layers) / total)
        for layers in dict.fromkeys(together.values())
    ]


def all_but(layout: Layout, int8_layers: frozenset[str]) -> tuple[str, ...]:
    """Patterns for `Rules.exclude` that leave exactly these of the planned layers in int8."""
    return tuple(glob.escape(name) for name in layout.layers if name not in int8_layers)


def rank(found: Sequence[Group], ranking: Ranking, show: Show = silent) -> list[Row]:
    """One row per group, worst first: one call of `evaluate` each, with only this group in int8.

    Raises GateError where logits are not finite.
    """
    rows: list[Row] = []
    labels, right = ranking.labels, hits(ranking.fp32, ranking.labels)
    for group in found:
        logits = ranking.evaluate(frozenset(group.layers))
        if not np.isfinite(logits).all():
            raise GateError(
                f"logits are not finite with only {group.name} in int8. "
                f"Leave it out: --exclude '{glob.escape(group.name)}'"
            )
        rows.append(Row(group, flips(right, hits(logits, labels)).drop, mean_kl(ranking.fp32, logits)))
        show(rows, f"sensitivity {len(rows)}/{len(found)}: {described(rows[-1])}")
    return sorted(rows, key=lambda row: (-row.damage_kl, -row.damage_points))


def described(row: Row) -> str:
    """One row as a line."""
    return (
        f"{', '.join(row.group.layers)}  {row.damage_points:.2f} points, KL {row.damage_kl:.3g} nats, "
        f"{row.group.macs_percent:.1f} % of MACs"
    )


def fit(
    found: Sequence[Group],
    bar: Bar,
    ranking: Ranking,
    show: Show = silent,
    always_rank: bool = False,
) -> Outcome:
    """Keep as many groups in int8 as the bar allows.

    When its first graph holds, nothing is ranked (unless asked) and its `gate` is not called. Otherwise
    `evaluate` is called once per group, and `gate` as often as `roll_back` says. Raises GateError when the
    budget cannot be met.
    """
    tried, count, rows = {0: bar.first}, 0, []
    missed = not bar.allows(bar.first)
    if missed or always_rank:
        rows = rank(found, ranking, show)
    if missed:
        count = roll_back(rows, tried, bar, show)
    return outcome(found, rows, count, tried, bar, len(ranking.labels) if rows else 0)


def roll_back(rows: Sequence[Row], tried: dict[int, Accuracy], bar: Bar, show: Show = silent) -> int:
    """How many of the worst groups must be float; each accuracy found on the way is added to `tried` {count:
    accuracy}.

    First 1, 2, 4, ... groups, at last all but one, until the bar is held; then halving between the last count
    that was too few and the first that was enough. At most 2 log2(n) + 1 calls of `gate` for n groups. The
    drop need not fall with every group: the count returned was measured and holds. Raises
    GateError when even one group in int8 is too much.
    """

    def holds(count: int) -> bool:
        tried[count] = bar.gate(int8_layers(rows[count:]))
        show(
            rows,
            f"budget: {count} of {len(rows)} groups float, drop {tried[count].drop:.2f} points,"
            f" {tried[count].agreement:.2f} % agreement (allowed {bar.allowed})",
        )
        return bar.allows(tried[count])

    too_few, enough = 0, None
    for count in doubling(len(rows) - 1):
        if holds(count):
            enough = count
            break
        too_few = count
    if enough is None:
        raise GateError(unmet(rows, tried, bar))
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if holds(middle):
            enough = middle
        else:
            too_few = middle
    return enough


def doubling(most: int) -> list[int]:
    """1, 2, 4, ... and at last `most` itself; nothing for 0."""
    return [2**i for i in range(most.bit_length()) if 2**i < most] + [most] * (most > 0)


def int8_layers(rows: Sequence[Row]) -> frozenset[str]:
    """All layers of these rows."""
    return frozenset(name for row in rows for name in row.group.layers)


def unmet(rows: Sequence[Row], tried: dict[int, Accuracy], bar: Bar) -> str:
    """The line for a budget that no try held: how near it came, what hurts, what to do."""
    best = min(tried, key=lambda count: (*bar.missing(tried[count]), tried[count].drop, count))
    found, worst = tried[best], ", ".join(row.group.name for row in rows[:3])
    same = f", {found.agreement:.2f} % of the answers fp32's" if bar.min_agreement else ""
    asked = f" and {bar.min_agreement:g} % agreement asked for" if bar.min_agreement else ""
    flags = "--max-drop" + (" or a lower --min-agreement" if bar.min_agreement else "")
    return (
        f"int8 top-1 is {found.candidate_top1:.2f} % at best, {found.drop:.2f} points below fp32's"
        f" {found.reference_top1:.2f} % on {found.images} images (one image is"
        f" {100 / found.images:.2g} points){same}, with {best} of {len(rows)} groups of layers float; at"
        f" most {bar.max_drop:g} allowed{asked}, nothing written. Most damage: {worst}. Try another"
        f" --calib-method, a larger --calib-size, distill train --qat, or allow more with {flags}"
    )


def outcome(
    found: Sequence[Group],
    rows: Sequence[Row],
    count: int,
    tried: dict[int, Accuracy],
    bar: Bar,
    ranking_images: int,
) -> Outcome:
    """The result with the `count` worst groups float."""
    shares = [row.group.macs_percent for row in rows] or [sum(group.macs_percent for group in found)]
    kept = int8_layers(rows[count:]) if rows else frozenset(name for group in found for name in group.layers)

    def percent(floats: int) -> float:
        return min(math.fsum(shares[floats:]), 100.0)  # no rounding makes it more than all

    return Outcome(
        kept,
        tuple(name for row in rows[:count] for name in row.group.layers),
        percent(count),
        tried[count],
        bar.max_drop,
        tuple(
            Try(each, accuracy.drop, percent(each), accuracy.agreement) for each, accuracy in tried.items()
        ),
        tuple(replace(row, precision="float") if index < count else row for index, row in enumerate(rows)),
        ranking_images,
        bar.min_agreement,
    )


def to_json(result: Outcome) -> str:
    """The content of sensitivity.json; units are in the keys."""
    return files.json_text(result.to_dict(), indent=1) + "\n"


def to_markdown(result: Outcome) -> str:
    """The content of sensitivity.md: what was kept, the table worst first, every try."""
    lines = [
        (
            f"INT8 keeps {result.int8_macs_percent:.1f} % of the multiply-accumulates; top-1 drop"
            f" {result.accuracy.drop:.2f} points on {result.accuracy.images} images (allowed"
            f" {result.max_drop:g}), {result.accuracy.agreement:.2f} % of the answers fp32's"
            + (f" (at least {result.min_agreement:g})." if result.min_agreement else ".")
        ),
        "",
        f"Damage of each group of layers alone in int8, on {result.ranking_images} labeled images:",
        "",
        "| layers | top-1 lost, points | KL to fp32, nats | share of MACs, % | precision |",
        "|---|---:|---:|---:|---|",
        *(
            f"| {', '.join(row.group.layers)} | {row.damage_points:.2f} | {row.damage_kl:.3g} |"
            f" {row.group.macs_percent:.1f} | {row.precision} |"
            for row in result.rows
        ),
        "",
        "Graphs held against the budget:",
        "",
        "| groups in float | drop, points | agreement, % | MACs in int8, % |",
        "|---:|---:|---:|---:|",
        *(
            f"| {each.float_groups} | {each.drop_points:.2f} | {each.agreement_percent:.2f} |"
            f" {each.int8_macs_percent:.1f} |"
            for each in result.history
        ),
    ]
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def live() -> Iterator[Show]:
    """A `show` on stderr: a table that grows, worst first, on a terminal; a line per evaluation elsewhere."""
    screen = console()
    if not screen.is_terminal:
        yield lambda rows, said: print(said, file=sys.stderr, flush=True)
        return
    with hidden(), Live(console=screen) as display:
        yield lambda rows, said: display.update(Stacked(_table(rows), Text(said)))


def _table(rows: Sequence[Row]) -> Table:
    table = Table("layers", "top-1 lost, points", "KL to fp32, nats", "MACs, %")
    for row in sorted(rows, key=lambda row: -row.damage_kl)[:SHOWN]:
        table.add_row(
            Text(", ".join(row.group.layers)),
            f"{row.damage_points:.2f}",
            f"{row.damage_kl:.3g}",
            f"{row.group.macs_percent:.1f}",
        )
    return table
