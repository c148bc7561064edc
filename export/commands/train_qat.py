"""The command `distill train --qat`: from flags and a trained student to a run folder with its int8 graph
trained.

In:  argv: --resume with a checkpoint to start from, or with a run of this kind to continue.
Out: a run folder as `distill train` makes it; args.yaml also says `qat: true` and how the graph is quantized.
Elsewhere: the training (export.qat.trainer, distill.training.trainer), the rest of the command
(distill.run.job).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from distill import losses, recipe
from distill.commands import train
from distill.processes.world import require_one
from distill.recipe import Recipe
from distill.run.folder import choose_folder
from distill.run.options import TrainOptions, given_data, settled, value_of, without
from runtime import files
from runtime.cli import flags, help
from runtime.cli.settings import Flag
from runtime.cli.terminal import loading
from runtime.errors import UsageError
from runtime.recorded import found_again

if TYPE_CHECKING:
    from distill.run.result import RunResult

SUMMARY = "train a student as the int8 graph that export will write"
DESCRIPTION = """Takes the student's own recipe from its checkpoint, with few epochs at a low learning rate;
flags override.

examples:
  distill train --qat --teacher-ckpt teacher.pth --resume runs/student/best.pth
  distill train --qat --resume runs/student/best.pth --data DIR --placement cpu
  distill train --qat --student resnet20 --resume resnet20.th --teacher resnet56 --teacher-ckpt t.th
  distill train --resume runs/student-qat   (continues an interrupted run)
  distill export onnx --int8 runs/student-qat/best.pth"""

FINE_TUNING: dict[str, Any] = {
    "epochs": 3,
    "opt": "adamw",
    "lr": 5e-5,
    "weight_decay": 0.0,
    "sched": "cosine",
    "warmup_epochs": 0.0,
    "min_lr": 0.0,
    "layer_decay": None,
    "clip_grad": None,
}
"""What takes the place of the student's own optimizer and schedule. Adam's steps do not depend on the size of
gradients, which differs by orders of magnitude between the weights of a student with outlier channels (SGD at
1e-3 diverged on one)."""
OFF: dict[str, Any] = {
    "amp": False,
    "compile": False,
    "drop": 0.0,
    "drop_path": 0.0,
    "sparsity": 0.0,
    "model_ema": False,
    "freeze": "",
    "freeze_norms": False,
}
"""Settings of the student's training that do not apply to its graph."""


@dataclass(frozen=True)
class QatOptions(TrainOptions):
    """Int8: how the trained graph is quantized."""

    qat: Annotated[bool, Flag(common=True)] = True
    """Train the int8 graph of the student that --resume names (a checkpoint; or a run folder of this kind to
    continue)."""
    placement: Annotated[Literal["tensorrt", "cpu"], Flag(common=True)] = "tensorrt"
    """Engine that Q/DQ nodes are placed for: NVIDIA's, or integer CPU kernels; export with the same."""
    calib_size: Annotated[int, Flag("N", common=True, least=1)] = 512
    """Training images that the first ranges come from, as many of each class as possible."""
    calib_method: Literal["minmax", "percentile", "entropy", "mse"] = "mse"
    """Choice of the first ranges, which training changes."""
    percentile: Annotated[float, Flag("PERCENT", above=50, most=100)] = 99.999
    """Share of |activation| kept inside the first range, percent, above 50 to 100."""
    exclude: Annotated[tuple[str, ...], Flag("PATTERN")] = ()
    """Layers to leave float: glob patterns on node names, such as 'layer1.*'."""
    depthwise: Literal["auto", "int8", "float"] = "auto"
    """Precision of depthwise convolutions: auto is the placement's own choice."""
    first_layer: Literal["auto", "int8", "float"] = "auto"
    """Precision of the layer that reads the image: auto is the placement's own choice."""
    last_layer: Literal["auto", "int8", "float"] = "auto"
    """Precision of the layer that makes the logits (same choices as --first-layer)."""
    opset: Annotated[int, Flag("N", least=19, most=21)] = 19
    """ONNX operator set of the graph; export with the same."""
    train_size: Annotated[int, Flag("N", common=True, least=0)] = 0
    """Number of training images to fine-tune on, as many of each class as possible; 0: all."""

    def beside_recipe(self) -> dict[str, Any]:
        own = {field.name for field in fields(QatOptions)} - {field.name for field in fields(TrainOptions)}
        return super().beside_recipe() | {name: getattr(self, name) for name in sorted(own)}


Options = QatOptions


def run(options: QatOptions) -> None:
    """Train, print what it mended."""
    train.print_result(options, do(options))


def do(options: QatOptions) -> RunResult:
    """Train the graph."""
    require_possible(options)
    require_one("train --qat")
    folder = choose_folder(options)
    with loading("loading torch"):
        from distill.run import job

        from ..int8.rules import rules_of
        from ..qat.trained import QatSettings
        from ..qat.trainer import QatTrainer

    settings = QatSettings(
        options.placement,
        rules_of(options),
        options.opset,
        options.calib_size,
        options.calib_method,
        options.percentile,
    )
    return job.run(options, folder, partial(QatTrainer, settings, options.train_size, bool(options.resume)))


