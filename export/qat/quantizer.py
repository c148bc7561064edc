"""The quantizer of a network that was trained as int8: nothing is calibrated, any layers may go back to
float.

In:  a `TrainedGraph` (export.qat.trained).
Out: a Quantizer for export.int8.pipeline, which holds the accuracy budget as for a calibrated network.
Elsewhere: the quantizer of a calibrated network (export.int8.quantizer), the training (export.qat.trainer).
"""

from __future__ import annotations

from dataclasses import replace

from onnx import ModelProto

from ..int8 import quantize
from ..int8.quantize import Layout
from ..int8.quantizer import Quantizer
from .trained import TrainedGraph


class TrainedQuantizer(Quantizer):
    """Ranges and weights as `distill train --qat` left them in a checkpoint."""

    def __init__(self, found: TrainedGraph) -> None:
        super().__init__(found.model, found.layout.placement, found.rules, "trained")
        self.found = found
        self.about = {"weight_scales": "trained", "bias_correction": False, "equalized_pairs": 0}

    def build(self, int8_layers: frozenset[str] | None = None) -> tuple[Layout, ModelProto]:
        layout = self.layout(int8_layers)
        # a layer that goes back to float may move its block's pair to a tensor that was not trained: it then
        # has none
        inputs = {node.name: node.input for node in self.model.graph.node}
        known = [tensor for tensor in layout.tensors if tensor in self.found.ranges]
        layout = replace(
            layout, tensors=known, edges=[edge for edge in layout.edges if inputs[edge[0]][edge[1]] in known]
        )
        kept = {name: weight for name, weight in self.found.weights.items() if name in layout.layers}
        return layout, quantize.quantize(self.model, layout, self.found.ranges, self.rules, kept)
