"""torch's exporter takes seconds, and gives the same bytes for the same network
(tests/export/graph/test_from_torch.py): tests whose subject is something else ask it once.

In:  a network as `export.graph.from_torch.merge` gives it, its input size, the opset.
Out: its graph, from the exporter or from a file that an earlier test left, in whichever worker.
"""

import functools
import hashlib
import io
import os
from pathlib import Path

folder = Path()
"""Where the graphs are kept; tests/conftest.py says where."""


def remembering(export):
    """`export`, which is from_torch.to_onnx, but for what was exported before: a copy of that graph."""

    @functools.wraps(export)
    def remembered(merged, input_size, opset=19):
        from onnx import ModelProto

        file = folder / f"{_fingerprint(merged)}-{'x'.join(map(str, input_size))}-{opset}.onnx"
        if not file.exists():
            mine = file.with_suffix(f".{os.getpid()}")
            mine.write_bytes(export(merged, input_size, opset).SerializeToString())
            os.replace(mine, file)
        return ModelProto.FromString(file.read_bytes())

    return remembered


def to_onnx(merged, input_size, opset=19):
    """As from_torch.to_onnx."""
    from export.graph import from_torch

    return remembering(from_torch.to_onnx)(merged, input_size, opset)


def _fingerprint(network) -> str:
    """Of all its modules: their classes, and whatever they hold."""
    import torch

    content = io.BytesIO()
    torch.save(network, content)
    return hashlib.sha256(content.getvalue()).hexdigest()
