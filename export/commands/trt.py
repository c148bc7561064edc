"""`distill export trt`: a checkpoint, or an ONNX file, becomes a TensorRT plan with its metadata and its ONNX
file beside it.

In:  a checkpoint and what `distill export onnx` needs; or an .onnx file; or with --rebuild a plan that no
longer fits.
Out: NAME.plan, NAME.plan.json, NAME.onnx; or one error line and no plan.
Elsewhere: the ONNX file (export.commands.onnx), building (export.trt.process), checks on the GPU
(export.trt.check).
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from runtime import env, files
from runtime.artifact import (
    Metadata,
    check_file,
    read_sidecar,
    require_same_classes,
    sidecar_bytes,
    sidecar_of,
)
from runtime.backends.tensorrt import driver, plan
from runtime.cli import flags
from runtime.cli.settings import Flag
from runtime.errors import ArtifactError, GateError, MissingError, UsageError
from runtime.images import ImageSet, open_images

from ..options import Int8Options, check_sizes, note
from ..trt import build
from ..trt.build import Profile, Settings
from . import onnx
from .onnx import PACKAGES, FileOptions, OnnxOptions

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}

SUMMARY = "build a TensorRT plan from a checkpoint or an ONNX file"
DESCRIPTION = """The ONNX file stays beside the plan.
TensorRT builds where the NVIDIA GPU is; --flavor rtx (TensorRT for RTX) builds anywhere.

