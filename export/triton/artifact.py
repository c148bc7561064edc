"""What Triton must know about an artifact: a plan with its metadata beside it, or an .onnx file.

In:  a path and its SHA-256.
Out: a `Model`; ArtifactError for a file that cannot be served.
Elsewhere: how it is to be served (export.triton.serving), the files (export.triton.repository).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runtime import files
from runtime.artifact import Metadata, read_map, read_sidecar
from runtime.errors import ArtifactError
from runtime.records import EngineRecord

from ..notes import note
from .repository import Model, Tensor


def read_plan(path: Path, sha256: str) -> Model:
    """What is served of a plan. Raises ArtifactError when its metadata is another plan's, or Triton cannot
    run it.
    """
    meta = read_sidecar(path)
    engine = meta.engine or EngineRecord()
    needed = ("plan_sha256", "flavor", "version", "state", "inputs", "outputs", "profiles")
    missing = [name for name in needed if getattr(engine, name) is None]
    missing += [each for each in ("strip_weights", "version_compat") if getattr(engine.flags, each) is None]
    if missing:
        raise ArtifactError(
            f"{path}.json: does not say {missing[0]!r} of the plan. Build it again: distill export trt"
            f" --rebuild {path}"
        )
    require_servable(path, sha256, engine)
    if engine.state != "run":
        note(f"{path} is {engine.state}: nothing is known yet about its answers on a GPU")
    if engine.flags.version_compat:
        note(
            "start the server with --backend-config=tensorrt,version-compatible=true: the plan was built with"
            " --version-compat"
        )
    return Model(
        path,
        _recorded(engine.inputs, path),
        _recorded(engine.outputs, path),
        meta.class_names,
        parameters(meta, sha256) | {"large2small.tensorrt": str(engine.version)},
        engine.profiles or [],
    )


def require_servable(path: Path, sha256: str, engine: EngineRecord) -> None:
    """Raise ArtifactError when the metadata is another plan's, or Triton cannot run the plan."""
    recorded = engine.plan_sha256 or ""
    if recorded != sha256:
        raise ArtifactError(
            f"{path}: not the plan that {path.name}.json describes (SHA-256 {sha256[:12]}..., expected "
            f"{recorded[:12]}...). Copy both files again, or distill export trt --rebuild {path}"
        )
    if engine.flavor != "tensorrt":
        source = (engine.onnx and engine.onnx.file) or "STUDENT.onnx"
        raise ArtifactError(
            f"{path}: built by TensorRT for RTX; Triton runs TensorRT's plans. Build it again: "
            f"distill export trt {source} --flavor tensorrt"
        )
    if engine.flags.strip_weights:
        raise ArtifactError(
            f"{path}: its weights are not in it, and Triton does not put them in. Build it again without "
            "--strip-weights"
        )


def _recorded(tensors: list[dict[str, Any]] | None, path: Path) -> list[Tensor]:
    """Inputs or outputs as the plan's metadata names them."""
    try:
        return [Tensor(each["name"], each["dtype"], tuple(each["shape"])) for each in tensors or ()]
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path}.json: does not say {error} of a tensor. Build it again: distill export trt"
            f" --rebuild {path}"
        ) from error


def read_onnx(path: Path, sha256: str) -> Model:
    """What is served of an ONNX file. Raises ArtifactError when it was changed, or Triton would not run it as
    verified.
    """
    from ..graph.read import read_onnx as read_whole

    model = read_whole(path)
    weights = {each.name for each in model.graph.initializer}
    inputs = [each for each in model.graph.input if each.name not in weights]
    if not inputs or not model.graph.output:  # such as an empty file, which is a message too
        raise ArtifactError(
            f"{path}: not a network: it has {len(inputs)} inputs and {len(model.graph.output)} outputs. Copy"
            " it again from its source, or export again: distill export onnx CKPT"
        )
    meta = read_map({each.key: each.value for each in model.metadata_props}, str(path))
    if meta.precision == "int8+fp16":
        raise ArtifactError(
            f"{path}: int8 with fp16. ONNX Runtime makes int32 biases of it that overflow, unless it is told"
            f" not to, which Triton cannot. Serve it as a plan: distill export trt {path}"
        )
    return Model(
        path,
        [_tensor(each, path) for each in inputs],
        [_tensor(each, path) for each in model.graph.output],
        meta.class_names,
        parameters(meta, sha256),
    )


def _tensor(value: Any, path: Path) -> Tensor:
    import onnx

    kind = value.type.tensor_type
    dtype = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.FLOAT16: "float16"}.get(kind.elem_type)
    shape = tuple(
        each.dim_value if each.WhichOneof("value") == "dim_value" else -1 for each in kind.shape.dim
    )
    if dtype is None or not shape:
        raise ArtifactError(
            f"{path}: {value.name} is {onnx.TensorProto.DataType.Name(kind.elem_type)} {shape}; expected"
            " float tensors with the batch first"
        )
    return Tensor(value.name, dtype, shape)


def parameters(meta: Metadata, sha256: str) -> dict[str, str]:
    """What the config keeps about where the model comes from and how it is fed; only what is known."""
    known = {"preprocess": meta.preprocess and meta.preprocess.to_dict(), "lineage": meta.lineage}
    words = {
        "sha256": sha256,
        "precision": None if meta.precision == "unknown" else meta.precision,
        "model": meta.model,
        **{name: files.json_text(value, sort_keys=True) for name, value in known.items() if value},
    }
    return {f"large2small.{name}": value for name, value in words.items() if value}
