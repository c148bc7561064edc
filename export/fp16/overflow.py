"""fp16 in the graph itself, around Q/DQ if there are any: TensorRT 11 has no precision flags, the types of
the graph decide.

In:  ONNX model from export.graph.from_torch or export.int8.quantize, opset 19 or later; images (n, C, H, W)
float32, already preprocessed.
Out: the same network computing in fp16 with float32 inputs and outputs; nodes that do not fit half stay
float32; a report.
Elsewhere: changing the types (export.fp16.cast), int8 (export.int8.quantize), accuracy
(export.checks.verify).

LayerNormalization becomes half like everything else, X, scale and bias of one type: its `stash_type` of 1
asks every engine to compute mean and variance in float32 (ONNX specification; TensorRT does from 8.6,
NVIDIA/TensorRT issue 2781), so only what it reads and puts out has to fit, and that is measured as for any
node. A mean or norm over a map has no such rule, see `with_sums`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, helper

from runtime.errors import GateError, UsageError

from ..graph import edit, macs, run
from ..graph.view import View
from .cast import (
    FLOAT,
    HALF,
    PAIR,
    float_tensors,
    rounded,
    to_float16,
    to_half,
    types,
)

__all__ = ["convert", "overflowing", "precisions", "rounded", "to_half"]

LARGEST = float(np.finfo(np.float16).max)
"""65504; what rounds beyond it is infinite."""
MARGIN = 4.0
"""A tensor may fill a quarter of half's range on the images it is measured on, because others may be larger:
the maxima of every tensor of ResNet-20 and ResNet-56 on 2000 other CIFAR images were at most 1.46 times those
on 512."""
LOST = 0.05
"""A constant may lose this share of its norm to half. Eleven bits lose 0.0003; more is lost only by numbers
below 6e-5."""
ATTEMPTS = 8
"""Rounds of running the fp16 graph and keeping what still overflows."""
PRECISIONS = ("int8", "fp16", "fp32")
ADDED_UP = {
    "ReduceMean": "ReduceL1",
    "GlobalAveragePool": "ReduceL1",
    "ReduceSum": "ReduceL1",
    "ReduceL2": "ReduceSumSquare",
    "ReduceSumSquare": "ReduceSumSquare",
}
"""Operators that add up, and what measures the largest sum on the way. onnx-tensorrt 10.1 makes ReduceL2 of x
* x, a sum and a root, all in the type of x; later parsers cast (seen in TensorRT for RTX 1.7)."""
PASSING = ("Expand", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Identity")
"""Operators that hand numbers on as they are."""
Batches = Callable[[], Iterable[np.ndarray]]
"""Starts anew with every call; batches (n, C, H, W) float32."""


def convert(
    model: ModelProto, batches: Batches, keep: Mapping[str, str] | None = None
) -> tuple[ModelProto, dict[str, Any]]:
    """The model in fp16 with what does not fit kept in fp32, proved on the images, and a report for the
    metadata.

    keep: {node: reason} from `overflowing`, when it was measured before on the same network, quantized or
    not. Raises GateError when the network is not finite in fp32 or cannot be made so in fp16, UsageError as
    `to_half` does.
    """
    kept = dict(overflowing(model, batches()) if keep is None else keep)
    for _ in range(ATTEMPTS):
        half = to_half(model, kept)
        if largest(rounded(half), [], batches())[1]:
            return half, report(half, kept)
        sizes, _ = largest(rounded(half), float_tensors(half), batches())
        found = next((name for name, size in sizes.items() if not np.isfinite(size)), None)
        new = (
            []
            if found is None
            else [name for name in around(model, original(found, half, model)) if name not in kept]
        )
        if not new:
            break
        kept |= dict.fromkeys(new, f"tensor {found} overflows in the fp16 graph")
    raise GateError(
        f"the network does not stay finite in fp16, even with {len(kept)} nodes kept in fp32. Export without"
        " --fp16"
    )


def report(half: ModelProto, kept: Mapping[str, str]) -> dict[str, Any]:
    """What the metadata says: kept nodes with reasons; number of nodes and share of multiply-accumulates by
    precision.
    """
    found, costs = precisions(half), macs.count(with_float_weights(half))
    work = {kind: sum(costs.get(node, 0) for node in found if found[node] == kind) for kind in PRECISIONS}
    return {
        "kept_fp32": dict(kept),
        "limit": LARGEST / MARGIN,
        "nodes": {kind: list(found.values()).count(kind) for kind in PRECISIONS},
        "macs_percent": {kind: 100 * work[kind] / max(1, sum(costs.values())) for kind in PRECISIONS},
    }


def precisions(model: ModelProto) -> dict[str, str]:
    """{node: int8, fp16 or fp32} of the nodes that compute; int8 are those whose weight comes out of a
    DequantizeLinear.

    Casts, Q/DQ and nodes without a float input (shapes) do not compute.
    """
    view, kinds = View(model), types(model)
    found = {}
    for node in model.graph.node:
        taken = {kinds.get(name) for name in node.input} & {FLOAT, HALF}
        if not taken or node.op_type in ("Cast", *PAIR):
            continue
        weight = view.producer.get(node.input[1]) if len(node.input) > 1 else None
        is_int8 = (
            weight is not None and weight.op_type == "DequantizeLinear" and weight.input[0] in view.constants
        )
        found[node.name] = "int8" if is_int8 else "fp16" if HALF in taken else "fp32"
    return found


# ---- what does not fit


def overflowing(model: ModelProto, batches: Iterable[np.ndarray], margin: float = MARGIN) -> dict[str, str]:
    """{node: why it must stay fp32}, found by running the model in fp32 once over all images, in constant
    memory.

    Nodes that make or read a tensor of more than 65504 / margin; nodes that add up so much (`with_sums`);
    nodes with a constant that half cannot hold. Raises GateError when a tensor is not finite in fp32.
    """
    model = edit.without_constant_nodes(model)
    watched, sums = with_sums(model)
    sizes, finite = largest(watched, [*float_tensors(model), *sums], batches)
    infinite = [name for name, size in sizes.items() if not np.isfinite(size)]
    if infinite or not finite:
        raise GateError(
            f"tensor {(infinite or ['logits'])[0]} is not finite in fp32 on one of the images. "
            "Check the checkpoint: its float network overflows"
        )
    kept, limit = badly_rounded(model), LARGEST / margin
    for name, size in sizes.items():
        if size > limit:
            nodes, what = (
                ([sums[name]], "it adds up to") if name in sums else (around(model, name), f"{name} reaches")
            )
            for node in nodes:
                kept.setdefault(node, f"{what} {size:.4g}, more than {limit:.0f} (65504 / {margin:g})")
    return kept


def badly_rounded(model: ModelProto) -> dict[str, str]:
    """{node: reason} for constants beyond half's range, or so small that rounding loses more than `LOST` of
    their norm.

    Not scales, which have a floor; not the bounds of a Clip, which may as well be infinite, but for one that
    becomes zero: what it guards, such as a division (F.normalize), must then be kept too.
    """
    view, found = View(model), guards_that_vanish(model)
    for name, tensor in view.constants.items():
        readers = [node.name for node, _ in view.consumers[name] if node.op_type not in ("Clip", *PAIR)]
        if tensor.data_type != FLOAT or not readers:
            continue
        value = view.constant(name).astype(np.float64)
        value = value[np.isfinite(value)]
        size, lost = float(np.abs(value).max(initial=0)), share_lost(value)
        if size > LARGEST:
            found |= dict.fromkeys(readers, f"constant {name} holds {size:.4g}, more than 65504")
        elif lost > LOST:
            zeros = np.count_nonzero(value) - np.count_nonzero(to_float16(value))
            found |= dict.fromkeys(
                readers, f"constant {name} loses {lost:.0%} of its norm in half ({zeros} values become zero)"
            )
    return found


def guards_that_vanish(model: ModelProto) -> dict[str, str]:
    """{node: reason} of each Clip with a bound that half rounds to zero, and of what reads its result."""
    view, found = View(model), {}
    for clip in [node for node in model.graph.node if node.op_type == "Clip"]:
        bounds = [view.constant(name).astype(np.float64) for name in clip.input[1:] if name in view.constants]
        gone = [float(bound) for bound in bounds if bound.size == 1 and bound != 0 and to_float16(bound) == 0]
        waiting = [clip] if gone else []
        while waiting:
            node = waiting.pop()
            found[node.name] = f"bound {gone[0]:.4g} of {clip.name} becomes zero in half"
            if node is clip or node.op_type in PASSING:
                waiting += [
                    reader for reader, _ in view.consumers[node.output[0]] if reader.name not in found
                ]
    return found


def share_lost(value: np.ndarray) -> float:
    """Norm of what rounding to half takes away, as a share of the norm."""
    norm = float(np.linalg.norm(value))
    return float(np.linalg.norm(value - to_float16(value).astype(np.float64))) / norm if norm else 0.0


def around(model: ModelProto, tensor: str) -> list[str]:
    """The nodes that make or read a tensor. Q/DQ are never among them: they take the type of their
    surroundings.
    """
    view = View(model)
    nodes = [view.producer.get(tensor), *(node for node, _ in view.consumers[tensor])]
    return [node.name for node in nodes if node is not None and node.op_type not in PAIR]


def original(name: str, half: ModelProto, model: ModelProto) -> str:
    """What the tensor `name` of the fp16 graph is called in the model it was made from."""
    made_by, nodes = View(half).producer.get(name), View(model).nodes
    if made_by is None:  # the image
        return name
    if made_by.name not in nodes:  # a Cast of ours
        return made_by.input[0]
    return nodes[made_by.name].output[list(made_by.output).index(name)]


# ---- running


def largest(
    model: ModelProto, tensors: Sequence[str], batches: Iterable[np.ndarray]
) -> tuple[dict[str, float], bool]:
    """({tensor: largest magnitude} of `tensors` in their order, were all outputs finite?), over all images.

    The graph reduces each tensor to one number itself, so memory does not depend on how many tensors or
    images there are. Raises UsageError when there is no image.
    """
    probed = edit.copy(model)
    for name in tensors:
        probed.graph.node.extend(
            [
                helper.make_node("Abs", [name], [f"{name}__magnitude"]),
                helper.make_node("ReduceMax", [f"{name}__magnitude"], [f"{name}__most"], keepdims=0),
                helper.make_node("IsNaN", [name], [f"{name}__is_nan"]),  # ReduceMax may pass over a NaN
                helper.make_node("Cast", [f"{name}__is_nan"], [f"{name}__nans"], to=FLOAT),
                helper.make_node("ReduceMax", [f"{name}__nans"], [f"{name}__any_nan"], keepdims=0),
            ]
        )
        probed.graph.output.extend(
            helper.make_tensor_value_info(f"{name}{end}", FLOAT, []) for end in ("__most", "__any_nan")
        )
    session = run.session(probed)
    wanted = [f"{name}{end}" for end in ("__most", "__any_nan") for name in tensors]
    outputs = [value.name for value in model.graph.output]
    sizes, finite, seen = np.zeros(len(tensors)), True, 0
    for batch in batches:
        found = session.run(wanted + outputs, {model.graph.input[0].name: batch})
        most, any_nan = np.array([float(value) for value in found[: len(wanted)]]).reshape(2, len(tensors))
        sizes = np.maximum(sizes, np.where(any_nan > 0, np.nan, most))  # unlike max(), keeps a NaN
        finite = finite and all(np.isfinite(value).all() for value in found[len(wanted) :])
        seen += len(batch)
    if not seen:
        raise UsageError("no images to find out what overflows in fp16. Give training images: --calib DIR")
    return dict(zip(tensors, sizes.tolist(), strict=True)), finite


def with_sums(model: ModelProto) -> tuple[ModelProto, dict[str, str]]:
    """The model with the largest sum on the way beside each node that adds up, and {that tensor: the node}.

    An engine may add up in half before it divides or takes a root: TensorRT warns that its half Reduce layers
    may overflow (pytorch/TensorRT issue 4061). No partial sum is larger than that of |x| (of x * x in a
    norm), in whatever order it adds.
    """
    result, view, sums = edit.copy(model), View(model), {}
    for node in [node for node in model.graph.node if node.op_type in ADDED_UP]:
        output = f"{node.name}__sum"
        copy = edit.copy_node(node, op_type=ADDED_UP[node.op_type], name=output)
        copy.output[0] = output
        if node.op_type == "GlobalAveragePool":
            rank = len(view.shapes.get(node.input[0], "NCHW"))
            copy.input.append(edit.add_constant(result, f"{output}_axes", np.arange(2, rank)))
        result.graph.node.append(copy)
        sums[output] = node.name
    return result, sums


def with_float_weights(model: ModelProto) -> ModelProto:
    """A copy whose int8 weights are float constants of the same shape, for counting: their values are not
    right.
    """
    result, view = edit.copy(model), View(model)
    kinds, nodes = types(model), []
    for node in result.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in view.constants:
            nodes.append(node)
            continue
        zeros = np.zeros(
            list(view.constants[node.input[0]].dims), helper.tensor_dtype_to_np_dtype(kinds[node.output[0]])
        )
        edit.add_constant(result, node.output[0], zeros)
    edit.replace_nodes(result, nodes)
    return result
