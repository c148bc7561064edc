"""`distill export triton`: an artifact becomes a model in a repository of Triton Inference Server.

In:  a .plan with its metadata beside it, or an .onnx file; how it is to be served.
Out: REPOSITORY/NAME/{config.pbtxt, labels.txt, VERSION/model.plan or model.onnx}, or one error line and
nothing written.
Elsewhere: what the config says, and writing (export.triton.repository).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from runtime import files
from runtime.artifact import Metadata, check_file, read_map, read_sidecar
from runtime.cli.settings import Flag
from runtime.errors import ArtifactError, UsageError

from ..options import note
from ..triton import repository
from ..triton.repository import Model, Serving, Tensor

DEFAULT_MAX_BATCH = 8
"""For an .onnx file of free batch size, which has no limit of its own."""

SUMMARY = "put an artifact into a model repository of Triton Inference Server"
DESCRIPTION = """The input is a preprocessed float batch; how to make it stands in the config's parameters.

examples:
  {prog} student.plan --repository models
  {prog} student.onnx --repository models --name pets --device cpu --max-batch 16 --preferred 4,8"""


@dataclass(frozen=True)
class Options:
    """What to serve and how."""

    artifact: Annotated[Path, Flag("ARTIFACT", positional=True)]
    """Artifact to serve: a .plan built by TensorRT, with its .plan.json beside it, or an .onnx file."""
    repository: Annotated[Path, Flag("DIR")]
    """Folder of the model repository; made when it does not exist."""
    name: str | None = None
    """Name of the model for clients; by default the file's name without its ending."""
    version: int = 1
    """Version to write, 1 or more; Triton serves the highest one it finds."""
    max_batch: int | None = None
    """Largest number of images in one call; by default a plan's own limit, or 8. Not for a file of fixed
    batch size."""
    max_delay_us: Annotated[int | None, Flag("MICROSECONDS")] = None
    """Time a request waits for others to share a call with, 0 or more; 500 when not given."""
    preferred: Annotated[str | None, Flag("N,N,..")] = None
    """Batch sizes to wait for, with commas between; by default those a plan was tuned for."""
    instances: int = 1
    """Copies of the model that run at once (on each GPU), 1 or more."""
    device: Literal["gpu", "cpu"] | None = None
    """Device that Triton runs the model on; by default gpu for .plan and cpu for .onnx."""
    overwrite: bool = False
    """Replace the model's config and this version of it; other versions stay."""
    json: bool = False
    """Print the result as one JSON object and nothing else."""


def run(options: Options) -> None:
    """Write the artifact and print what was measured."""
    export_triton(options)


def export_triton(options: Options) -> dict[str, Any]:
    """Read, check, write, report; returns what was written. Raises, and leaves nothing half-written, when a
    check fails.
    """
    if not options.artifact.is_file():
        raise UsageError(f"{options.artifact}: no such file")
    readers = {".plan": read_plan, ".onnx": read_onnx}
    if options.artifact.suffix not in readers:
        raise UsageError(
            f"{options.artifact}: Triton is given a .plan or an .onnx file. Make one: distill export onnx"
            " CKPT"
        )
    sha256 = files.sha256(options.artifact)
    model = readers[options.artifact.suffix](options.artifact, sha256)
    serving = choose(options, model)
    written = repository.write(options.repository, options.version, model, serving, sha256, options.overwrite)
    return report(options, model, serving, written, sha256)


def read_plan(path: Path, sha256: str) -> Model:
    """What is served of a plan. Raises ArtifactError when its metadata is another plan's, or Triton cannot
    run it.
    """
    meta = read_sidecar(path)
    try:
        return _plan(path, sha256, meta, meta.engine or {})
    except KeyError as missing:
        raise ArtifactError(
            f"{path}.json: does not say {missing} of the plan. Build it again: distill export trt --rebuild "
            f"{path}"
        ) from missing


def _plan(path: Path, sha256: str, meta: Metadata, engine: dict[str, Any]) -> Model:
    if engine["plan_sha256"] != sha256:
        raise ArtifactError(
            f"{path}: not the plan that {path.name}.json describes (SHA-256 {sha256[:12]}..., expected "
            f"{engine['plan_sha256'][:12]}...). Copy both files again, or distill export trt --rebuild {path}"
        )
    if engine["flavor"] != "tensorrt":
        raise ArtifactError(
            f"{path}: built by TensorRT for RTX; Triton runs TensorRT's plans. Build it again: "
            f"distill export trt {engine['onnx']['file']} --flavor tensorrt"
        )
    if engine["flags"]["strip_weights"]:
        raise ArtifactError(
            f"{path}: its weights are not in it, and Triton does not put them in. Build it again without "
            "--strip-weights"
        )
    if engine["state"] != "run":
        note(f"{path} is {engine['state']}: nothing is known yet about its answers on a GPU")
    if engine["flags"]["version_compat"]:
        note(
            "start the server with --backend-config=tensorrt,version-compatible=true: the plan was built with"
            " --version-compat"
        )
    tensors = {
        kind: [Tensor(each["name"], each["dtype"], tuple(each["shape"])) for each in engine[kind]]
        for kind in ("inputs", "outputs")
    }
    return Model(
        path,
        tensors["inputs"],
        tensors["outputs"],
        meta.class_names,
        parameters(meta, sha256) | {"large2small.tensorrt": engine["version"]},
        engine["profiles"],
    )


