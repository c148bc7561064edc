"""The flags that every int8 export has, with defaults, ranges and reasons; nothing heavy is imported, so that
--help is quick.

In:  flags (runtime.cli.flags).
Out: an `Int8Options`, checked as far as it can be without reading anything.
Elsewhere: what the settings do (export.int8.pipeline), the flags of one command (export.options.onnx,
export.options.trt).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from runtime.cli import settings
from runtime.cli.settings import Flag
from runtime.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Int8Options:
    """Int8: calibration and what stays float. Defaults are what measured best on the networks of
    docs/int8.md.
    """

    calib: Annotated[str | None, Flag("DATA", common=True)] = None
    """Training images for calibration (DIR, npz:FILE, digits); by default those the checkpoint names. random:
    noise, for speed tests only; the artifact is then marked "not for accuracy" and its accuracy is not held
    to --max-drop."""
    calib_size: Annotated[int, Flag("N", common=True, least=1)] = 512
    """Number of calibration images, as many of each class as possible."""
    calib_method: Annotated[Literal["auto", "minmax", "percentile", "entropy", "mse"], Flag(common=True)] = (
        "mse"
    )
    """Choice of a range: minmax keeps every value, percentile cuts the rarest large ones, entropy loses least
    information, mse makes the smallest squared error; auto tries all four and keeps the one with the best
    accuracy on calibration images set aside for it."""
    percentile: Annotated[float, Flag("PERCENT", above=50, most=100)] = 99.999
    """Share of |activation| kept inside the int8 range by the percentile method, percent, above 50 to 100."""
    calib_draws: Annotated[int, Flag("N", least=1)] = 1
    """Number of draws of calibration images to export with, to report the spread of accuracy; the first one
    is written."""
    calib_cache: Annotated[str, Flag("DIR|none")] = ""
    """Folder of calibration statistics kept for the next export of the same weights on the same images, by
    default ~/.cache/large2small/calibration; none: keep nothing."""
    max_drop: Annotated[float, Flag("POINTS", common=True, least=0)] = 1.0
    """Largest loss of top-1 against the fp32 student on --data, percentage points. Layers go back to float
    until it holds; if it cannot, nothing is written."""
    min_agreement: Annotated[float | None, Flag("PERCENT", common=True, least=0, most=100)] = None
    """Least share of the images of --data on which the file has to choose the fp32 student's class,
    percent: a second budget, held as --max-drop is."""
    accuracy_size: Annotated[int, Flag("N", least=1)] = 5000
    """Largest number of labeled images for the check of --max-drop and --min-agreement, the same share of
    each class."""
    exclude: Annotated[tuple[str, ...], Flag("PATTERN", common=True)] = ()
    """Layers to leave float: glob patterns on node names, such as 'layer1.*'."""
    depthwise: Literal["auto", "int8", "fp16", "fp32"] = "auto"
    """Precision of depthwise convolutions: auto is the placement's own choice; fp16 needs --fp16."""
    first_layer: Literal["auto", "int8", "float"] = "auto"
    """Precision of the layer that reads the image: auto is the placement's own choice."""
    last_layer: Literal["auto", "int8", "float"] = "auto"
    """Precision of the layer that makes the logits (same choices as --first-layer)."""
    weight_scales: Literal["max", "mse"] = "max"
    """Scale of each output channel of a weight: its largest value, or the one with the smallest squared
    error."""
    equalize: bool = False
    """Equalize channels across layers before calibration: for networks whose channels differ much in range,
    such as depthwise ones."""
    bias_correction: bool = False
    """Take the mean error that rounded weights make in every channel back out of the bias; reads the images
    twice more."""
    sensitivity: bool = False
    """Measure every layer's damage even when --max-drop holds at once, and write it to NAME.sensitivity.json
    and .md."""

    def __post_init__(self) -> None:
        """Raise UsageError for a value out of its range, of whichever command these are the options."""
        settings.check(self)


def flag(name: str) -> str:
    """A field's flag."""
    return f"--{name.replace('_', '-')}"


def check_int8(options: Int8Options, fp16: bool) -> None:
    """Raise UsageError for settings that cannot be together, before anything is read."""
    if options.depthwise == "fp16" and not fp16:
        raise UsageError("--depthwise fp16 is only read with --fp16. Add --fp16, or give --depthwise fp32")
    if options.calib == "random" and (options.calib_method == "auto" or options.calib_draws > 1):
        raise UsageError(
            "--calib random has no labels to choose a method or compare draws by. Leave --calib-method auto"
            " and --calib-draws out, or give training images: --calib DIR"
        )


BUDGETS = ("max_drop", "min_agreement", "accuracy_size")
"""Settings of the check against the fp32 student, which every precision has."""
CALIBRATED = (
    "calib_method",
    "percentile",
    "calib_draws",
    "exclude",
    "depthwise",
    "first_layer",
    "last_layer",
    "weight_scales",
    "equalize",
    "bias_correction",
)
"""Settings of a calibration, which a checkpoint trained as int8 does not have."""


def refuse_calibrated(options: Int8Options, path: object) -> None:
    """Raise UsageError for a setting that a checkpoint of `distill train --qat` has settled already."""
    defaults = {field.name: field.default for field in fields(Int8Options)}
    for name in CALIBRATED:
        if getattr(options, name) != defaults[name]:
            raise UsageError(
                f"{flag(name)}: {path} holds weights, layers and scales trained as int8, which are exported"
                f" as they are. Leave {flag(name)} out, or export the student it began with"
            )
