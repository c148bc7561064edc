"""`distill erf`: the effective receptive fields of several networks on the same images.

In:  checkpoints, a data spec.
Out: a table; in --output erf.png (all networks side by side), NAME.png for each, erf.json, erf.npz (score
matrices).
Elsewhere: the measure itself (distill.erf.field), drawing (distill.erf.heatmap).
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import timm
import torch

from runtime import files
from runtime.cli.terminal import progress_bar, screen
from runtime.errors import ArtifactError, GateError, UsageError
from runtime.images import ImageSet

from .. import checkpoint as checkpoints
from .. import models
from ..checkpoint import Checkpoint
from ..data import open_data
from ..evaluate import pick_device
from ..processes import together
from ..recipe import key_values
from . import field, heatmap
from .options import ErfOptions

DECADES = 4
"""The scale-free heat map shows scores from the largest down to 10^-DECADES of it."""


@dataclass(frozen=True)
class Measured:
    """One network of the command."""

    label: str
    name: str
    """Of its PNG and of its array in erf.npz."""
    checkpoint: Checkpoint
    result: field.Erf

    def to_dict(self) -> dict[str, Any]:
        """Its entry in erf.json and result.json."""
        found = self.checkpoint
        about = {
            "label": self.label,
            "name": self.name,
            "file": found.path,
            "role": found.role,
            "model": found.model,
        }
        return about | self.result.to_dict()


def measure_and_write(options: ErfOptions) -> tuple[list[Measured], dict[str, Any]]:
    """(the networks, what erf.json holds), after all files are written."""
    unsaid = ("auto",) * len(options.checkpoints)
    found = [
        checkpoints.load_any(
            path,
            None if name == "auto" else name,
            key_values(options.model_args),
            entry="" if entry == "auto" else entry,
        )
        for path, name, entry in zip(
            options.checkpoints, options.model or unsaid, options.checkpoint_key or unsaid, strict=True
        )
    ]
    labels = options.labels or default_labels(found)
    file_names = unique_names(labels)
    for name in ("erf.json", "erf.npz", "erf.png", *(f"{name}.png" for name in file_names)):
        files.refuse_existing(options.output / name, options.overwrite)
    spec = options.data or found[0].recorded_data("val", "--data")
    images = open_data(spec, options.split, options.num_classes)
    chosen = field.choose(images, options.num_images, options.seed)
    device = pick_device(options.device)
    measured = [
        Measured(label, name, each, _measure(each, images, chosen, options, device))
        for label, name, each in zip(labels, file_names, found, strict=True)
    ]
    report = {
        "data": spec,
        "split": options.split,
        "seed": options.seed,
        "images": _item_names(images, chosen),
        "networks": [each.to_dict() for each in measured],
    }
    with together.agreed():
        if together.is_main():
            write_files(options.output, measured, report)
    return measured, report


def _measure(
    found: Checkpoint, images: ImageSet, chosen: Sequence[int], options: ErfOptions, device: torch.device
) -> field.Erf:
    classes = found.num_classes or _classes_of(found) or options.num_classes or len(images.class_names)
    model = models.build(found.model, classes, found.model_args)
    checkpoints.require_finite(found.state_dict, str(found.path or found.model))
    checkpoints.load_weights(model, found)
    spec = field.resized(found.preprocess, *input_size(found, options.img_size, options.input_size))
    with progress_bar(f"measuring {found.model}", len(chosen)) as advance:
        batches = field.read(images, chosen, spec, options.batch, options.skip_bad_images)
        try:
            return field.measure(model.to(device), batches, device, after_batch=advance)
        except GateError as error:
            raise ArtifactError(f"{found.path}: {error}") from error


def _classes_of(found: Checkpoint) -> int:
    """How many classes the classifier of a foreign file has; 0 where its weight is not found by timm's name
    for it.
    """
    classifier = getattr(timm.get_pretrained_cfg(found.model), "classifier", None)
    weight = found.state_dict.get(f"{classifier}.weight")
    return 0 if weight is None else weight.shape[0]


def input_size(found: Checkpoint, img_size: int, asked: Sequence[int] = ()) -> tuple[int, int]:
    """(height, width) to measure at: `asked`, or img_size squares, or with neither the network's own.

    Raises UsageError when the network was built for another size and cannot take this one.
    """
    own = found.model_args.get("img_size", found.preprocess.input_size[1:])
    own = (own, own) if isinstance(own, int) else tuple(own)
    size = own
    if img_size or asked:
        size = models.sized(found.preprocess, img_size, asked).input_size[1:]
    fixed = models.size_argument(found.model, size) and not found.model_args.get("dynamic_img_size")
    if fixed and size != own:
        raise UsageError(
            f"{found.path}: {found.model} is built for {own[0]} x {own[1]} pixels and takes no others. "
            "Leave --img-size out, or measure it apart"
        )
    return size


def default_labels(found: Sequence[Checkpoint]) -> list[str]:
    """The role of our checkpoints, the file's name of others; the folder in front where two would have the
    same.
    """
    plain = [each.role if each.class_names is not None else Path(_file(each)).stem for each in found]
    return [
        f"{Path(_file(each)).absolute().parent.name} {label}" if plain.count(label) > 1 else label
        for each, label in zip(found, plain, strict=True)
    ]


def unique_names(labels: Sequence[str]) -> list[str]:
    """A file name for every label: letters, digits, dots and dashes, a number where two would be the same."""
    names: list[str] = []
    for label in labels:
        plain = re.sub(r"[^\w.-]+", "_", label).strip("._") or "network"
        numbered = (plain if not turn else f"{plain}_{turn + 1}" for turn in range(len(labels) + 2))
        names.append(
            next(name for name in numbered if name not in names and name != "erf")
        )  # erf.png is the whole figure
    return names


def write_files(folder: Path, measured: Sequence[Measured], report: dict[str, Any]) -> None:
    """erf.png, NAME.png of every network, erf.npz with the score matrices, erf.json; each whole or not at
    all.
    """
    columns = [column(each) for each in measured]
    for name, part in [
        ("erf", columns),
        *((each.name, [one]) for each, one in zip(measured, columns, strict=True)),
    ]:
        content = io.BytesIO()
        heatmap.figure(part).save(content, format="png")
        files.write_bytes(folder / f"{name}.png", content.getvalue())
    content = io.BytesIO()
    scores: dict[str, Any] = {each.name: each.result.score for each in measured}
    np.savez_compressed(content, **scores)
    files.write_bytes(folder / "erf.npz", content.getvalue())
    files.write_text(folder / "erf.json", files.json_text(report, indent=2) + "\n")


def column(each: Measured) -> heatmap.Column:
    """The network's two heat maps: in the colors of the papers, and by decades below the largest score."""
    score = each.result.score.astype(np.float64)
    logs = np.log10(score + 1)
    paper = logs / (logs.max() or 1)
    decades = 1 + np.log10(np.maximum(score / (score.max() or 1), 10.0**-DECADES)) / DECADES

    def outlines(found: field.Squares) -> list[heatmap.Square]:
        return [
            heatmap.Square(side, f"{_percent(share)}: {_shown(side, ratio)}")
            for share, side, ratio in zip(each.result.thresholds, found.sides, found.ratios, strict=True)
        ]

    height, width = score.shape
    about = (
        f"{each.checkpoint.model}, {Path(_file(each.checkpoint)).name}, {height} x {width},"
        f" n={each.result.images}"
    )
    ticks = [(1 - i / DECADES, "largest" if not i else f"1e-{i}") for i in range(DECADES + 1)]
    return heatmap.Column(
        each.label,
        about,
        [
            heatmap.Panel(
                "reference: log10(score + 1), largest = 1",
                paper,
                outlines(each.result.reference),
                [(0, "0"), (0.5, "0.5"), (1, "1")],
            ),
            heatmap.Panel(
                "scale-free: score / largest score", decades, outlines(each.result.scale_free), ticks
            ),
        ],
    )