def read_onnx(path: Path, sha256: str) -> Model:
    """What is served of an ONNX file. Raises ArtifactError when it was changed, or Triton would not run it as
    verified.
    """
    check_file(path)
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise ArtifactError(
            f"{path}: not an ONNX file, or cut short ({error}). Copy it again from its source"
        ) from error
    weights = {each.name for each in model.graph.initializer}
    inputs = [each for each in model.graph.input if each.name not in weights]
    if not inputs or not model.graph.output:  # such as an empty file, which is a message too
        raise ArtifactError(
            f"{path}: not a network: it has {len(inputs)} inputs and {len(model.graph.output)} outputs. Copy"
            " it again from its source, or export again: distill export onnx CKPT"
        )
    elsewhere = [
        each.name for each in model.graph.initializer if each.data_location == onnx.TensorProto.EXTERNAL
    ]
    if elsewhere:
        raise ArtifactError(
            f"{path}: weights such as {elsewhere[0]} lie in another file, which would be left behind. Export"
            " it with its weights inside: distill export onnx CKPT"
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
        **{name: json.dumps(value, sort_keys=True) for name, value in known.items() if value},
    }
    return {f"large2small.{name}": value for name, value in words.items() if value}


def choose(options: Options, model: Model) -> Serving:
    """The flags, completed by what the artifact says. Raises UsageError for what it cannot do."""
    for flag, least in (("version", 1), ("instances", 1), ("max_batch", 1), ("max_delay_us", 0)):
        value = getattr(options, flag)
        if value is not None and value < least:
            raise UsageError(f"--{flag.replace('_', '-')} {value}: expected {least} or more")
    device = options.device or ("gpu" if model.path.suffix == ".plan" else "cpu")
    if model.path.suffix == ".plan" and device == "cpu":
        raise UsageError(f"--device cpu: {model.path.name} is a TensorRT plan. Give the .onnx file beside it")
    name = _name(options.name, model.path)
    if not model.dynamic:
        _refuse_batching(options, model)
        return Serving(name, 0, device, options.instances)
    max_batch = _max_batch(options.max_batch, model)
    delay = 500 if options.max_delay_us is None else options.max_delay_us
    return Serving(
        name, max_batch, device, options.instances, _preferred(options.preferred, model, max_batch), delay
    )


def _name(given: str | None, path: Path) -> str:
    if given is None:
        return re.sub(r"[^A-Za-z0-9._-]+", "_", path.stem).lstrip(".") or "model"
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", given):
        raise UsageError(
            f"--name {given!r}: expected letters, digits, '.', '_' and '-', as it becomes a folder and an"
            " address"
        )
    return given


def _refuse_batching(options: Options, model: Model) -> None:
    given = [
        flag for flag in ("max_batch", "preferred", "max_delay_us") if getattr(options, flag) is not None
    ]
    if given:
        size = model.inputs[0].shape[0]
        raise UsageError(
            f"--{given[0].replace('_', '-')}: {model.path} takes exactly {size} image{'s' * (size != 1)} a"
            " call, so Triton cannot put requests together. Leave it out, or build a plan with --dynamic"
            " MIN,OPT,MAX"
        )


def _max_batch(given: int | None, model: Model) -> int:
    if not model.profiles:
        return given or DEFAULT_MAX_BATCH
    largest, smallest = (
        pick(each[key] for each in model.profiles) for pick, key in ((max, "max"), (min, "min"))
    )
    if given is not None and not smallest <= given <= largest:
        raise UsageError(
            f"--max-batch {given}: {model.path} takes {smallest} to {largest} images. Build it again for"
            " more: distill export trt --dynamic MIN,OPT,MAX"
        )
    if smallest > 1:
        note(
            f"{model.path} takes {smallest} images or more a call; Triton fails a request of fewer that finds"
            " no others in time"
        )
    return given or largest


def _preferred(given: str | None, model: Model, max_batch: int) -> list[int]:
    if given is None:
        return sorted({each["opt"] for each in model.profiles if 1 < each["opt"] <= max_batch})
    if not re.fullmatch(r"\d+(,\d+)*", given):
        raise UsageError(f"--preferred {given}: expected batch sizes with commas between, such as 4,8")
    sizes = sorted({int(word) for word in given.split(",")})
    if not 1 <= sizes[0] <= sizes[-1] <= max_batch:
        raise UsageError(
            f"--preferred {given}: expected batch sizes from 1 to {max_batch}, the most in one call"
        )
    return sizes


def report(
    options: Options, model: Model, serving: Serving, written: list[Path], sha256: str
) -> dict[str, Any]:
    """Print what was written and how to serve it; with --json one object. Returns the object."""
    if not model.labels:
        note(f"{model.path} carries no class names: no labels.txt, and clients get bare scores")
    elif not model.one_list:
        note(
            f"{model.path} gives the scores of {model.outputs[0].shape[0]} images as one answer, which labels"
            " do not fit: clients get bare scores"
        )
    result = {
        "model": serving.name,
        "version": options.version,
        "files": [str(path) for path in written],
        "sha256": sha256,
        "platform": repository.PLATFORMS[model.path.suffix][0],
        "max_batch_size": serving.max_batch,
        "device": serving.device,
        "instances": serving.instances,
        "preferred_batch_sizes": list(serving.preferred),
        "max_delay_us": serving.max_delay_us if serving.max_batch else None,
    }
    if options.json:
        print(json.dumps(result))
        return result
    batches = (
        f"up to {serving.max_batch} images a call"
        if serving.max_batch
        else f"{model.inputs[0].shape[0]} a call"
    )
    print(
        f"{options.repository / serving.name}: version {options.version}, {result['platform']}, {batches}, "
        f"{serving.instances} instance{'s' * (serving.instances != 1)} on {serving.device}"
    )
    print(f"serve it: tritonserver --model-repository={options.repository.resolve()}")
    return result
