"""A student becomes an fp32 ONNX graph: merged branches, opset, names, dynamic batch, metadata inside.

In:  a torch network with its weights, in eval mode; its `Preprocess`.
Out: an ONNX model: input `images` (batch, 3, H, W) float32, output `logits` (batch, K) float32; batch norm
folded.
Elsewhere: proof that it computes the same (export.checks.verify), int8 (export.int8.quantize).
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnx
import onnxslim
import torch
from onnx import ModelProto
from torch import Tensor, nn

from distill.models.merge import reparameterize
from runtime.artifact import Metadata, seal
from runtime.errors import GateError

from . import rewrite
from .view import WEIGHTED

INPUT, OUTPUT, BATCH = "images", "logits", "batch"


class GlobalMean(nn.Module):
    """(N, C, H, W) -> (N, C, 1, 1). Equals AdaptiveAvgPool2d(1), which torch's exporter may turn into a
    Gather over the batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


def merge(student: nn.Module) -> nn.Module:
    """A copy for inference: re-parameterizable blocks (ours and timm's) become single convolutions.

    Batch norm that follows a convolution stays here and is folded by `to_onnx`, so that `parameters` gives
    the published parameters.
    """
    merged = reparameterize(student.eval(), fold_batch_norm=False)
    for parent in list(merged.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
                setattr(parent, name, GlobalMean())
    return merged.eval()


def parameters(merged: nn.Module) -> int:
    """Number of parameters of the merged network; batch norm's are among them, as in timm.
    Multiply-accumulates are counted on the graph (export.graph.macs.total).
    """
    return sum(each.numel() for each in merged.parameters())


def to_onnx(merged: nn.Module, input_size: tuple[int, int, int], opset: int = 19) -> ModelProto:
    """The fp32 graph of a merged network, by torch's dynamo exporter and onnxslim.

    input_size is (channels, height, width), fixed in the graph; the batch is dynamic. Layers are named after
    their torch modules. Raises GateError when the architecture cannot be exported or the result is not valid
    ONNX.
    """
    example = torch.zeros(2, *input_size)
    try:
        with _quiet():
            program = torch.onnx.export(
                merged,
                (example,),
                dynamo=True,
                opset_version=opset,
                verbose=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim(BATCH)},),
            )
            assert program is not None  # only without dynamo
            modules = _modules(program.model_proto)
            model = rewrite.prepare(_tidy(onnxslim.slim(program.model_proto), modules))
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the exporter, onnxslim and the checker each have their own classes
        reason = " ".join(str(error).split())[:300]
        raise GateError(
            f"{type(merged).__name__} cannot be exported at opset {opset} ({reason}). "
            "Try another --opset (18 to 21), or an architecture without data-dependent control flow"
        ) from error
    _require_interface(model, opset)
    return model


def write_metadata(model: ModelProto, metadata: Metadata) -> bytes:
    """A file's content, sealed: the model with `metadata` in its `metadata_props`, in place of any it had; it
    is not changed.
    """
    own = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, metadata.to_map())
    try:
        return seal(model.SerializeToString(deterministic=True))
    finally:
        onnx.helper.set_model_props(model, own)


def _modules(model: ModelProto) -> dict[str, str]:
    """{output tensor: torch module} of the layers whose weight the exporter named after their module."""
    return {
        node.output[0]: node.input[1].removesuffix(".weight")
        for node in model.graph.node
        if node.op_type in WEIGHTED and len(node.input) > 1 and node.input[1].endswith(".weight")
    }


def _tidy(model: ModelProto, modules: dict[str, str]) -> ModelProto:
    """Layers named after their torch module, every name unique; the exporter's notes removed."""
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        del node.metadata_props[:]
        node.doc_string = ""
        # onnxslim gives a layer it has folded a Mul into the name of the layer's old output
        name = modules.get(node.output[0]) or modules.get(node.name) or node.name or f"{node.op_type}_{index}"
        node.name = name if name not in taken else f"{name}_{index}"
        taken.add(node.name)
    for value in [*model.graph.value_info, *model.graph.initializer, *model.graph.input, *model.graph.output]:
        del value.metadata_props[:]
    return model


def _require_interface(model: ModelProto, opset: int) -> None:
    """Raise GateError unless input, output, batch and opset are what every reader of our artifacts
    relies on.
    """
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in [*model.graph.input, *model.graph.output]
    }
    found = {entry.domain: entry.version for entry in model.opset_import}.get("")
    ranks = {name: len(shape) for name, shape in shapes.items()}
    dynamic = all(shape and shape[0] == BATCH for shape in shapes.values())
    if ranks != {INPUT: 4, OUTPUT: 2} or not dynamic or found != opset:
        raise GateError(
            f"the exported graph has {shapes} at opset {found}; expected {INPUT} ({BATCH}, 3, H, W) and "
            f"{OUTPUT} ({BATCH}, classes) at opset {opset}. The network may need a fixed batch"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints progress and warnings that no user can act on; what matters is raised."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
