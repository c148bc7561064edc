"""From a checkpoint to its fp32 ONNX file, found equal to the torch network on real images.

In:  `Inputs`.
Out: `Fp32`: the network, its graph, the file's content and metadata; GateError where they differ.
Elsewhere: merging and exporting (export.graph.from_torch), the comparison (export.checks.verify).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto
from torch import nn

from distill import models
from distill.checkpoint import Checkpoint, load_weights, require_finite
from runtime import env, files
from runtime.artifact import Metadata
from runtime.records import Verification

from ..checks import samples, verify
from ..checks.rounding import Exact, torch_logits
from ..graph import from_torch, macs
from .inputs import Inputs


@dataclass(frozen=True)
class Fp32:
    """A student as an fp32 ONNX file that passed its checks."""

    student: nn.Module
    """The torch network as it was trained, in eval mode."""
    model: ModelProto
    content: bytes
    """The file, with metadata and seal."""
    meta: Metadata


def export_fp32(inputs: Inputs) -> Fp32:
    """Merge branches, export, compare. Raises GateError unless student, merged network and ONNX file agree on
    --verify-size real images.
    """
    options, preprocess = inputs.options, inputs.checkpoint.preprocess
    student = network_of(inputs.checkpoint)
    merged = from_torch.merge(student)
    model = from_torch.to_onnx(merged, preprocess.input_size, options.opset)
    meta = first_metadata(inputs, from_torch.parameters(merged), macs.total(model))
    chosen = samples.choose(inputs.evaluation.labels, options.verify_size, options.seed)
    images = np.concatenate(
        [batch for batch, _ in samples.batches(inputs.evaluation, chosen, preprocess, about="")]
    )
    reference, exact = torch_logits(student, images), Exact(student, images)
    merging = verify.require_equal(
        reference, torch_logits(merged, images), options.atol, "merged against unmerged", exact
    )
    unchecked = from_torch.write_metadata(model, meta)
    with verify.opened(unchecked, inputs.scratch / "fp32.onnx") as predictor:
        parity = verify.parity(predictor, reference, images, options.atol, exact)
    meta = replace(meta, verification=Verification(merged=merging.to_record(), parity=parity))
    return Fp32(student, model, from_torch.write_metadata(model, meta), meta)


def network_of(checkpoint: Checkpoint) -> nn.Module:
    """The network with its weights, as it was trained, in eval mode. Raises ArtifactError naming a weight
    that holds NaN or infinity.
    """
    require_finite(checkpoint.state_dict, str(checkpoint.path or checkpoint.model))
    student = models.build(checkpoint.model, checkpoint.num_classes or 0, checkpoint.model_args)
    load_weights(student, checkpoint)
    return student.eval()


def first_metadata(inputs: Inputs, parameters: int, macs: int) -> Metadata:
    """What the artifact will say about itself, as far as it is known before the checks."""
    checkpoint, evaluation, options = inputs.checkpoint, inputs.evaluation, inputs.options
    recorded = without_folders(checkpoint.lineage)
    data = dict(recorded.get("data") or {})
    data["evaluation"] = {
        "spec": without_folders(evaluation.name),
        "images": len(evaluation),
        "sha256": evaluation.fingerprint(),
        "judged_on": samples.judged_on(evaluation, options.verify_size, options.seed),
    }
    source = Path(checkpoint.path or "")
    return Metadata(
        model=checkpoint.model,
        role=checkpoint.role,
        preprocess=checkpoint.preprocess,
        class_names=checkpoint.class_names,
        parameters=parameters,
        macs=macs,
        training={"metrics": checkpoint.metrics, "recipe": recorded.get("recipe")},
        lineage={
            "checkpoint": {"file": source.name, "sha256": files.sha256(source)},
            "data": data,
            "teacher": recorded.get("teacher"),
            "converted": recorded.get("converted"),
        },
        versions={**(recorded.get("versions") or {}), **env.versions(env.EXPORT_PACKAGES)},
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
