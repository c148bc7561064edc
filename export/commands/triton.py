"""`distill export triton`: an artifact becomes a model in a repository of Triton Inference Server.

In:  a .plan with its metadata beside it, or an .onnx file; how it is to be served.
Out: REPOSITORY/NAME/{config.pbtxt, labels.txt, VERSION/model.plan or model.onnx}, or one error line and
nothing written.
Elsewhere: what the config says, and writing (export.triton.repository).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runtime import files
from runtime.errors import UsageError

from ..notes import note
from ..options.triton import TritonOptions
from ..triton import artifact, repository, serving
from ..triton.repository import Model, Serving

SUMMARY = "put an artifact into a model repository of Triton Inference Server"
DESCRIPTION = """The input is a preprocessed float batch; how to make it stands in the config's parameters.

examples:
  {prog} student.plan --repository models
  {prog} student.onnx --repository models --name pets --device cpu --max-batch 16 --preferred 4,8"""


Options = TritonOptions


def run(options: TritonOptions) -> None:
    """Write the artifact and print what was measured."""
    export_triton(options)


def export_triton(options: TritonOptions) -> dict[str, Any]:
    """Read, check, write, report; returns what was written. Raises, and leaves nothing half-written, when a
    check fails.
    """
    if not options.artifact.is_file():
        raise files.no_artifact(options.artifact)
    readers = {".plan": artifact.read_plan, ".onnx": artifact.read_onnx}
    if options.artifact.suffix not in readers:
        raise UsageError(
            f"{options.artifact}: Triton is given a .plan or an .onnx file. Make one: distill export onnx"
            " CKPT"
        )
    sha256 = files.sha256(options.artifact)
    model = readers[options.artifact.suffix](options.artifact, sha256)
    chosen = serving.choose(options, model)
    written = repository.write(options.repository, options.version, model, chosen, sha256, options.overwrite)
    return print_result(options, model, chosen, written, sha256)


def print_result(
    options: TritonOptions, model: Model, chosen: Serving, written: list[Path], sha256: str
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
        "model": chosen.name,
        "version": options.version,
        "files": [str(path) for path in written],
        "sha256": sha256,
        "platform": repository.PLATFORMS[model.path.suffix][0],
        "max_batch_size": chosen.max_batch,
        "device": chosen.device,
        "instances": chosen.instances,
        "preferred_batch_sizes": list(chosen.preferred),
        "max_delay_us": chosen.max_delay_us if chosen.max_batch else None,
    }
    if options.json:
        print(files.json_text(result))
        return result
    batches = (
        f"up to {chosen.max_batch} images a call"
        if chosen.max_batch
        else f"{model.inputs[0].shape[0]} a call"
    )
    print(
        f"{options.repository / chosen.name}: version {options.version}, {result['platform']}, {batches}, "
        f"{chosen.instances} instance{'s' * (chosen.instances != 1)} on {chosen.device}"
    )
    print(f"serve it: tritonserver --model-repository={options.repository.resolve()}")
    return result
