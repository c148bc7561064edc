"""What became of the graph inside an engine: which convolutions run in int8 and fp16, what was added, what
did not fuse.

In:  the engine inspector's JSON (TensorRT 10 and 11), or the list of layers in TensorRT for RTX's build log;
the ONNX graph.
Out: a summary as JSON values, and a plain sentence for everything that is bad news.
Elsewhere: asking the engine (export.trt.process), the same question for an ONNX graph
(export.graph.precision).

Layer names and types differ between versions, so every reader here takes what it knows and counts the rest as
unknown.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from onnx import ModelProto, NodeProto
from rich.table import Table

from runtime.artifact import Metadata
from runtime.cli import terminal
from runtime.records import EngineRecord

from ..graph.view import View

TYPES = (
    ("int8", r"int8"),
    ("bf16", r"bf16|bfloat16"),
    ("fp16", r"fp16|half|float16"),
    ("fp8", r"fp8"),
    ("fp32", r"fp32|tf32|float"),
)
"""Our word for a precision -> how TensorRT's words for tensor formats spell it; in this order, as "bfloat16"
holds the others."""

DUMPED = re.compile(
    r"(.*?), LayerType: (.*?), Inputs: \[(.*?)\], Constants: .*?\], Outputs: \[(.*)\], TacticName", re.DOTALL
)
"""Name, type, inputs and outputs in an entry of the log; lists inside hold no "], Constants" or "], Outputs"
of their own."""

SHOWN = 4
"""Names in a sentence."""

MANY_REFORMATS = 0.25
"""Reformats for each convolution from which they are worth a sentence."""


class Layer(NamedTuple):
    """One layer of the engine."""

    name: str
    kind: str
    inputs: list[str]
    """Precision of each, or "unknown"."""
    outputs: list[str]
    onnx: list[str]
    """Names of the ONNX nodes it computes a part of."""


def from_inspector(text: str) -> list[Layer]:
    """The layers in `EngineInspector.get_engine_information(JSON)`; a layer may be a bare name where
    verbosity was low.
    """
    layers = json.loads(text).get("Layers") or []
    return [
        Layer(layer, "", [], [], []) if isinstance(layer, str) else _from_object(layer) for layer in layers
    ]


def _from_object(layer: dict[str, Any]) -> Layer:
    def precisions(key: str) -> list[str]:
        return [
            _precision(
                " ".join(
                    str(tensor.get(k, "")) for k in ("Format/Datatype", "Datatype", "DataType", "Format")
                )
            )
            for tensor in layer.get(key) or []
            if isinstance(tensor, dict)
        ]

    return Layer(
        str(layer.get("Name", "")),
        str(layer.get("LayerType", "")),
        precisions("Inputs"),
        precisions("Outputs"),
        _nodes(str(layer.get("Metadata", ""))),
    )


def from_dump(text: str) -> list[Layer]:
    """The layers of TensorRT for RTX's log message that begins with "Layers:"."""
    layers = []
    for entry in re.split(r"\nName: ", text.split("\n\nI/O Tensors:")[0])[1:]:
        fields = DUMPED.match(entry)
        if fields is None:
            layers.append(Layer(entry.partition(",")[0], "", [], [], _nodes(entry)))
            continue
        inputs, outputs = (
            [_precision(kind) for kind in re.findall(r"Datatype: (\w+)", fields[i])] for i in (3, 4)
        )
        layers.append(Layer(fields[1], fields[2], inputs, outputs, _nodes(entry)))
    return layers


def _precision(words: str) -> str:
    return next((name for name, pattern in TYPES if re.search(pattern, words, re.IGNORECASE)), "unknown")


def _nodes(metadata: str) -> list[str]:
    return re.findall(r"\[ONNX Layer: ([^\]]*)\]", metadata)


def summarize(layers: Sequence[Layer], model: ModelProto, source: str) -> dict[str, Any]:
    """Counts of the engine's layers by what they are, with the ONNX convolutions and matrix products by
    precision.

    source: who listed the layers, in words. A convolution has the precision of what its layer reads.
    """
    view = View(model)
    weighted = view.candidates()
    conversions = {
        node.name for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    }
    makers = {node.name: _maker(node.name, layers) for node in weighted}
    run = {name: layer.inputs[0] if layer and layer.inputs else "unknown" for name, layer in makers.items()}
    convolutions = Counter(run[node.name] for node in weighted if node.op_type == "Conv")
    products = Counter(run[node.name] for node in weighted if node.op_type != "Conv")
    total = convolutions.total()
    return {
        "source": source,
        "layers": len(layers),
        "convolutions": dict(convolutions),
        "matrix_products": dict(products),
        "int8_convolutions_percent": 100 * convolutions["int8"] / total if total else None,
        "fp16_convolutions_percent": 100 * convolutions["fp16"] / total if total else None,
        "not_int8": [
            node.name
            for node in weighted
            if _is_quantized(node, view) and run[node.name] not in ("int8", "unknown")
        ],
        "unknown": [name for name, precision in run.items() if precision == "unknown"],
        "reformats": sum(_is_reformat(layer) for layer in layers),
        "unfused_conversions": [
            layer.name for layer in layers if layer.onnx and set(layer.onnx) <= conversions
        ],
    }


