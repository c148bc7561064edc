"""The flags of `distill export trt`, and what they mean as settings of a build.

In:  flags (runtime.cli.flags); for --rebuild the metadata of a plan.
Out: a `TrtOptions`; `settings_of` checks it and gives the `Settings` of the build.
Elsewhere: the flags of the ONNX file it builds (export.options.onnx), the build (export.trt.build).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from runtime import files
from runtime.artifact import read_sidecar, sidecar_of
from runtime.backends.tensorrt import driver, plan
from runtime.cli.settings import Flag
from runtime.errors import ArtifactError, MissingError, UsageError

from ..trt import build
from ..trt.build import Profile, Settings
from .int8 import BUDGETS, Int8Options
from .onnx import FileOptions, OnnxOptions, check_onnx

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """TensorRT: how the plan is built."""

    flavor: Literal["auto", "tensorrt", "rtx"] = "auto"
    """Builder: tensorrt, or rtx, which is TensorRT for RTX and builds without a GPU; auto takes the one that
    is installed, tensorrt first."""
    batch: Annotated[int | None, Flag("N", aliases=("-b", "--batch-size"), common=True, least=1)] = None
    """Images per call of a plan of one size; 1 when neither this nor --dynamic is given."""
    dynamic: Annotated[tuple[str, ...], Flag("MIN,OPT,MAX", common=True)] = ()
    """Batch sizes that one plan takes, tuned for OPT; several triples make as many profiles: 1,1,1 4,8,32."""
    workspace: Annotated[str | None, Flag("SIZE")] = None
    """Scratch memory that a layer may use, such as 512MiB or 4GiB; by default the whole device."""
    opt_level: Annotated[int, Flag("N", least=0, most=5)] = 3
    """Effort of the builder: 0 builds fastest, 5 looks longest for fast kernels."""
    timing_cache: Annotated[str, Flag("DIR|none")] = ""
    """Folder of kernel timings kept for the next build on this GPU, by default
    ~/.cache/large2small/timing."""
    hardware_compat: Literal["none", "ampere_plus", "same_cc"] = "none"
    """Other GPUs the plan must run on: any from Ampere on, or any of the same compute capability. Slower than
    a plan for this GPU alone."""
    version_compat: bool = False
    """Let later TensorRT versions run the plan."""
    strip_weights: bool = False
    """Leave the weights out of the plan; they are read from the ONNX file beside it when it is opened."""
    sparsity: bool = False
    """Use 2:4 sparse kernels where the weights allow it."""
    tf32: bool = True
    """Let fp32 layers multiply in TF32."""
    rebuild: Annotated[bool, Flag(common=True)] = False
    """Build the given plan again for this machine, from the ONNX file beside it, with the settings it was
    built with."""


@dataclass(frozen=True)
class TrtOptions(Int8Options, BuildOptions, FileOptions):
    """Plan. The help shows the flags of FileOptions first."""

    checkpoint: Annotated[Path, Flag("CKPT_OR_ONNX", positional=True)]
    """Checkpoint (with --int8, --fp16 as for export onnx), an .onnx file, or with --rebuild a plan."""
    output: Annotated[Path | None, Flag("FILE", aliases=("-o",), common=True)] = None
    """Plan to write; by default NAME.plan, NAME.int8.plan or NAME.int8.fp16.plan beside the source."""

    @property
    def from_onnx(self) -> bool:
        return self.checkpoint.suffix == ".onnx"

    @property
    def onnx_options(self) -> OnnxOptions:
        """The same for `distill export onnx`."""
        shared = {
            field.name: getattr(self, field.name)
            for field in fields(OnnxOptions)
            if hasattr(self, field.name)
        }
        return OnnxOptions(
            **shared | {"placement": "tensorrt", "output": self.output and self.output.with_suffix(".onnx")}
        )

    @property
    def target(self) -> Path:
        """The plan to write."""
        if self.rebuild:
            return self.output or self.checkpoint
        return self.output or (self.checkpoint if self.from_onnx else self.onnx_options.target).with_suffix(
            ".plan"
        )


def settings_of(options: TrtOptions) -> Settings:
    """The build's settings. Raises UsageError or MissingError for what can be seen to be wrong before
    anything is read.
    """
    if not options.checkpoint.is_file() and not options.rebuild:
        is_onnx = options.checkpoint.suffix == ".onnx"
        raise (files.no_artifact if is_onnx else files.no_checkpoint)(options.checkpoint)
    if options.rebuild and options.checkpoint.suffix != ".plan":
        raise UsageError(f"--rebuild {options.checkpoint}: expected a .plan file")
    if options.target.suffix != ".plan":
        raise UsageError(f"--output {options.target}: expected a name that ends in .plan")
    if not (options.rebuild and is_same(options.target, options.checkpoint)):
        files.refuse_existing(options.target, options.overwrite)
    files.require_writable(options.target)
    if options.from_onnx and (options.int8 or options.fp16):
        raise UsageError(
            f"{options.checkpoint}: an .onnx file has its precision already; --int8 and --fp16 are for"
            " checkpoints. Leave them out, or give the checkpoint"
        )
    if options.checkpoint.suffix in (".onnx", ".plan"):
        unread = ["checkpoint_key"] * bool(options.checkpoint_key) + [
            f.name
            for f in fields(Int8Options)
            if f.name not in BUDGETS and getattr(options, f.name) != f.default
        ]
        if unread:
            raise UsageError(f"--{unread[0].replace('_', '-')} is only read for a checkpoint. Leave it out")
    elif not options.rebuild:
        check_onnx(options.onnx_options)
    if options.batch is not None and options.dynamic:
        raise UsageError("--batch is for a plan of one size and --dynamic for several. Give one of them")
    one_size = options.batch or 1
    profiles = tuple(parse_profile(text) for text in options.dynamic) or (
        Profile(one_size, one_size, one_size),
    )
    build.check_profiles(profiles)
    flavor = installed_flavor() if options.flavor == "auto" else options.flavor
    if flavor == "tensorrt" and options.checkpoint.suffix not in (".onnx", ".plan"):
        build.check_opset(
            options.opset, str(plan.tensorrt_module(flavor).__version__)
        )  # not after the whole export
    if find_spec("onnxruntime") is None and isinstance(driver.find(), driver.Driver):
        raise MissingError(
            "where a GPU is, a plan is compared with its ONNX file before it is written, by ONNX Runtime."
            ' Install it: pip install "large2small[cpu]"'
        )
    if flavor == "rtx" and options.hardware_compat != "none":
        raise UsageError(
            "--hardware-compat: plans of TensorRT for RTX choose their kernels on the user's GPU. Leave"
            " it out"
        )
    return Settings(
        flavor,
        profiles,
        parse_size(options.workspace),
        options.opt_level,
        options.hardware_compat,
        options.version_compat,
        options.strip_weights,
        options.sparsity,
        options.tf32,
    )


def installed_flavor() -> str:
    """tensorrt or rtx, whichever is here, tensorrt first. Raises MissingError when neither is."""
    for flavor in ("tensorrt", "rtx"):
        try:
            plan.tensorrt_module(flavor)
        except MissingError:
            continue
        return flavor
    raise MissingError(
        'export trt needs TensorRT. Install it: pip install "large2small[tensorrt]", or without a GPU '
        'pip install "large2small[rtx]"'
    )


def parse_profile(text: str) -> Profile:
    """'1,8,32' -> Profile(1, 8, 32). Raises UsageError for anything but three whole numbers."""
    if not re.fullmatch(r"\d{1,9},\d{1,9},\d{1,9}", text):
        raise UsageError(f"--dynamic {text}: expected MIN,OPT,MAX batch sizes, such as 1,8,32")
    return Profile(*map(int, text.split(",")))


def parse_size(text: str | None) -> int | None:
    """'4GiB' -> bytes; MiB, KiB and plain bytes too, and the short forms 4G, 512M. Raises UsageError."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)\s*([KMG]?)(?:i?B)?", text, re.IGNORECASE)
    if not found or int(float(found[1]) * UNITS[found[2].upper()]) < 1:
        raise UsageError(f"--workspace {text}: expected a size above 0 such as 512MiB or 4GiB")
    return int(float(found[1]) * UNITS[found[2].upper()])


