"""What a network takes and gives, held against what this runtime runs: one batch of images in, logits out.

In:  inputs and outputs as an engine or an ONNX file names them.
Out: nothing, or ArtifactError in one line: which names, dtypes and shapes there are, and what helps.
Elsewhere: the engines (runtime.backends.ort, runtime.backends.openvino), plans, which TensorRT describes
(runtime.backends.tensorrt.plan).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..errors import ArtifactError

COLORS = (1, 3, 4)
"""Channels that an image may have."""


class Port(NamedTuple):
    """An input or an output."""

    name: str
    dtype: str
    """In numpy's words: float32."""
    shape: Sequence[int | None] | None
    """None for an axis of any size; None instead of all where the file does not say."""

    def __str__(self) -> str:
        sizes = "of any shape" if self.shape is None else f"({', '.join(_size(size) for size in self.shape)})"
        return f"{self.name}: {self.dtype} {sizes}"


def require_classifier(name: str, inputs: Sequence[Port], outputs: Sequence[Port]) -> None:
    """Raise ArtifactError unless there is one float32 input (N, C, H, W), and the first output is float32
    (N, classes). name: the file's.
    """
    found = "; ".join(map(str, inputs)) or "none"
    if len(inputs) != 1 or inputs[0].dtype != "float32" or len(inputs[0].shape or ()) != 4:
        raise ArtifactError(f"{name}: its inputs are {found}; expected one float32 input (N, C, H, W)")
    _, channels, _, last = inputs[0].shape or ()
    if channels not in (*COLORS, None) and last in COLORS:
        raise ArtifactError(
            f"{name}: its input is {found}, with the channels last; expected float32 (N, C, H, W). Export it"
            " with channels first (for tf2onnx: --inputs-as-nchw)"
        )
    found = "; ".join(map(str, outputs)) or "none"
    first = outputs[0] if outputs else None
    if first is None or first.dtype != "float32":
        raise ArtifactError(
            f"{name}: its outputs are {found}; expected logits first, float32 (N, classes). Export it so that"
            " the scores of all classes come first"
        )
    if first.shape is not None and len(first.shape) != 2:
        is_flat = len(first.shape) > 2 and all(size == 1 for size in first.shape[2:])
        how = "end it with a Flatten layer" if is_flat else "choose a network that classifies whole images"
        raise ArtifactError(f"{name}: its outputs are {found}; expected logits, (N, classes): {how}")


def _size(size: int | None) -> str:
    return "any" if size is None else str(size)
