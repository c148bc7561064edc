"""`distill export onnx`: a checkpoint becomes a verified ONNX file, fp32 or calibrated int8.

In:  a checkpoint (ours or foreign weights), real labelled images, for int8 also training images.
Out: one .onnx file with metadata inside, or one error line and no file.
Elsewhere: each step has its module; this one is the order of the steps and what is recorded about them.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from runtime import commands, env, files
from runtime.artifact import Metadata, require_same_classes
from runtime.errors import DataError, UsageError
from runtime.images import ImageSet

if TYPE_CHECKING:
    from distill.checkpoint import Checkpoint

    from .quantize import Plan

PACKAGES = (*env.PACKAGES, "onnxscript", "onnxslim", "large2small")

DESCRIPTION = """Write a checkpoint as ONNX: branches merged, checked against torch on real images, metadata inside.

examples:

  {prog} best.pth

  {prog} best.pth --int8 --calib data/train --data data/val

  {prog} resnet20.th --model resnet20 --data data/val"""


@dataclass(frozen=True)
class OnnxOptions:
    """What to export and how."""

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CKPT")]
    """A checkpoint of this project, or weights of another one together with --model."""
    model: str | None = None
    """Architecture of foreign weights, as timm spells it."""
    model_args: tuple[str, ...] = ()
    """Arguments of that architecture as KEY=VALUE, for example width=0.5 or dims=[16,32]."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """File to write; beside the checkpoint as NAME.onnx or NAME.int8.onnx when not given."""
    overwrite: bool = False
    """Replace the output when it exists."""
    data: str | None = None
    """Labelled images to verify on (DIR, npz:FILE, digits); the checkpoint's own validation images when not given."""
    img_size: int | None = None
    """Height and width of the input in pixels; the checkpoint's own when not given."""
    opset: int = 19
    """ONNX operator set; int8 needs 19 or later to be made fp16 afterwards."""
    int8: bool = False
    """Quantize, calibrated on --calib."""
    calib: str | None = None
    """Training images for calibration; the checkpoint's own when not given. Random data is refused."""
    calib_size: int = 512
    """Number of calibration images, as many of each class as possible."""
    calib_method: Literal["minmax", "percentile"] = "percentile"
    """minmax keeps every value; percentile cuts the rarest large ones."""
    percentile: float = 99.99
    """Share of |activation| kept inside the int8 range, percent, above 50 to 100."""
    max_drop: float = 1.0
    """Largest loss of top-1 against the fp32 student on --data, points; above it nothing is written."""
    accuracy_size: int = 5000
    """At most so many labelled images for that check, stratified."""
    exclude: tuple[str, ...] = ()
    """Layers to leave float: glob patterns on node names, such as 'layer1.*'."""
    placement: Literal["tensorrt", "cpu"] = "tensorrt"
    """Where Q/DQ stands: for NVIDIA's engines, or for ONNX Runtime's integer CPU kernels (uint8 activations, outputs too;
    TensorRT refuses those)."""
    verify_size: int = 256
    """Real images on which ONNX is compared with torch."""
    atol: float = 1e-4
    """Largest logit difference between torch and ONNX, as a share of the largest logit (at least 1)."""
    seed: int = 0
    """Of the choice of images."""
    json: bool = False
    """Print the result as one JSON object."""

    @property
    def target(self) -> Path:
        """The file to write."""
        return self.output or self.checkpoint.with_suffix(".int8.onnx" if self.int8 else ".onnx")


def main(argv: Sequence[str], prog: str) -> int:
    """Parse and run; errors are raised (export.cli turns them into a line)."""
    export_onnx(commands.parse(OnnxOptions, argv, prog, DESCRIPTION.format(prog=prog)))
    return 0