def _item_names(images: ImageSet, chosen: Sequence[int]) -> list[str]:
    """Names that begin at the data set's own folder, not at the root of this disk."""
    folder = PurePath(images.name).name
    return [folder + images.item_name(index).removeprefix(images.name) for index in chosen]


def _file(found: Checkpoint) -> str:
    return str(found.path)


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _shown(side: int | None, ratio: float | None) -> str:
    return "not reached" if side is None or ratio is None else f"{100 * ratio:.1f} % ({side} px)"


def print_table(measured: Sequence[Measured], folder: Path, about: str) -> None:
    """Two rows for each network, notes below. about: which images were used."""
    from rich import box
    from rich.table import Table

    table = Table(
        title="effective receptive field: area of the centered square that holds this share of the score",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("network", overflow="fold")
    table.add_column("input", no_wrap=True)
    table.add_column("measure", no_wrap=True)
    for share in measured[0].result.thresholds:
        table.add_column(_percent(share), justify="right", no_wrap=True)
    for each in measured:
        size = " x ".join(map(str, each.result.score.shape))
        for row, (name, found) in enumerate(
            (("reference", each.result.reference), ("scale-free", each.result.scale_free))
        ):
            table.add_row(
                each.label if not row else each.checkpoint.model,
                size if not row else "",
                name,
                *(_shown(*pair) for pair in zip(found.sides, found.ratios, strict=True)),
            )
    console = screen(width=None if sys.stdout.isatty() else 100)
    console.print(table)
    for each in measured:
        for note in each.checkpoint.notes:
            print(f"{each.checkpoint.path}: {note}")
        if each.result.skipped:
            print(f"{each.label}: left out {each.result.skipped} images whose gradient is not finite")
    if len({each.result.score.shape for each in measured}) > 1:
        print(
            "input sizes differ, so shares of the area do not compare; give --img-size to measure at one size"
        )
    if any(None in each.result.reference.sides and each.result.score.any() for each in measured):
        print(
            "not reached: the receptive field fills the image. Give a larger --img-size to see where it ends"
        )
    print(f"measured on {about}; figures and numbers are in {folder}")