def parse(argv: Sequence[str], prog: str = "distill train --qat") -> QatOptions:
    """Flags over the recipe of the student that --resume names; a run of this kind is continued with its
    args.yaml.
    """
    flags.check_flags(QatOptions, argv, prog)
    named = value_of(settled(argv), "--resume")
    if any(word in help.HELP_FLAGS for word in argv) or is_run(named):
        return train.parse_over(QatOptions(), argv, prog, sys.modules[__name__])
    if not named:
        raise UsageError("--qat fine-tunes a trained student. Name it: --resume runs/student/best.pth")
    start = Path(named) / "best.pth" if Path(named).is_dir() else Path(named)
    words = without(argv, "--resume")
    options = train.parse_over(options_for(start, argv), words, prog, sys.modules[__name__])
    if options.student_ckpt != str(start):
        raise UsageError(
            f"--student-ckpt {options.student_ckpt}: with --qat the student is what --resume names ({start})"
        )
    return replace(options, output=options.output or default_output(start, options.student))


def is_run(named: str) -> bool:
    """Is this a run folder of quantization-aware training, or its last.pth?"""
    folder = Path(named).parent if Path(named).name == "last.pth" else Path(named)
    return (
        bool(named)
        and (folder / "args.yaml").is_file()
        and recipe.read(str(folder / "args.yaml")).get("qat") is True
    )


def options_for(start: Path, argv: Sequence[str]) -> QatOptions:
    """The recipe of the checkpoint's own training, as far as it suits fine-tuning."""
    with loading("loading torch"):
        from distill import checkpoint as checkpoints

    found = checkpoints.load_any(
        start,
        value_of(argv, "--student") or None,
        flag="--student",
        entry=value_of(argv, "--checkpoint-key"),
    )
    if found.quantized is not None:
        raise UsageError(
            f"{start}: was trained with --qat already. Continue its run with --resume RUN, "
            "or start from the fp32 student's own best.pth"
        )
    known = {field.name for field in fields(Recipe)}
    values = {key: value for key, value in (found.lineage.get("recipe") or {}).items() if key in known}
    values |= FINE_TUNING | OFF | {"student": found.model, "student_ckpt": str(start), "feature_loss": "none"}
    values |= {"pretrained": False, "checkpoint_key": "", "input_size": []}
    values["losses"] = [
        text for text in values.get("losses", ()) if text.partition(":")[0] not in losses.FEATURE
    ]
    if values.get("kd_loss") == "none" and not values["losses"]:
        values["kd_loss"] = Recipe.kd_loss
    if values.get("teacher_ckpt"):
        values["teacher_ckpt"] = found_again(values["teacher_ckpt"], start.parent)
    if values.get("teacher") == "none":
        values["teacher"] = "auto"
    if found.class_names is not None:  # a checkpoint of this project
        data = found.lineage.get("data") or {}
        height, width = found.preprocess.input_size[1:]  # without a flag that of the file, as --student-ckpt
        values |= {
            "data": found_again(data.get("train_spec") or "", start.parent),
            "val_data": found_again(data.get("val_spec") or "", start.parent),
            "val_split": 0.0,
            "student_args": [f"{key}={files.json_text(value)}" for key, value in found.model_args.items()],
            "img_size": 0 if height != width or value_of(argv, "--input-size") else height,
            "crop_pct": found.preprocess.crop_pct,
        }
    return recipe.from_dict(values, str(start), QatOptions(), given_data(argv))


def require_possible(options: QatOptions) -> None:
    """Raise UsageError for what cannot be had together with --qat, before anything is read."""
    for name, off in OFF.items():
        if name != "model_ema" and getattr(options, name) != off:
            raise UsageError(
                f"--{name.replace('_', '-')} does not go with --qat, which trains the exported fp32 graph. "
                "Leave it out"
            )
    with loading("loading torch"):
        from distill.training.objective import terms_of

    feature = [term.name for term in terms_of(options) if term.name in losses.FEATURE]
    if feature:
        raise UsageError(
            f"loss {feature[0]}: compares feature maps, and the graph that --qat trains has no modules to"
            " tap. Take a loss on logits: --kd-loss kl --feature-loss none"
        )
    if options.erf:
        raise UsageError("--erf measures float networks. Leave it out with --qat")


def default_output(start: Path, student: str) -> str:
    """runs/student/best.pth -> runs/student-qat; another file -> runs/STUDENT-qat."""
    folder = (
        start.resolve().parent if start.parent.name in ("", "..") else start.parent
    )  # typed inside the folder
    is_in_run = (folder / "args.yaml").is_file()
    return str(folder.with_name(f"{folder.name}-qat")) if is_in_run else f"runs/{student}-qat"
