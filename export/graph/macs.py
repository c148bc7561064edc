"""What each layer of a graph costs: multiply-accumulates of one image.

In:  fp32 ONNX model with one image input.
Out: {layer name: multiply-accumulates}; layers are those with a constant weight (Conv, Gemm, MatMul).
Elsewhere: the whole network's count in torch's words (export.graph.from_torch.count), which layers become
int8 (export.int8.quantize).
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto

from . import edit, run
from .view import View, channel_axis


def count(model: ModelProto) -> dict[str, int]:
    """Multiply-accumulates by node name, in the graph's order; one image, bias not counted.

    Each value a layer puts out takes as many as its channel has weights. Output sizes are found by running
    one image: shape inference does not get through every Reshape.
    """
    view = View(model)
    layers = view.weighted()
    if not layers:
        return {}
    session = run.session(edit.with_outputs(model, [node.output[0] for node in layers]))
    taken = session.get_inputs()[0]
    image = np.zeros([size if isinstance(size, int) else 1 for size in taken.shape], np.float32)
    outputs = session.run([node.output[0] for node in layers], {taken.name: image})
    return {
        node.name: output.size * _weights_per_channel(node, view)
        for node, output in zip(layers, outputs, strict=True)
    }


def _weights_per_channel(node: NodeProto, view: View) -> int:
    shape = view.constants[node.input[1]].dims
    return int(np.prod(shape)) // shape[channel_axis(node)]
