"""A whole export to TensorRT: source, build, checks on the GPU, files.

In:  a `TrtOptions`.
Out: NAME.plan, NAME.plan.json and NAME.onnx; or an error, and no plan.
Elsewhere: the ONNX file (export.stages.source), building (export.trt.process), checks (export.trt.check),
what became of the layers (export.trt.layers).
"""

from __future__ import annotations

import hashlib
import platform
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from runtime import env, files
from runtime.artifact import Metadata, sidecar_bytes, sidecar_of
from runtime.cli.terminal import loading
from runtime.errors import GateError
from runtime.records import EngineCheck, EngineFlags, EngineRecord, FileHash

from ..checks import samples
from ..options.trt import TrtOptions, is_same, onnx_of
from ..trt import check, layers, process
from ..trt.build import Settings
from ..trt.process import Finished
from .exported import Exported
from .source import Source, open_source


@dataclass(frozen=True)
class BuiltPlan:
    """A plan as TensorRT gave it, not yet written, and what is known about it."""

    content: bytes
    meta: Metadata


def export(options: TrtOptions, settings: Settings) -> BuiltPlan:
    """Export, build, check, write. Raises, and leaves no plan, when a check fails."""
    options = from_its_onnx(options) if options.rebuild else options
    folder = files.existing(options.target.parent)
    about = loading(f"building {options.target.name}")
    with files.scratch_folder(folder) as scratch, about:
        source = open_source(options, scratch)
        is_missing_beside(options, source)  # says now, before the long build, what writing would say
        finished = process.build(source.onnx, settings, options.timing_cache)
        unchecked = BuiltPlan(finished.plan, plan_metadata(source, settings, finished))
        built = run_on_gpu(unchecked, source, scratch / options.target.name, options)
        write(options, source, built)
    return built


def from_its_onnx(options: TrtOptions) -> TrtOptions:
    """For --rebuild: the same with the ONNX file that the plan was built from as source."""
    return replace(
        options,
        checkpoint=onnx_of(options.checkpoint),
        output=options.target,
        rebuild=False,
        overwrite=options.overwrite or is_same(options.target, options.checkpoint),
    )


def plan_metadata(source: Source, settings: Settings, finished: Finished) -> Metadata:
    """The plan's metadata: its ONNX file's, and how it was built."""
    about, sha256 = finished.about, files.sha256(source.onnx)
    chosen = asdict(settings)
    flags = {each.name: chosen[each.name] for each in fields(EngineFlags) if each.name in chosen}
    warnings = layers.sentences(about["layers"], source.meta.precision) if about["layers"] else []
    if settings.strip_weights and "int8" in source.meta.precision:
        warnings.append(
            "weights can be refitted, so scales of neighboring layers are not merged: int8 may be slower"
        )
    built = EngineRecord(
        flavor=settings.flavor,
        version=about["version"],
        plan_sha256=hashlib.sha256(finished.plan).hexdigest(),
        plan_bytes=len(finished.plan),
        platform=f"{platform.system()} {platform.machine()}",
        gpu=about["gpu"],
        compute_capability=about["compute_capability"],
        driver=about["driver"],
        inputs=about["inputs"],
        outputs=about["outputs"],
        profiles=[profile._asdict() for profile in settings.profiles],
        flags=EngineFlags(**flags, workspace_bytes=settings.workspace),
        onnx=FileHash(file=source.onnx.name, sha256=sha256),
        layers=about["layers"],
        timing_cache=about["timing_cache"],
        warnings=warnings,
        builder_warnings=about["warnings"],
        state="built, not run",
        build_seconds=about["seconds"],
        build_peak_mib=about["peak_mib"],
    )
    lineage = source.meta.lineage | {"onnx": {"file": source.onnx.name, "sha256": sha256}}
    versions = source.meta.versions | env.versions(env.EXPORT_PACKAGES) | {settings.flavor: about["version"]}
    return replace(source.meta, engine=built, lineage=lineage, versions=versions)


def run_on_gpu(unchecked: BuiltPlan, source: Source, plan: Path, options: TrtOptions) -> BuiltPlan:
    """The plan with the checks of export.trt.check in its metadata, or as it was where no GPU is at hand.

    plan: a path to open it from.
    """
    meta = unchecked.meta
    built = meta.engine
    if built is None or built.gpu is None:
        return unchecked
    plan.write_bytes(unchecked.content)
    sidecar_of(plan).write_bytes(sidecar_bytes(meta))
    if built.flags.strip_weights:
        plan.with_name(source.onnx.name).write_bytes(source.onnx.read_bytes())
    images = None
    if source.evaluation is not None and meta.preprocess is not None:
        chosen = samples.choose(source.evaluation.labels, options.accuracy_size, options.seed)
        labels = source.evaluation.labels[chosen]
        pairs = samples.batches(
            source.evaluation, chosen, meta.preprocess, about="the engine on labeled images"
        )
        images = check.Images((batch for batch, _ in pairs), labels)
    budgets = check.Budgets(options.max_drop, options.min_agreement or 0.0)
    try:
        found = check.check(check.Pair(plan, source.onnx, meta), images, budgets)
    except GateError as error:
        stays = options.target if source.place else source.onnx
        raise GateError(f"{error}. {stays} stays") from error
    warnings = []
    if images is None:
        why = (
            "no labeled images (--data DIR)"
            if source.evaluation is None
            else "the ONNX file does not say how images are preprocessed"
        )
        warnings = [f"accuracy was not measured: {why}"]
    checked = replace(
        meta,
        engine=replace(built, state="run", warnings=[*built.warnings, *warnings]),
        verification=replace(meta.verification, engine=found),
    )
    return replace(unchecked, meta=checked)


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


def write(options: TrtOptions, source: Source, built: BuiltPlan) -> None:
    """Plan, metadata, and the ONNX file when it is elsewhere."""
    if source.place:
        source.place()
    elif is_missing_beside(options, source):
        files.write_bytes(options.target.with_name(source.onnx.name), source.onnx.read_bytes())
    files.write_bytes(options.target, built.content)
    files.write_bytes(sidecar_of(options.target), sidecar_bytes(built.meta))


def exported(options: TrtOptions, meta: Metadata) -> Exported:
    """What was written, and measured on the way."""
    found = figures(options, meta)
    checked = meta.verification.engine or EngineCheck()
    return Exported(
        options.target, meta.precision, found["size_bytes"], checked.top1, checked.drop, meta, found
    )


def print_result(options: TrtOptions, written: Exported) -> None:
    """Print the result; with --json one object."""
    if options.json:
        print(files.json_text(written.figures))
    else:
        layers.show(written.path, written.metadata)


def figures(options: TrtOptions, meta: Metadata) -> dict[str, Any]:
    """The result as JSON values."""
    built, checked = meta.engine or EngineRecord(), meta.verification.engine or EngineCheck()
    shown = ("flavor", "version", "gpu", "compute_capability", "driver", "profiles", "layers", "warnings")
    return {
        "output": str(options.target),
        "sidecar": str(sidecar_of(options.target)),
        "onnx": str(options.target.with_name((built.onnx and built.onnx.file) or "")),
        "precision": meta.precision,
        "model": meta.model,
        "size_bytes": built.plan_bytes,
        "sha256": built.plan_sha256,
        **{
            name: getattr(built, name)
            for name in (*shown, "state", "build_seconds", "build_peak_mib", "timing_cache")
        },
        "top1_percent": checked.top1,
        "onnx_top1_percent": checked.onnx_top1,
        "drop_points": checked.drop,
        "agreement_percent": checked.agreement,
    }
