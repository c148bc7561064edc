"""What a file says and shows: an .onnx file (ours or foreign), a plan or a checkpoint.

In:  a path; whether its seal holds.
Out: its contents as JSON values, with warnings.
Elsewhere: the seal (runtime.artifact), ancestors (export.inspection.lineage), precision
(export.graph.precision), showing it (export.inspection.report).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from runtime import env, files
from runtime.artifact import Metadata, check_file, read_sidecar
from runtime.backends import metadata_of
from runtime.backends.onnx_file import metadata_props
from runtime.cli.terminal import loading
from runtime.errors import ArtifactError, MissingError, UsageError
from runtime.records import EngineRecord, Quantization

from . import lineage

CHECKPOINTS = (".pth", ".pt", ".th", ".safetensors", ".bin", ".ckpt", ".tar")


NO_ONNX = (
    'the operators of the graph are not shown, for which the package onnx is needed: pip install "large2small'
    '[export]"'
)

NOTABLE_DROP = 1.0
"""Points of top-1 from which a recorded loss is pointed out."""


SAFE_OPSET = 19
"""Highest opset that TensorRT 10.3 of JetPack 6 reads without exception."""


SHOWN = 8
"""Entries of a list that are printed; the others are counted."""


def inspect_onnx(path: Path, seal: str) -> dict[str, Any]:
    """Everything the file says, and what its graph shows where the package onnx is installed. Raises
    ArtifactError when it is not an ONNX file.
    """
    if importlib.util.find_spec("onnx") is None:
        meta = metadata_of(metadata_props(path), path)
        graph, more = None, [NO_ONNX]
    else:
        meta, graph = _with_graph(path)
        more = _graph_warnings(meta, graph)
    ours = meta.precision != "unknown"
    return {
        "file": str(path),
        "kind": "artifact" if ours else "foreign ONNX",
        "sha256": files.sha256(path),
        "size_bytes": path.stat().st_size,
        "seal": seal,
        "metadata": meta.to_dict(),
        "graph": graph,
        "warnings": [*_seal_warnings(seal, ours), *_unknown(meta), *more, *warnings_of(meta)],
    }


def _with_graph(path: Path) -> tuple[Metadata, dict[str, Any]]:
    """The metadata, and the operators, inputs and outputs of the graph."""
    from ..graph import precision, read

    model = read.read_onnx(path, check=False)  # what its seal says is shown beside it
    meta = metadata_of({entry.key: entry.value for entry in model.metadata_props}, path)
    rows = precision.table(model, meta.preprocess.input_size[1:] if meta.preprocess else None)
    graph = {
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "ir_version": model.ir_version,
        "producer": " ".join(part for part in (model.producer_name, model.producer_version) if part) or None,
        "inputs": _values(model.graph.input, {tensor.name for tensor in model.graph.initializer}),
        "outputs": _values(model.graph.output, set()),
        "operators": [row.to_dict() for row in rows],
        "conversions": precision.conversions(model),
        "macs_percent": precision.shares(rows),
    }
    return meta, graph


def inspect_plan(path: Path, seal: str) -> dict[str, Any]:
    """What is beside a plan, and what its first bytes say. Raises ArtifactError when it is not a plan or
    has nothing beside it.
    """
    from runtime.backends.tensorrt import plan

    header, meta = plan.header(path), read_sidecar(path)
    built = meta.engine or EngineRecord()
    version = ".".join(map(str, header.version)) if header.version else built.version or "unknown"
    return {
        "file": str(path),
        "kind": f"plan of {plan.PRODUCTS[header.flavor]} {version}",
        "sha256": files.sha256(path),
        "size_bytes": path.stat().st_size,
        "seal": seal,
        "metadata": meta.to_dict(),
        "graph": None,
        "warnings": [*built.warnings, *warnings_of(meta)],
    }


def inspect_checkpoint(path: Path, seal: str | None, entry: str = "") -> dict[str, Any]:
    """What a checkpoint holds besides its weights. entry: of a foreign file, where its weights are. Raises
    MissingError without torch, UsageError for the entry of a file of this project.
    """
    checkpoints = _reader(path)

    values = checkpoints.read_file(path, checked=False)  # a damaged one is reported, not refused
    ours = checkpoints.MARK in values
    notes: list[str] = []
    if ours and entry:
        raise UsageError(f"--checkpoint-key {entry}: {path} is a checkpoint of this project. Leave it out")
    if ours:
        found = checkpoints.from_values(values, path)
        weights, about = found.state_dict, checkpoints.describe(found)
        about |= {"resumable": found.state is not None, "trained_int8": _trained(found.quantized)}
    else:
        weights, converted = checkpoints.unwrap(values, str(path), entry)
        about = {"lineage": {}, "entries": [str(key) for key in values][:SHOWN], "converted": converted}
        notes.append(
            "weights of another project: no architecture, preprocessing or class names inside. Name it to"
            " every command: --model NAME"
        )
    about.pop("path", None)
    about["tensors"] = len(weights)
    about["parameters"] = sum(
        tensor.numel()
        for name, tensor in weights.items()
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    )
    return {
        "file": str(path),
        "kind": "checkpoint" if ours else "foreign weights",
        "sha256": files.sha256(path),
        "size_bytes": path.stat().st_size,
        "seal": seal,
        "metadata": about,
        "graph": None,
        "warnings": notes + _versions(about["lineage"].get("versions")),
    }


def warnings_of(meta: Metadata) -> list[str]:
    """What the metadata says that its user should know before trusting the file."""
    how, found = meta.quantization or Quantization(), []
    if how.not_for_accuracy:
        found.append("calibrated with random data: for speed tests only, not for accuracy")
    if how.placement == "cpu":
        found.append(
            "cpu placement: TensorRT refuses its uint8 zero points. For NVIDIA devices export again with "
            "--placement tensorrt"
        )
    lowered, name = meta.verification.lowered, meta.precision
    if lowered and (lowered.drop or 0) >= NOTABLE_DROP:
        found.append(
            f"{name} lost {lowered.drop:.2f} points of top-1 against the fp32 student (n={lowered.images})"
        )
    engine = meta.verification.engine
    if engine and (engine.drop or 0) >= NOTABLE_DROP:
        found.append(
            f"the plan lost {engine.drop:.2f} points of top-1 against the fp32 student (n={engine.images})"
        )
    speed = lowered.speed if lowered else None
    if speed and speed.pays is False:
        found.append(
            f"{name} took {speed.ratio:.2f} of fp32's time on {speed.engine} where it was made: it does not"
            " pay there"
        )
    return found + _versions(meta.versions)


def _seal_warnings(seal: str, ours: bool) -> list[str]:
    if not ours:
        return ["not made by large2small: nothing is known about its training, accuracy or preprocessing"]
    return [
        "carries no seal (made before there were any): a changed byte in it is not found. Export it again"
    ] * (seal == "none")


def _unknown(meta: Metadata) -> list[str]:
    unknown = meta.unknown()
    if not unknown:
        return []
    missing = " and no ".join(unknown)
    return [f"carries no {missing}: give them to runtime.load, or export it with distill export onnx"]


def _graph_warnings(meta: Metadata, graph: dict[str, Any]) -> list[str]:
    """Where the graph is not what the metadata or an engine expects."""
    found = []
    counts = {kind: sum(row["count"].get(kind, 0) for row in graph["operators"]) for kind in ("int8", "fp16")}
    for kind, count in counts.items():
        if meta.precision != "unknown" and (kind in meta.precision) != bool(count):
            found.append(f"metadata says {meta.precision}, the graph has {count} {kind} operators")
    opset = graph["opset"].get("ai.onnx", 0)
    if opset > SAFE_OPSET:
        found.append(
            f"opset {opset}: TensorRT 10.3 of JetPack 6 is only sure to read up to {SAFE_OPSET}. For it,"
            f" export with --opset {SAFE_OPSET}"
        )
    return found


def _versions(made_with: Mapping[str, str] | None) -> list[str]:
    here = env.versions(tuple(made_with or ()))
    others = [
        f"{name} {version} (here {here[name]})"
        for name, version in (made_with or {}).items()
        if name in here and here[name] != version
    ]
    return [f"made with {', '.join(others)}: the recorded numbers are those versions'"] if others else []


BROKEN = "broken: "
"""What a finding about a seal begins with when the file is not what was written."""


def is_broken(seal: str | None) -> bool:
    """Does the seal say that the file was changed?"""
    return seal is not None and seal.startswith(BROKEN)


def problem_of(path: Path, seal: str | None, ancestors: Iterable[lineage.Ancestor]) -> str | None:
    """The line for exit code 4."""
    if seal is not None and is_broken(seal):
        return f"{path}: {seal.removeprefix(BROKEN)}"
    wrong = next((ancestor for ancestor in ancestors if ancestor.status == lineage.DIFFERS), None)
    if wrong is None:
        return None
    more = f" ({wrong.note})" if wrong.note else ""
    return (
        f"{path}: {wrong.looked_at} is not the {wrong.what} it was made from{more}. Put the right one there,"
        " or name it: distill inspect --help"
    )


def _seal(path: Path) -> str:
    try:
        return "intact" if check_file(path) else "none"
    except ArtifactError as error:
        return f"broken: {str(error).removeprefix(f'{path}: ')}"


def _plan_seal(path: Path) -> str:
    from runtime.backends.tensorrt import plan

    try:
        plan.require_whole(path)
        return "intact"
    except ArtifactError as error:
        return f"broken: {str(error).removeprefix(f'{path}: ')}"


def checksums(path: Path) -> str | None:
    """What the checksums in a torch file say (distill.checkpoint); None in other formats. Raises MissingError
    without torch.
    """
    return _reader(path).checksums(path)


def _reader(path: Path) -> ModuleType:
    """distill.checkpoint, which reads with torch."""
    if importlib.util.find_spec("torch") is None:
        raise MissingError(
            f"{path}: a checkpoint, which is read with torch, and torch is not installed: pip install"
            ' "large2small[train]". Exported files (.onnx, .plan) are inspected without it'
        )
    with loading("loading torch"):
        from distill import checkpoint as checkpoints
    return checkpoints


def _trained(quantized: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Quantization-aware training in a few words: settings, number of layers and scales, accuracy before."""
    if not quantized:
        return None
    kept = {name: quantized[name] for name in ("settings", "before") if name in quantized}
    return kept | {"layers": len(quantized.get("layers", ())), "scales": len(quantized.get("scales", ()))}


def _values(entries: Any, constants: set[str]) -> list[dict[str, Any]]:
    import onnx

    return [
        {
            "name": value.name,
            "type": onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower(),
            "shape": [place.dim_param or place.dim_value for place in value.type.tensor_type.shape.dim],
        }
        for value in entries
        if value.name not in constants
    ]


ARTIFACTS = {".onnx": (_seal, inspect_onnx), ".plan": (_plan_seal, inspect_plan)}
"""Suffix -> what checks that the file is as it was written, and what reads it."""