def export_onnx(options: OnnxOptions) -> dict[str, Any]:
    """Export, verify, write; returns what was measured. Raises GateError, and leaves no file, when a check fails."""
    check(options)
    from . import graph, verify

    checkpoint, held_out = open_inputs(options)
    calibration = choose_calibration(options, checkpoint, held_out) if options.int8 else None
    student = build(checkpoint)
    merged = graph.merge(student)
    model = graph.to_onnx(merged, checkpoint.preprocess.input_size, options.opset)
    meta = describe(checkpoint, held_out, *graph.count(merged, checkpoint.preprocess.input_size))
    with tempfile.TemporaryDirectory(prefix="large2small-") as folder:
        content, meta = checked_fp32(model, meta, student, merged, held_out, options, Path(folder))
        if calibration is not None:
            content, meta = checked_int8(model, content, meta, calibration, held_out, options, Path(folder))
        verify.require_opens(content, meta, Path(folder))
    files.write_bytes(options.target, content)
    return report(options, content, meta)


def check(options: OnnxOptions) -> None:
    """Raise UsageError for what can be seen to be wrong before anything is read."""
    if not options.checkpoint.is_file():
        raise UsageError(f"{options.checkpoint}: no such checkpoint")
    files.refuse_existing(options.target, options.overwrite)
    if options.target.suffix != ".onnx":
        raise UsageError(f"--output {options.target}: expected a name that ends in .onnx")
    for name, least in (("calib_size", 1), ("accuracy_size", 1), ("verify_size", 1), ("img_size", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')} {value}: expected {least} or more")
    lowest = 19 if options.int8 else 18
    if not lowest <= options.opset <= 21:
        raise UsageError(f"--opset {options.opset}: expected {lowest} to 21 (the exporter starts at 18; fp16 scales need 19)")
    if options.int8:
        from .calibrate import check_method

        check_method(options.calib_method, options.percentile)
    elif options.calib is not None or options.exclude:
        raise UsageError(f"--{'calib' if options.calib is not None else 'exclude'} is only read with --int8. Add --int8")


def open_inputs(options: OnnxOptions) -> tuple[Checkpoint, ImageSet]:
    """The checkpoint, with class names and input size settled, and the labelled images to verify on."""
    from distill.checkpoint import load_any
    from distill.recipe import key_values

    checkpoint = load_any(options.checkpoint, options.model, key_values(options.model_args))
    held_out = open_or_say(options.data or recorded(checkpoint, "val_spec"), "val", "--data", options.data is None)
    require_same_classes(checkpoint.class_names, str(options.checkpoint), held_out.class_names, held_out.name)
    if checkpoint.class_names is None:
        note(f"the weights carry no class names; taken from {held_out.name}: {', '.join(held_out.class_names[:4])}, ...")
        checkpoint = replace(checkpoint, class_names=held_out.class_names)
    if options.img_size is not None:
        size = (3, options.img_size, options.img_size)
        checkpoint = replace(checkpoint, preprocess=replace(checkpoint.preprocess, input_size=size))
    return checkpoint, held_out


def choose_calibration(options: OnnxOptions, checkpoint: Checkpoint, held_out: ImageSet) -> tuple[ImageSet, Any]:
    """(training images, chosen indices); none of the chosen ones is in held_out."""
    from . import samples

    if options.calib is not None and options.calib.lower() in ("random", "noise", "synthetic"):
        raise UsageError(f"--calib {options.calib}: random data gives ranges that no real image has. "
                         "Give training images: --calib DIR")
    images = open_or_say(options.calib or recorded(checkpoint, "train_spec"), "train", "--calib", options.calib is None)
    require_same_classes(checkpoint.class_names, str(options.checkpoint), images.class_names, images.name)
    chosen = samples.choose(images.labels, options.calib_size, options.seed)
    if len(chosen) < options.calib_size:
        note(f"{images.name} has {len(chosen)} images; all of them calibrate (asked for {options.calib_size})")
    samples.require_apart(images, chosen, held_out)
    return images, chosen


def open_or_say(spec: str | None, split: str, flag: str, is_recorded: bool) -> ImageSet:
    """Open a spec; when it came from the checkpoint and cannot be opened here, the error names the flag to give."""
    if spec is None:
        raise UsageError(f"the checkpoint does not say which {split} images it knows. Give real images: {flag} DIR")
    from distill.data import open_data

    try:
        images = open_data(spec, split)
        if not len(images.labels):
            raise UsageError(f"{spec}: a stream cannot be sampled. Give an image folder: {flag} DIR")
        return images
    except DataError as error:
        if not is_recorded:
            raise
        raise UsageError(f"the checkpoint's own {split} images cannot be opened here ({error}). Give them: {flag} DIR") from error


def build(checkpoint: Checkpoint) -> Any:
    """The network with its weights, as it was trained, in eval mode."""
    from distill import models
    from distill.checkpoint import load_weights

    student = models.build(checkpoint.model, checkpoint.num_classes or 0, checkpoint.model_args)
    load_weights(student, checkpoint)
    return student.eval()


def describe(checkpoint: Checkpoint, held_out: ImageSet, parameters: int, macs: int) -> Metadata:
    """What the artifact will say about itself, as far as it is known before the checks."""
    recorded_lineage = without_folders(checkpoint.lineage)
    data = dict(recorded_lineage.get("data") or {})
    data["held_out"] = {"spec": without_folders(held_out.name), "images": len(held_out), "sha256": held_out.fingerprint()}
    source = Path(checkpoint.path or "")
    return Metadata(
        model=checkpoint.model, role=checkpoint.role, preprocess=checkpoint.preprocess, class_names=checkpoint.class_names,
        parameters=parameters, macs=macs,
        training={"metrics": checkpoint.metrics, "recipe": recorded_lineage.get("recipe")},
        lineage={"checkpoint": {"file": source.name, "sha256": files.sha256(source)}, "data": data,
                 "teacher": recorded_lineage.get("teacher"), "converted": recorded_lineage.get("converted")},
        versions={**(recorded_lineage.get("versions") or {}), **env.versions(PACKAGES)})


def without_folders(value: Any) -> Any:
    """`value` with every absolute path in it cut to its last part: an artifact is given away, this disk's folders are not.

    What a file or data set was is told by the SHA-256 beside its name. `npz:` and the like before a path stay.
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


def checked_fp32(model: Any, meta: Metadata, student: Any, merged: Any, held_out: ImageSet, options: OnnxOptions,
                 folder: Path) -> tuple[bytes, Metadata]:
    """(content of the fp32 file, its metadata) after merged and ONNX network were found equal to the student."""
    from . import graph, samples, verify

    chosen = samples.choose(held_out.labels, options.verify_size, options.seed)
    images = np.concatenate(list(real_images(held_out, chosen, meta, "")))
    reference = verify.torch_logits(student, images)
    merging = verify.require_equal(reference, verify.torch_logits(merged, images), options.atol, "merged against unmerged")
    with verify.opened(graph.write_metadata(model, meta), folder / "fp32.onnx") as predictor:
        checks = {"merged": merging.to_dict(), "parity": verify.parity(predictor, reference, images, options.atol)}
    meta = replace(meta, verification=checks)
    return graph.write_metadata(model, meta), meta


def checked_int8(model: Any, fp32: bytes, meta: Metadata, calibration: tuple[ImageSet, Any], held_out: ImageSet,
                 options: OnnxOptions, folder: Path) -> tuple[bytes, Metadata]:
    """(content of the int8 file, its metadata) after its accuracy was found to be within --max-drop."""
    from . import graph, quantize, samples, verify
    from .calibrate import calibrate

    rules = quantize.Rules(exclude=options.exclude)
    made = quantize.plan(model, options.placement, rules)
    for pattern, matched in made.excluded.items():
        note(f"--exclude {pattern}: matched {matched} node{'s' * (matched != 1)}")
    ranges = calibrate(model, made.tensors, real_images(*calibration, meta, "calibrating"), options.calib_method,
                       options.percentile)
    quantized = quantize.quantize(model, made, ranges, rules)
    meta = replace(meta, precision="int8", quantization=quantization_record(options, made, model, calibration),
                   lineage=meta.lineage | {"fp32_onnx": {"sha256": hashlib.sha256(fp32).hexdigest()}})
    content = graph.write_metadata(quantized, meta)
    chosen = samples.choose(held_out.labels, options.accuracy_size, options.seed)
    found = verify.accuracy(
        *(verify.logits_of(artifact, folder / f"{name}.onnx", real_images(held_out, chosen, meta, f"accuracy of {name}"))
          for name, artifact in (("fp32", fp32), ("int8", content))), held_out.labels[chosen])
    verify.require_small_drop(found, options.max_drop)
    some = next(iter(samples.batches(held_out, chosen, meta.preprocess, max(verify.BATCH_SIZES))))[0]
    with verify.opened(content, folder / "int8.onnx") as predictor:
        spread = verify.require_consistent(predictor, some, verify.INT8_TOLERANCE)
    checks = meta.verification | {"int8": found.to_dict() | {"max_drop": options.max_drop, "batch_spread": spread}}
    meta = replace(meta, verification=checks)
    return graph.write_metadata(quantized, meta), meta


def real_images(images: ImageSet, chosen: Any, meta: Metadata, about: str) -> Iterator[Any]:
    """The chosen images as preprocessed batches, without their labels."""
    from . import samples

    return (batch for batch, _ in samples.batches(images, chosen, meta.preprocess, about=about))


def quantization_record(options: OnnxOptions, made: Plan, model: Any, calibration: tuple[ImageSet, Any]) -> dict[str, Any]:
    """How int8 came about, down to each calibration image."""
    from . import quantize, samples

    return {
        "method": options.calib_method, "percentile": options.percentile if options.calib_method == "percentile" else None,
        "placement": options.placement, "scales": quantize.scale_count(made, model), "tensors": len(made.tensors),
        "int8_layers": len(made.layers), "float_layers": made.left_float, "exclude": list(options.exclude),
        "seed": options.seed, "images": samples.listing(*calibration), "data_sha256": calibration[0].fingerprint()}


def report(options: OnnxOptions, content: bytes, meta: Metadata) -> dict[str, Any]:
    """Print the result: a line and, for int8, a table; with --json one object. Returns the object."""
    checks = meta.verification
    result = {"output": str(options.target), "sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content),
              "precision": meta.precision, "model": meta.model, "parameters": meta.parameters, "macs": meta.macs,
              "placement": options.placement if options.int8 else None,
              "parity_images": checks["parity"]["images"], "parity_max_abs": checks["parity"]["max_abs"],
              "parity_agreement_percent": checks["parity"]["top1_agreement"]}
    int8 = checks.get("int8")
    if int8:
        result |= {"images": int8["images"], "fp32_top1_percent": int8["fp32_top1"], "int8_top1_percent": int8["int8_top1"],
                   "drop_points": int8["drop"], "int8_agreement_percent": int8["agreement"]}
    if options.json:
        print(json.dumps(result))
        return result
    if int8:
        _print_table(int8)
        print(f"{options.target}: top-1 agreement with fp32 {int8['agreement']:.2f} %, "
              f"largest logit difference {int8['max_abs']:.3g} ({options.placement} placement)")
    else:
        print(f"{options.target}: top-1 agreement with torch {result['parity_agreement_percent']:.2f} % on "
              f"{result['parity_images']} images, largest logit difference {result['parity_max_abs']:.3g}")
    return result


def _print_table(int8: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("fp32 top-1 %", "int8 top-1 %", "drop, points", "agreement %", "images")
    table.add_row(*(f"{int8[key]:.2f}" for key in ("fp32_top1", "int8_top1", "drop", "agreement")), str(int8["images"]))
    Console().print(table)


def recorded(checkpoint: Checkpoint, key: str) -> str | None:
    """A data spec from the checkpoint's lineage, or None."""
    value = (checkpoint.lineage.get("data") or {}).get(key)
    return value if isinstance(value, str) and value else None


def note(text: str) -> None:
    """A line that is not the result: stderr, so that --json stays one object."""
    print(f"note: {text}", file=sys.stderr)