def as_it_was_built(options: TrtOptions) -> TrtOptions:
    """For --rebuild: the options with the settings that the plan's metadata names."""
    path = options.checkpoint
    if path.suffix != ".plan":
        raise UsageError(f"--rebuild {path}: expected a .plan file")
    built = read_sidecar(path).engine
    if built is None:
        raise ArtifactError(
            f"{sidecar_of(path)}: does not say how the plan was built. Build it from the ONNX file: "
            "distill export trt STUDENT.onnx"
        )
    flags, profiles = built.flags, [Profile(**sizes) for sizes in built.profiles or ()]
    settings = {
        name: getattr(flags, name)
        for name in ("opt_level", "hardware_compat", "version_compat", "strip_weights", "sparsity", "tf32")
    }
    unknown = [name for name, value in settings.items() if value is None]
    flavors: dict[str | None, Literal["tensorrt", "rtx"]] = {"tensorrt": "tensorrt", "rtx": "rtx"}
    unknown += ["flavor"] * (built.flavor not in flavors) + ["profiles"] * (not profiles)
    if unknown:
        raise ArtifactError(
            f"{sidecar_of(path)}: does not say all of how the plan was built (no {', '.join(unknown)})."
            " Build it from the ONNX file: distill export trt STUDENT.onnx"
        )
    is_static = len(profiles) == 1 and profiles[0].min == profiles[0].max
    return replace(
        options,
        flavor=flavors[built.flavor],
        batch=profiles[0].opt if is_static else None,
        dynamic=() if is_static else tuple(",".join(map(str, sizes)) for sizes in profiles),
        workspace=None if flags.workspace_bytes is None else str(flags.workspace_bytes),
        **settings,
    )


def onnx_of(path: Path) -> Path:
    """The ONNX file that the plan was built from, beside it. Raises ArtifactError where it is not, or is
    another.
    """
    built = read_sidecar(path).engine
    recorded = built.onnx if built else None
    if recorded is None or not recorded.file:
        raise ArtifactError(
            f"{sidecar_of(path)}: does not name the ONNX file that the plan was built from. Build the"
            " plan from the ONNX file: distill export trt STUDENT.onnx"
        )
    onnx = path.with_name(Path(recorded.file).name)
    if not onnx.is_file():
        raise ArtifactError(
            f"{onnx}: what {path.name} was built from is not beside it. Copy it there, or export again"
        )
    if files.sha256(onnx) != recorded.sha256:
        raise ArtifactError(
            f"{onnx}: not what {path.name} was built from (SHA-256 differs). Copy it again, or export again"
        )
    return onnx


def is_same(one: Path, other: Path) -> bool:
    """Do both paths lead to one file?"""
    return one.resolve() == other.resolve()