def _maker(node: str, layers: Iterable[Layer]) -> Layer | None:
    """The layer that multiplies for `node`: of all that hold a part of it one that looks like it, else the
    first.
    """
    parts = [layer for layer in layers if node in layer.onnx] or [
        layer for layer in layers if node in layer.name.split(" + ")
    ]
    products = [
        layer
        for layer in parts
        if re.search(r"conv|correlation|gemm|matmul|matrix|fusion", layer.kind, re.IGNORECASE)
    ]
    return next(iter(products or parts), None)


def _is_quantized(node: NodeProto, view: View) -> bool:
    return all(
        name in view.producer and view.producer[name].op_type == "DequantizeLinear" for name in node.input[:2]
    )


def _is_reformat(layer: Layer) -> bool:
    return bool(re.search(r"reformat", f"{layer.kind} {layer.name}", re.IGNORECASE))


def sentences(summary: dict[str, Any], precision: str) -> list[str]:
    """What a user should know and might not like, one sentence each; precision is the artifact's, such as
    int8+fp16.
    """
    found, total = [], sum(summary["convolutions"].values())
    late = summary["not_int8"]
    if late:
        found.append(
            f"{len(late)} layers are int8 in the graph but not in the engine: {_names(late)}. They cost a"
            " conversion and gain nothing; --exclude them, or compare with fp16"
        )
    if "fp16" in precision and total and summary["convolutions"].get("fp32"):
        found.append(
            f"{summary['convolutions']['fp32']} of {total} convolutions run in fp32 although fp16 was"
            " asked for"
        )
    if total and summary["reformats"] > MANY_REFORMATS * total:
        found.append(
            f"{summary['reformats']} layers only change a tensor's format, beside {total} convolutions: each"
            " is a pass over memory. Fewer changes between int8 and float layers help"
        )
    if summary["unfused_conversions"]:
        found.append(
            f"{len(summary['unfused_conversions'])} Q/DQ layers did not fuse into a neighbor and run by"
            f" themselves: {_names(summary['unfused_conversions'])}"
        )
    if summary["unknown"]:
        found.append(
            f"what became of {len(summary['unknown'])} layers cannot be read from the engine: "
            f"{_names(summary['unknown'])}"
        )
    return found


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def show(path: Path, meta: Metadata) -> None:
    """Print what was built: a table of facts, then every warning."""
    built, checked = meta.engine or EngineRecord(), meta.verification.engine
    screen = terminal.screen()
    table = Table(show_header=False, title=str(path), title_justify="left")
    product = "TensorRT for RTX" if built.flavor == "rtx" else "TensorRT"
    size = (built.plan_bytes or 0) / 1e6
    table.add_row("engine", f"{product} {built.version}, {meta.precision}, {size:,.1f} MB")
    memory = f", {built.build_peak_mib:,.0f} MiB" if built.build_peak_mib else ""
    capability = f" (compute capability {built.compute_capability})"
    where = f" on {built.gpu}{capability}" if built.gpu else ", without a GPU"
    table.add_row("built", f"in {built.build_seconds or 0:.1f} s{memory}{where}")
    table.add_row("batch", "; ".join(_sizes(sizes) for sizes in built.profiles or ()))
    if layers := built.layers:
        counts = ", ".join(f"{count} {name}" for name, count in layers["convolutions"].items())
        table.add_row("convolutions", f"{counts} ({layers['source']}, {layers['layers']} layers)")
    if checked:
        table.add_row(
            "against ONNX",
            f"same class on {checked.agreement:.2f} % of {checked.images} "
            f"{'images of noise' if checked.noise else 'images'}, logits within {checked.max_abs:.3g}",
        )
    if checked and checked.top1 is not None:
        table.add_row(
            "top-1 %",
            f"{checked.top1:.2f}, ONNX file {checked.onnx_top1:.2f}; drop against the fp32 student "
            f"{checked.drop:.2f} points",
        )
    table.add_row("state", built.state)
    screen.print(table)
    for line in built.warnings:
        screen.print(f"note: {line}", soft_wrap=True)


def _sizes(profile: dict[str, int]) -> str:
    least, tuned, most = profile["min"], profile["opt"], profile["max"]
    return f"{most}" if least == most else f"{least} to {most}, tuned for {tuned}"
