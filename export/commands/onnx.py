"""`distill export onnx`: a checkpoint becomes a verified ONNX file in fp32, fp16, calibrated int8 or both.

In:  a checkpoint (ours or foreign weights), real labelled images, for int8 also training images.
Out: one .onnx file with metadata inside, or one error line and no file.
Elsewhere: each step has its module; this one is the order of the steps and what is recorded about them.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from runtime import env, files
from runtime.artifact import Metadata, require_same_classes
from runtime.cli.settings import Flag
from runtime.errors import DataError, UsageError
from runtime.images import ImageSet

from .. import report as reports
from ..options import Int8Options, check_int8, check_sizes, flag, note, refuse_calibrated

if TYPE_CHECKING:
    from distill.checkpoint import Checkpoint

    from ..int8.budget import Outcome
    from ..int8.images import CalibrationImages

PACKAGES = (*env.PACKAGES, "onnxscript", "onnxslim", "large2small")

SUMMARY = "write a checkpoint as a verified ONNX file, with --int8 quantized"
DESCRIPTION = """Branches are merged, and the file is compared with torch on real images before it is written.

examples:
  {prog} best.pth
  {prog} best.pth --int8 --calib data/train --data data/val
  {prog} best.pth --int8 --calib-method auto --max-drop 0.3
  {prog} best.pth --int8 --placement tensorrt
  {prog} resnet20.th --model resnet20 --data data/val"""


@dataclass(frozen=True)
class FileOptions:
    """File: from which checkpoint, to where, in which precision."""

    checkpoint: Annotated[Path, Flag("CKPT", positional=True)]
    """Checkpoint of this project, or weights of another one together with --model."""
    int8: Annotated[bool, Flag(common=True)] = False
    """Quantize to int8, calibrated on --calib."""
    fp16: Annotated[bool, Flag(common=True)] = False
    """Compute in fp16 what is not int8, with fp32 inputs and outputs; layers that overflow in fp16 stay
    fp32."""
    data: Annotated[str | None, Flag("DATA", common=True)] = None
    """Labeled images to verify on (DIR, npz:FILE, digits); by default the checkpoint's own validation
    images."""
    model: Annotated[str | None, Flag("NAME", common=True)] = None
    """Architecture of foreign weights, as timm spells it."""
    model_args: Annotated[tuple[str, ...], Flag("KEY=VALUE")] = ()
    """Arguments of the architecture of foreign weights, for example width=0.5 or dims=[16,32]."""
    output: Annotated[Path | None, Flag("FILE", aliases=("-o",), common=True)] = None
    """File to write; by default NAME.onnx, NAME.int8.onnx or NAME.fp16.onnx beside the checkpoint."""
    overwrite: Annotated[bool, Flag(common=True)] = False
    """Replace the output when it exists."""
    img_size: Annotated[int | None, Flag("PIXELS", common=True)] = None
    """Height and width of the input; by default the checkpoint's own."""
    opset: Annotated[int, Flag("N", common=True)] = 19
    """ONNX operator set; int8 and fp16 need 19 or later."""
    verify_size: int = 256
    """Number of real images on which ONNX is compared with torch."""
    atol: Annotated[float, Flag("SHARE")] = 1e-4
    """Largest logit difference between torch and ONNX, as a share of the largest logit (at least 1)."""
    seed: int = 0
    """Seed for choosing images."""
    json: Annotated[bool, Flag(common=True)] = False
    """Print the result as one JSON object and nothing else."""


@dataclass(frozen=True)
class OnnxOptions(Int8Options, FileOptions):
    """Target. The help shows the flags of FileOptions first."""

    placement: Annotated[Literal["auto", "cpu", "tensorrt"], Flag(common=True)] = "auto"
    """Engine that Q/DQ nodes are placed for: cpu for the integer kernels of ONNX Runtime and OpenVINO (uint8
    activations, outputs too), tensorrt for NVIDIA's engines, which refuse the former. auto is what a
    checkpoint was trained for (distill train --qat), else cpu, and with --fp16 tensorrt."""

    @property
    def precision(self) -> str:
        """As the metadata writes it."""
        return (
            "+".join(name for name, wanted in (("int8", self.int8), ("fp16", self.fp16)) if wanted) or "fp32"
        )

    @property
    def target(self) -> Path:
        """The file to write."""
        suffix = "".join(f".{name}" for name, wanted in (("int8", self.int8), ("fp16", self.fp16)) if wanted)
        return self.output or self.checkpoint.with_suffix(f"{suffix}.onnx")

    @property
    def sensitivity_files(self) -> list[Path]:
        """Where the sensitivity table goes when layers are ranked."""
        return [self.target.with_suffix(f".sensitivity{kind}") for kind in (".json", ".md")]


