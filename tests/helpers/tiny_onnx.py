"""The smallest classifiers whose answers can be worked out by hand: logits = weights @ mean color + bias.

In:  (K, 3) weights, class names.
Out: .onnx files, with or without metadata.
"""

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from runtime.artifact import Metadata, seal
from runtime.preprocess import Preprocess

COLORS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}
"""Class names in the order of their folders, and a color of each."""

RIGHT = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], np.float32)
"""Weights (class, channel) that name every color correctly."""

PLAIN = Preprocess(
    input_size=(3, 8, 8), interpolation="bilinear", crop_pct=1.0, mean=(0, 0, 0), std=(1, 1, 1)
)
"""Pixels divided by 255, nothing else: the mean color is known without running anything."""


def metadata(**changes) -> Metadata:
    """Metadata of a student that knows the three colors."""
    values = {
        "model": "mean_color",
        "role": "student",
        "preprocess": PLAIN,
        "class_names": list(COLORS),
        "parameters": 9,
        "macs": 9,
    }
    return Metadata(**values | changes)


def write(
    path,
    weights=RIGHT,
    meta: Metadata | None = None,
    *,
    bias=None,
    batch: int | str = "N",
    size: tuple = (8, 8),
    sealed: bool = True,
):
    """Write logits = weights @ mean over height and width + bias as ONNX; a str in batch or size is a free
    dimension. sealed: with a seal where there is metadata, as every export writes it.
    """
    weights = np.asarray(weights, np.float32)
    classes = len(weights)
    bias = np.zeros(classes, np.float32) if bias is None else np.asarray(bias, np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weights", "bias"], ["logits"], transB=1),
        ],
        "mean_color",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, *size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, classes])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    if meta is not None:
        helper.set_model_props(model, meta.to_map())
    content = model.SerializeToString()
    Path(path).write_bytes(seal(content) if meta is not None and sealed else content)
    return path


def write_images(root, per_class: int = 4, split: str | None = None):
    """A folder tree of solid PNGs, darker from one to the next: ROOT/[split/]CLASS/i.png."""
    from PIL import Image

    for name, color in COLORS.items():
        folder = root / split / name if split else root / name
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            Image.new("RGB", (10, 8), tuple(c * (10 - i) // 10 for c in color)).save(folder / f"{i}.png")
    return root
