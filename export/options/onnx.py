"""The flags of `distill export onnx`, and what can be refused before anything is read.

In:  flags (runtime.cli.flags).
Out: an `OnnxOptions`; `check_onnx` raises UsageError for what cannot be.
Elsewhere: the flags of int8 (export.options.int8), what the settings do (export.stages).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from runtime import files
from runtime.cli.settings import Flag
from runtime.errors import UsageError

from .int8 import BUDGETS, Int8Options, check_int8, flag


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
    checkpoint_key: Annotated[str, Flag("KEY")] = ""
    """Entry of a foreign file that holds the weights, for example ema.module; by default averaged weights
    before others."""
    output: Annotated[Path | None, Flag("FILE", aliases=("-o",), common=True)] = None
    """File to write; by default NAME.onnx, NAME.int8.onnx or NAME.fp16.onnx beside the checkpoint."""
    overwrite: Annotated[bool, Flag(common=True)] = False
    """Replace the output when it exists."""
    img_size: Annotated[int | None, Flag("PIXELS", common=True, least=1)] = None
    """Height and width of the input; by default the checkpoint's own."""
    input_size: Annotated[tuple[int, ...], Flag("PIXELS")] = ()
    """Height and width of the input, for one that is not square; by default the checkpoint's own."""
    opset: Annotated[int, Flag("N", common=True, least=18, most=21)] = 19
    """ONNX operator set; int8 and fp16 need 19 or later."""
    verify_size: Annotated[int, Flag("N", least=1)] = 256
    """Number of real images on which ONNX is compared with torch."""
    atol: Annotated[float, Flag("SHARE", above=0)] = 1e-4
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


def check_onnx(options: OnnxOptions) -> None:
    """Raise UsageError for what can be seen to be wrong before anything is read."""
    if not options.checkpoint.is_file():
        raise files.no_checkpoint(options.checkpoint)
    if options.target.suffix != ".onnx":
        raise UsageError(f"--output {options.target}: expected a name that ends in .onnx")
    for path in (options.target, *(options.sensitivity_files if options.int8 else ())):
        files.refuse_existing(path, options.overwrite)
    if options.precision != "fp32" and options.opset < 19:
        raise UsageError(f"--opset {options.opset}: expected 19 to 21, which scales in fp16 need")
    if options.int8:
        check_int8(options, options.fp16)
        if options.fp16 and options.placement == "cpu":
            raise UsageError(
                "--int8 --fp16 --placement cpu: no CPU engine has integer kernels between fp16 layers. Give "
                "--placement tensorrt, or leave --fp16 out"
            )
        return
    defaults = {f.name: f.default for f in fields(Int8Options)}
    shared = set(BUDGETS) | ({"calib", "calib_size"} if options.fp16 else set())
    for name, default in defaults.items():
        if name not in shared and getattr(options, name) != default:
            raise UsageError(f"{flag(name)} is only read with --int8. Add --int8")
    if options.calib == "random":
        raise UsageError(
            "--calib random is for ranges of int8; what overflows in fp16 is looked for on real images. Add"
            " --int8, or give --calib DIR"
        )