examples:
  {prog} --int8 --fp16 best.pth
  {prog} --int8 best.pth --dynamic 1,8,32 --workspace 2GiB
  {prog} student.int8.onnx --flavor rtx
  {prog} --rebuild student.plan --data data/val"""


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """TensorRT: how the plan is built."""

    flavor: Literal["auto", "tensorrt", "rtx"] = "auto"
    """Builder: tensorrt, or rtx, which is TensorRT for RTX and builds without a GPU; auto takes the one that
    is installed, tensorrt first."""
    batch: Annotated[int | None, Flag("N", aliases=("-b", "--batch-size"), common=True)] = None
    """Images per call of a plan of one size; 1 when neither this nor --dynamic is given."""
    dynamic: Annotated[tuple[str, ...], Flag("MIN,OPT,MAX", common=True)] = ()
    """Batch sizes that one plan takes, tuned for OPT; several triples make as many profiles: 1,1,1 4,8,32."""
    workspace: Annotated[str | None, Flag("SIZE")] = None
    """Scratch memory that a layer may use, such as 512MiB or 4GiB; by default the whole device."""
    opt_level: int = 3
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
class TrtOptions(Int8Options, EngineOptions, FileOptions):
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


@dataclass(frozen=True)
class Source:
    """The ONNX file to build, which exists, and what is known about it."""

    onnx: Path
    meta: Metadata
    held_out: ImageSet | None
    """Labelled images, when there are any."""
    place: Callable[[], None] | None = None
    """Puts the ONNX file where it belongs, when it waits elsewhere."""


Options = TrtOptions


def run(options: TrtOptions) -> None:
    """Write the plan and print what was measured."""
    export_trt(options)


def parse(argv: Sequence[str], prog: str) -> TrtOptions:
    """The flags; with --rebuild over the settings that the plan was built with."""
    description = flags.description(sys.modules[__name__], prog)
    options = flags.parse(TrtOptions, argv, prog, description)
    if not options.rebuild:
        return options
    before = as_it_was_built(options)
    given = flags.parse(TrtOptions, argv, prog, description, before)
    if (
        before.dynamic and given.batch is not None and given.dynamic == before.dynamic
    ):  # one kind takes the other's place
        return replace(given, dynamic=())
    if before.batch is not None and given.dynamic and given.batch == before.batch:
        return replace(given, batch=None)
    return given


def export_trt(options: TrtOptions) -> dict[str, Any]:
    """Export, build, check, write; returns what was measured. Raises, and leaves no plan, when a
    check fails.
    """
    settings = check(options)
    if options.rebuild:
        onnx, is_same = onnx_of(options.checkpoint), _is_same(options.target, options.checkpoint)
        options = replace(
            options,
            checkpoint=onnx,
            output=options.target,
            rebuild=False,
            overwrite=options.overwrite or is_same,
        )
    from ..trt import process  # after the checks: it imports rich and what shows progress

    with tempfile.TemporaryDirectory(
        prefix="large2small-", dir=files.existing(options.target.parent)
    ) as folder:
        source = open_source(options, Path(folder))
        is_missing_beside(options, source)  # says now, before the long build, what writing would say
        finished = process.build(source.onnx, settings, options.timing_cache)
        meta = describe(source, settings, finished)
        meta = run_on_gpu(Path(folder) / options.target.name, source, finished.plan, meta, settings, options)
        write(options, source, finished.plan, meta)
        return report(options, meta)


def check(options: TrtOptions) -> Settings:
    """The build's settings. Raises UsageError or MissingError for what can be seen to be wrong before
    anything is read.
    """
    if not options.checkpoint.is_file() and not options.rebuild:
        raise UsageError(f"{options.checkpoint}: no such checkpoint or .onnx file")
    if options.rebuild and options.checkpoint.suffix != ".plan":
        raise UsageError(f"--rebuild {options.checkpoint}: expected a .plan file")
    if options.target.suffix != ".plan":
        raise UsageError(f"--output {options.target}: expected a name that ends in .plan")
    if not (options.rebuild and _is_same(options.target, options.checkpoint)):
        files.refuse_existing(options.target, options.overwrite)
    files.require_writable(options.target)
    if options.from_onnx and (options.int8 or options.fp16):
        raise UsageError(
            f"{options.checkpoint}: an .onnx file has its precision already; --int8 and --fp16 are for"
            " checkpoints. Leave them out, or give the checkpoint"
        )
    if options.checkpoint.suffix in (".onnx", ".plan"):
        unread = [
            f.name
            for f in fields(Int8Options)
            if f.name not in ("max_drop", "accuracy_size") and getattr(options, f.name) != f.default
        ]
        if unread:
            raise UsageError(f"--{unread[0].replace('_', '-')} is only read for a checkpoint. Leave it out")
    elif not options.rebuild:
        onnx.check(options.onnx_options)
    check_sizes(options)
    if not 0 <= options.opt_level <= 5:
        raise UsageError(f"--opt-level {options.opt_level}: expected 0 to 5")
    if options.batch is not None and options.dynamic:
        raise UsageError("--batch is for a plan of one size and --dynamic for several. Give one of them")
    if options.batch is not None and options.batch < 1:
        raise UsageError(f"--batch {options.batch}: expected 1 or more")
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
    if not re.fullmatch(r"\d+,\d+,\d+", text):
        raise UsageError(f"--dynamic {text}: expected MIN,OPT,MAX batch sizes, such as 1,8,32")
    return Profile(*map(int, text.split(",")))


def parse_size(text: str | None) -> int | None:
    """'4GiB' -> bytes; MiB, KiB and plain bytes too, and the short forms 4G, 512M. Raises UsageError."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)(?:i?B)?", text, re.IGNORECASE)
    if not found or int(float(found[1]) * UNITS[found[2].upper()]) < 1:
        raise UsageError(f"--workspace {text}: expected a size above 0 such as 512MiB or 4GiB")
    return int(float(found[1]) * UNITS[found[2].upper()])


def as_it_was_built(options: TrtOptions) -> TrtOptions:
    """For --rebuild: the options with the settings that the plan's metadata names."""
    path = options.checkpoint
    if path.suffix != ".plan":
        raise UsageError(f"--rebuild {path}: expected a .plan file")
    built = read_sidecar(path).engine
    if not built:
        raise ArtifactError(
            f"{sidecar_of(path)}: does not say how the plan was built. Build it from the ONNX file: "
            "distill export trt STUDENT.onnx"
        )
    try:
        flags = built["flags"]
        profiles = [Profile(**sizes) for sizes in built["profiles"]]
        settings = {
            name: flags[name]
            for name in (
                "opt_level",
                "hardware_compat",
                "version_compat",
                "strip_weights",
                "sparsity",
                "tf32",
            )
        }
        for name, value in settings.items():
            if type(value) is not type(getattr(Settings(), name)):
                raise TypeError(f"{name} is {value!r}")
        workspace = flags["workspace_bytes"]
        is_static = len(profiles) == 1 and profiles[0].min == profiles[0].max
        return replace(
            options,
            flavor=built["flavor"],
            batch=profiles[0].opt if is_static else None,
            dynamic=() if is_static else tuple(",".join(map(str, sizes)) for sizes in profiles),
            workspace=None if workspace is None else str(workspace),
            **settings,
        )
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ArtifactError(
            f"{sidecar_of(path)}: does not say all of how the plan was built, or in the words of another"
            f" version ({type(error).__name__}: {error}). Build it from the ONNX file: distill export trt"
            " STUDENT.onnx"
        ) from error