Options = OnnxOptions


@dataclass(frozen=True)
class Made:
    """An ONNX file that passed its checks, not yet written."""

    content: bytes
    meta: Metadata
    outcome: Outcome | None
    """Which layers stayed int8, where layers were chosen."""
    held_out: ImageSet
    """The labelled images it was judged on."""


def run(options: OnnxOptions) -> None:
    """Write the artifact and print what was measured."""
    export_onnx(options)


def export_onnx(options: OnnxOptions) -> dict[str, Any]:
    """Export, verify, write; returns what was measured. Raises GateError, and leaves no file, when a check
    fails.
    """
    made = make(options)
    write(options, made)
    return report(options, made.content, made.meta)


def write(options: OnnxOptions, made: Made) -> None:
    """The file, and the table of layers beside it when layers were ranked."""
    files.write_bytes(options.target, made.content)
    write_sensitivity(options, made.outcome)


def make(options: OnnxOptions) -> Made:
    """Export and verify. Raises GateError when a check fails."""
    check(options)
    from ..checks import verify
    from ..graph import from_torch
    from ..stages import lower

    checkpoint, held_out = open_inputs(options)
    if options.int8 and checkpoint.quantized is not None:
        refuse_calibrated(options, options.checkpoint)
    options = replace(options, placement=placement_of(options, checkpoint))
    calibration = open_calibration(options, checkpoint, held_out) if options.precision != "fp32" else None
    student = build(checkpoint)
    merged = from_torch.merge(student)
    model = from_torch.to_onnx(merged, checkpoint.preprocess.input_size, options.opset)
    meta = describe(
        checkpoint, held_out, options, *from_torch.count(merged, checkpoint.preprocess.input_size)
    )
    outcome = None
    with tempfile.TemporaryDirectory(prefix="large2small-") as folder:
        content, meta = checked_fp32(model, meta, student, merged, held_out, options, Path(folder))
        if calibration is not None:
            made = lower.make(
                model, content, meta, student, checkpoint, calibration, held_out, options, Path(folder)
            )
            content, meta, outcome = made.content, made.meta, made.outcome
        verify.require_opens(content, meta, Path(folder))
    return Made(content, meta, outcome, held_out)


