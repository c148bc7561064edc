"""torch's exporter takes seconds, and gives the same bytes for the same network
(tests/export/graph/test_from_torch.py): tests whose subject is something else ask it once.

In:  `export.graph.from_torch.to_onnx`.
Out: a function with the same results, which remembers them for this process.
"""

import functools
import hashlib
import io

import torch
from onnx import ModelProto

_graphs: dict[tuple, bytes] = {}


def remembering(to_onnx):
    """to_onnx, but for a network, size and opset that were exported before: a copy of that graph."""

    @functools.wraps(to_onnx)
    def remembered(merged, input_size, opset=19):
        key = (_fingerprint(merged), tuple(input_size), opset)
        if key not in _graphs:
            _graphs[key] = to_onnx(merged, input_size, opset).SerializeToString()
        return ModelProto.FromString(_graphs[key])

    return remembered


def _fingerprint(network) -> str:
    """Of the code, settings and weights of all its modules: their class, and whatever they hold."""
    content = io.BytesIO()
    torch.save(network, content)
    return hashlib.sha256(content.getvalue()).hexdigest()