def onnx_of(path: Path) -> Path:
    """The ONNX file that the plan was built from, beside it. Raises ArtifactError where it is not, or is
    another.
    """
    recorded = (read_sidecar(path).engine or {})["onnx"]
    onnx = path.with_name(recorded["file"])
    if not onnx.is_file():
        raise ArtifactError(
            f"{onnx}: what {path.name} was built from is not beside it. Copy it there, or export again"
        )
    if files.sha256(onnx) != recorded["sha256"]:
        raise ArtifactError(
            f"{onnx}: not what {path.name} was built from (SHA-256 differs). Copy it again, or export again"
        )
    return onnx


def _is_same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def open_source(options: TrtOptions, folder: Path) -> Source:
    """The ONNX file, exported first when the source is a checkpoint. Raises ArtifactError for one that
    TensorRT refuses.

    Where a plan stands already, the ONNX file it needs is not replaced before the new plan is there to
    follow: the exported one then waits in `folder`.
    """
    if not options.from_onnx:
        inner = options.onnx_options
        made = onnx.make(inner)
        if options.target.exists():
            waiting = folder / inner.target.name
            files.write_bytes(waiting, made.content)
            return Source(waiting, made.meta, made.held_out, lambda: onnx.write(inner, made))
        onnx.write(inner, made)
        note(f"{inner.target}: the portable ONNX file, checked; it stays")
        return Source(inner.target, made.meta, made.held_out)
    meta = read_onnx(options.checkpoint)
    if (meta.quantization or {}).get("placement") == "cpu":
        raise ArtifactError(
            f"{options.checkpoint}: its Q/DQ is placed for CPU engines (uint8 zero points), refused by"
            " TensorRT. Export it again: distill export onnx --int8 --placement tensorrt CKPT"
        )
    held_out = None
    if options.data:
        held_out = open_images(
            options.data, "val"
        )  # not those of timm: a board that builds plans has no torch
        require_same_classes(meta.class_names, str(options.checkpoint), held_out.class_names, held_out.name)
    return Source(options.checkpoint, meta, held_out)


def read_onnx(path: Path) -> Metadata:
    """What an .onnx file says about itself, its seal checked."""
    import onnx

    from runtime.artifact import read_map

    check_file(path)
    try:
        model = onnx.load(str(path))
    except Exception as error:  # protobuf's DecodeError and others without a public base
        raise ArtifactError(
            f"{path}: not an ONNX file ({type(error).__name__}). Expected .onnx, or a checkpoint"
        ) from error
    return read_map({entry.key: entry.value for entry in model.metadata_props}, str(path))


def describe(source: Source, settings: Settings, finished: Any) -> Metadata:
    """The plan's metadata: its ONNX file's, and how it was built."""
    from ..trt import layers

    about, sha256 = finished.about, files.sha256(source.onnx)
    flags = {
        name: value
        for name, value in asdict(settings).items()
        if name not in ("flavor", "profiles", "workspace")
    }
    warnings = layers.sentences(about["layers"], source.meta.precision) if about["layers"] else []
    if settings.strip_weights and "int8" in source.meta.precision:
        warnings.append(
            "weights can be refitted, so scales of neighbouring layers are not merged: int8 may be slower"
        )
    built = {
        "flavor": settings.flavor,
        "version": about["version"],
        "plan_sha256": hashlib.sha256(finished.plan).hexdigest(),
        "plan_bytes": len(finished.plan),
        "platform": f"{platform.system()} {platform.machine()}",
        **{key: about[key] for key in ("gpu", "compute_capability", "driver")},
        "inputs": about["inputs"],
        "outputs": about["outputs"],
        "profiles": [profile._asdict() for profile in settings.profiles],
        "flags": flags | {"workspace_bytes": settings.workspace},
        "onnx": {"file": source.onnx.name, "sha256": sha256},
        "layers": about["layers"],
        "timing_cache": about["timing_cache"],
        "warnings": warnings,
        "builder_warnings": about["warnings"],
        "state": "built, not run",
        "build_seconds": about["seconds"],
        "build_peak_mib": about["peak_mib"],
    }
    lineage = source.meta.lineage | {"onnx": {"file": source.onnx.name, "sha256": sha256}}
    versions = source.meta.versions | env.versions(PACKAGES) | {settings.flavor: about["version"]}
    return replace(source.meta, engine=built, lineage=lineage, versions=versions)