def check(options: OnnxOptions) -> None:
    """Raise UsageError for what can be seen to be wrong before anything is read."""
    if not options.checkpoint.is_file():
        raise UsageError(f"{options.checkpoint}: no such checkpoint")
    for path in (options.target, *(options.sensitivity_files if options.int8 else ())):
        files.refuse_existing(path, options.overwrite)
    if options.target.suffix != ".onnx":
        raise UsageError(f"--output {options.target}: expected a name that ends in .onnx")
    for name, least in (("verify_size", 1), ("img_size", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UsageError(f"{flag(name)} {value}: expected {least} or more")
    if not options.atol > 0:
        raise UsageError(f"--atol {options.atol}: expected above 0, a share of the largest logit")
    check_sizes(options)
    lowest = 18 if options.precision == "fp32" else 19
    if not lowest <= options.opset <= 21:
        raise UsageError(
            f"--opset {options.opset}: expected {lowest} to 21 (the exporter starts at 18; fp16 scales"
            " need 19)"
        )
    if options.int8:
        check_int8(options, options.fp16)
        if options.fp16 and options.placement == "cpu":
            raise UsageError(
                "--int8 --fp16 --placement cpu: no CPU engine has integer kernels between fp16 layers. Give "
                "--placement tensorrt, or leave --fp16 out"
            )
        return
    defaults = {f.name: f.default for f in fields(Int8Options)}
    shared = (
        {"max_drop", "accuracy_size", "calib", "calib_size"}
        if options.fp16
        else {"max_drop", "accuracy_size"}
    )
    for name, default in defaults.items():
        if name not in shared and getattr(options, name) != default:
            raise UsageError(f"{flag(name)} is only read with --int8. Add --int8")
    if options.calib == "random":
        raise UsageError(
            "--calib random is for ranges of int8; what overflows in fp16 is looked for on real images. Add"
            " --int8, or give --calib DIR"
        )


def open_inputs(options: OnnxOptions) -> tuple[Checkpoint, ImageSet]:
    """The checkpoint, with class names and input size settled, and the labelled images to verify on."""
    from distill.checkpoint import load_any
    from distill.recipe import key_values

    checkpoint = load_any(options.checkpoint, options.model, key_values(options.model_args))
    held_out = open_or_say(
        options.data or checkpoint.recorded_data("val", "--data"), "val", "--data", options.data is None
    )
    require_same_classes(checkpoint.class_names, str(options.checkpoint), held_out.class_names, held_out.name)
    if checkpoint.class_names is None:
        note(
            f"the weights carry no class names; taken from {held_out.name}:"
            f" {', '.join(held_out.class_names[:4])}, ..."
        )
        checkpoint = replace(checkpoint, class_names=held_out.class_names)
    if options.img_size is not None:
        size = (3, options.img_size, options.img_size)
        checkpoint = replace(checkpoint, preprocess=replace(checkpoint.preprocess, input_size=size))
    return checkpoint, held_out


def placement_of(options: OnnxOptions, checkpoint: Checkpoint) -> str:
    """cpu or tensorrt: as the flag says, and for auto as the checkpoint or --fp16 ask for."""
    if options.placement != "auto":
        return options.placement
    if checkpoint.quantized is not None:
        from ..qat import trained

        return trained.placement_of(checkpoint)
    return "tensorrt" if options.fp16 else "cpu"


def open_calibration(
    options: OnnxOptions, checkpoint: Checkpoint, held_out: ImageSet
) -> Callable[[int], CalibrationImages]:
    """A function from a seed to calibration images, none of which is in held_out."""
    from ..int8 import images as calibration_images

    if options.calib == "random":
        note(
            '--calib random: ranges of noise; the artifact is marked "not for accuracy" and not held to'
            " --max-drop"
        )
        return lambda seed: calibration_images.choose(options, None, checkpoint.preprocess, held_out, seed)
    images = open_or_say(
        options.calib or checkpoint.recorded_data("train", "--calib"),
        "train",
        "--calib",
        options.calib is None,
    )
    require_same_classes(checkpoint.class_names, str(options.checkpoint), images.class_names, images.name)
    return lambda seed: calibration_images.choose(options, images, checkpoint.preprocess, held_out, seed)


def open_or_say(spec: str, split: str, flag: str, is_recorded: bool) -> ImageSet:
    """Open a spec; when it came from the checkpoint and cannot be opened here, the error names the flag to
    give.
    """
    if not spec:
        raise UsageError(
            f"the checkpoint does not say which {split} images it knows. Give real images: {flag} DIR"
        )
    from distill.data import open_data

    try:
        images = open_data(spec, split)
        if not len(images.labels):
            raise UsageError(f"{spec}: a stream cannot be sampled. Give an image folder: {flag} DIR")
        return images
    except DataError as error:
        if not is_recorded:
            raise
        raise UsageError(
            f"the checkpoint's own {split} images cannot be opened here ({error}). Give them: {flag} DIR"
        ) from error


def build(checkpoint: Checkpoint) -> Any:
    """The network with its weights, as it was trained, in eval mode."""
    from distill import models
    from distill.checkpoint import load_weights

    student = models.build(checkpoint.model, checkpoint.num_classes or 0, checkpoint.model_args)
    load_weights(student, checkpoint)
    return student.eval()


def describe(
    checkpoint: Checkpoint, held_out: ImageSet, options: OnnxOptions, parameters: int, macs: int
) -> Metadata:
    """What the artifact will say about itself, as far as it is known before the checks."""
    from ..checks import samples

    recorded_lineage = without_folders(checkpoint.lineage)
    data = dict(recorded_lineage.get("data") or {})
    data["held_out"] = {
        "spec": without_folders(held_out.name),
        "images": len(held_out),
        "sha256": held_out.fingerprint(),
        "judged_on": samples.judged_on(held_out, options.verify_size, options.seed),
    }
    source = Path(checkpoint.path or "")
    return Metadata(
        model=checkpoint.model,
        role=checkpoint.role,
        preprocess=checkpoint.preprocess,
        class_names=checkpoint.class_names,
        parameters=parameters,
        macs=macs,
        training={"metrics": checkpoint.metrics, "recipe": recorded_lineage.get("recipe")},
        lineage={
            "checkpoint": {"file": source.name, "sha256": files.sha256(source)},
            "data": data,
            "teacher": recorded_lineage.get("teacher"),
            "converted": recorded_lineage.get("converted"),
        },
        versions={**(recorded_lineage.get("versions") or {}), **env.versions(PACKAGES)},
    )


def without_folders(value: Any) -> Any:
    """`value` with every absolute path in it cut to its last part: an artifact is given away, this disk's
    folders are not.

    What a file or data set was is told by the SHA-256 beside its name. `npz:` and the like before a path
    stay.
    """
    if isinstance(value, dict):
        return {key: without_folders(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_folders(each) for each in value]
    if isinstance(value, str):
        prefix, colon, path = value.rpartition(":")
        if Path(path).is_absolute():
            return f"{prefix}{colon}{Path(path).name}"
    return value


def checked_fp32(
    model: Any,
    meta: Metadata,
    student: Any,
    merged: Any,
    held_out: ImageSet,
    options: OnnxOptions,
    folder: Path,
) -> tuple[bytes, Metadata]:
    """(content of the fp32 file, its metadata) after merged and ONNX network were found equal to
    the student.
    """
    from ..checks import samples, verify
    from ..graph import from_torch

    chosen = samples.choose(held_out.labels, options.verify_size, options.seed)
    images = np.concatenate(list(real_images(held_out, chosen, meta, "")))
    reference = verify.torch_logits(student, images)
    merging = verify.require_equal(
        reference, verify.torch_logits(merged, images), options.atol, "merged against unmerged"
    )
    with verify.opened(from_torch.write_metadata(model, meta), folder / "fp32.onnx") as predictor:
        checks = {
            "merged": merging.to_dict(),
            "parity": verify.parity(predictor, reference, images, options.atol),
        }
    meta = replace(meta, verification=checks)
    return from_torch.write_metadata(model, meta), meta


def real_images(images: ImageSet, chosen: Any, meta: Metadata, about: str) -> Iterator[Any]:
    """The chosen images as preprocessed batches, without their labels."""
    from ..checks import samples

    return (batch for batch, _ in samples.batches(images, chosen, meta.preprocess, about=about))


def write_sensitivity(options: OnnxOptions, outcome: Any) -> None:
    """The table of layers beside the artifact, when layers were ranked."""
    from ..int8 import budget

    if outcome is not None and outcome.rows:
        for path, text in zip(
            options.sensitivity_files, (budget.to_json(outcome), budget.to_markdown(outcome)), strict=True
        ):
            files.write_text(path, text)
        note(f"damage of each layer: {' and '.join(str(path) for path in options.sensitivity_files)}")


def report(options: OnnxOptions, content: bytes, meta: Metadata) -> dict[str, Any]:
    """Print the result: a line and, below fp32, a table; with --json one object. Returns the object."""
    checks = meta.verification
    result = figures(options, content, meta)
    found = checks.get(meta.precision.partition("+")[0])
    if options.json:
        print(json.dumps(result))
    elif found:
        reports.show(options.target, meta, found)
    else:
        print(
            f"{options.target}: top-1 agreement with torch {result['parity_agreement_percent']:.2f} % on "
            f"{result['parity_images']} images, largest logit difference {result['parity_max_abs']:.3g}"
        )
    return result


def figures(options: OnnxOptions, content: bytes, meta: Metadata) -> dict[str, Any]:
    """The result as JSON values."""
    checks = meta.verification
    result = {
        "output": str(options.target),
        "sha256": hashlib.sha256(content).hexdigest(),
        "size_bytes": len(content),
        "precision": meta.precision,
        "model": meta.model,
        "parameters": meta.parameters,
        "macs": meta.macs,
        "placement": (meta.quantization or {}).get("placement"),
        "parity_images": checks["parity"]["images"],
        "parity_max_abs": checks["parity"]["max_abs"],
        "parity_agreement_percent": checks["parity"]["top1_agreement"],
    }
    key = meta.precision.partition("+")[0]  # int8, with or without fp16
    found = checks.get(key)
    if found:
        same = (
            "images",
            "drop_low_points",
            "drop_high_points",
            "right_to_wrong",
            "wrong_to_right",
            "kl_nats",
            "worst_class",
            "speed",
        )
        result |= {
            "fp32_top1_percent": found["fp32_top1"],
            "fp32_onnx_top1_percent": found["fp32_onnx_top1"],
            f"{key}_top1_percent": found["int8_top1"],
            "drop_points": found["drop"],
            f"{key}_agreement_percent": found["agreement"],
            **{name: found[name] for name in same},
        }
    if meta.quantization:
        how = meta.quantization
        result |= {
            "method": how["method"],
            "int8_macs_percent": how["budget"] and how["budget"]["int8_macs_percent"],
            "rolled_back": how["budget"]["float_layers"] if how["budget"] else [],
            "draws": how["draws"],
            "not_for_accuracy": how["not_for_accuracy"],
        }
    return result