def run_on_gpu(
    plan: Path, source: Source, content: bytes, meta: Metadata, settings: Settings, options: TrtOptions
) -> Metadata:
    """The metadata with the checks of export.trt.check in it, or as it was where no GPU is at hand."""
    built = meta.engine or {}
    if built["gpu"] is None:
        return meta
    from ..checks import samples
    from ..trt import check

    plan.write_bytes(content)
    sidecar_of(plan).write_bytes(sidecar_bytes(meta))
    if settings.strip_weights:
        plan.with_name(source.onnx.name).write_bytes(source.onnx.read_bytes())
    batches = labels = None
    if source.held_out is not None and meta.preprocess is not None:
        chosen = samples.choose(source.held_out.labels, options.accuracy_size, options.seed)
        labels = source.held_out.labels[chosen]
        pairs = samples.batches(
            source.held_out, chosen, meta.preprocess, about="the engine on labelled images"
        )
        batches = (batch for batch, _ in pairs)
    try:
        found = check.check(plan, source.onnx, meta, batches, labels, options.max_drop)
    except GateError as error:
        stays = options.target if source.place else source.onnx
        raise GateError(f"{error}. {stays} stays") from error
    warnings = []
    if labels is None:
        why = (
            "no labelled images (--data DIR)"
            if source.held_out is None
            else "the ONNX file does not say how images are preprocessed"
        )
        warnings = [f"accuracy was not measured: {why}"]
    return replace(
        meta,
        engine=built | {"state": "run", "warnings": [*built["warnings"], *warnings]},
        verification=meta.verification | {"engine": found},
    )


def is_missing_beside(options: TrtOptions, source: Source) -> bool:
    """Must the ONNX file still be put beside the plan? Raises UsageError where another one has its name,
    unless --overwrite.
    """
    beside = options.target.with_name(source.onnx.name)
    if beside.exists():
        if files.sha256(beside) == files.sha256(source.onnx):
            return False
        files.refuse_existing(beside, options.overwrite)
    return True


def write(options: TrtOptions, source: Source, plan: bytes, meta: Metadata) -> None:
    """Plan, metadata, and the ONNX file when it lies elsewhere."""
    if source.place:
        source.place()
    elif is_missing_beside(options, source):
        files.write_bytes(options.target.with_name(source.onnx.name), source.onnx.read_bytes())
    files.write_bytes(options.target, plan)
    files.write_bytes(sidecar_of(options.target), sidecar_bytes(meta))


def report(options: TrtOptions, meta: Metadata) -> dict[str, Any]:
    """Print the result; with --json one object. Returns the object."""
    built = meta.engine or {}
    checked = meta.verification.get("engine") or {}
    result = {
        "output": str(options.target),
        "sidecar": str(sidecar_of(options.target)),
        "onnx": str(options.target.with_name(built["onnx"]["file"])),
        "precision": meta.precision,
        "model": meta.model,
        "size_bytes": built["plan_bytes"],
        "sha256": built["plan_sha256"],
        **{
            key: built[key]
            for key in (
                "flavor",
                "version",
                "gpu",
                "compute_capability",
                "driver",
                "profiles",
                "layers",
                "warnings",
                "state",
                "build_seconds",
                "build_peak_mib",
                "timing_cache",
            )
        },
        "top1_percent": checked.get("top1"),
        "onnx_top1_percent": checked.get("onnx_top1"),
        "drop_points": checked.get("drop"),
        "agreement_percent": checked.get("agreement"),
    }
    if options.json:
        print(json.dumps(result))
    else:
        from ..trt import layers

        layers.show(options.target, meta)
    return result
