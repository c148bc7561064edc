"""export.graph.rewrite: each change leaves what the graph computes as it was, and happens only where that is
so.
"""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from export.graph import rewrite


def model(body, weights, size=(4, 6, 6), logits="batch, d, e, f"):
    """A graph from `images` to `logits`; weights {name: shape} by chance, a variance positive."""
    random = np.random.default_rng(0)
    made = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 19]> agraph (float[batch, {", ".join(map(str, size))}] images)'
        f" => (float[{logits}] logits) {{ {body} }}"
    )
    for name, shape in weights.items():
        value = random.uniform(0.5, 2.0, shape) if name.startswith("v") else random.normal(size=shape)
        made.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    for node in made.graph.node:
        node.name = node.output[0]
    return made


def run(made):
    batch = np.random.default_rng(1).normal(size=(2, 4, 6, 6)).astype(np.float32)
    settings = ort.SessionOptions()
    settings.graph_optimization_level = (
        ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    )  # ONNX Runtime would fold by itself
    return ort.InferenceSession(made.SerializeToString(), settings, providers=["CPUExecutionProvider"]).run(
        None, {"images": batch}
    )[0]


def kinds(made):
    return [node.op_type for node in made.graph.node]


NORM = {"g": (4,), "s": (4,), "m": (4,), "v": (4,)}


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        (
            "n = BatchNormalization (images, g, s, m, v)  logits = Conv (n, w, b)",
            {"w": (5, 4, 1, 1), "b": (5,)},
        ),
        (
            "n = BatchNormalization <epsilon = 0.5> (images, g, s, m, v)  logits = Conv (n, w)",
            {"w": (5, 4, 3, 3)},
        ),
        (
            "n = BatchNormalization (images, g, s, m, v)  logits = Conv <group = 2> (n, w, b)",
            {"w": (6, 2, 1, 1), "b": (6,)},
        ),
        (
            "n = BatchNormalization (images, g, s, m, v)  logits = Conv <group = 4> (n, w)",
            {"w": (8, 1, 3, 3)},
        ),
        (
            "c = Conv <pads = [1,1,1,1]> (images, w, b)  logits = BatchNormalization (c, g, s, m, v)",
            {"w": (4, 4, 3, 3), "b": (4,)},
        ),
        (
            "c = Conv <group = 4> (images, w)  n = BatchNormalization (c, g, s, m, v)  logits = Relu (n)",
            {"w": (4, 1, 1, 1)},
        ),
        (
            (
                "c = Conv (images, w)  n = BatchNormalization (c, g, s, m, v)  r = Relu (n)  o ="
                " BatchNormalization (r, g, s, m, v)  logits = Conv (o, w)"
            ),
            {"w": (4, 4, 1, 1)},
        ),  # both directions, and a weight with two readers
    ],
)
def test_a_batch_norm_beside_a_convolution_disappears_into_it(body, weights):
    made = model(body, weights | NORM)
    result = rewrite.prepare(made)
    assert "BatchNormalization" not in kinds(result) and "BatchNormalization" in kinds(made)
    assert run(result) == pytest.approx(run(made), rel=1e-4, abs=1e-4)
    onnx.checker.check_model(result, full_check=True)


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        (
            "n = BatchNormalization (images, g, s, m, v)  logits = Conv <pads = [1,1,1,1]> (n, w)",
            {"w": (4, 4, 3, 3)},
        ),
        (
            'n = BatchNormalization (images, g, s, m, v)  logits = Conv <auto_pad = "SAME_UPPER"> (n, w)',
            {"w": (4, 4, 3, 3)},
        ),
        (
            "n = BatchNormalization (images, g, s, m, v)  c = Conv (n, w)  logits = Add (c, n)",
            {"w": (4, 4, 1, 1)},
        ),
        (
            "c = Conv (images, w)  n = BatchNormalization (c, g, s, m, v)  logits = Add (c, n)",
            {"w": (4, 4, 1, 1)},
        ),
        (
            "n = BatchNormalization (images, g, s, m, v)  r = Relu (n)  logits = Conv (r, w)",
            {"w": (4, 4, 1, 1)},
        ),
    ],
)
def test_a_batch_norm_stays_where_folding_would_change_the_result(body, weights):
    made = model(body, weights | NORM)
    result = rewrite.prepare(made)
    assert kinds(result) == kinds(made) and (run(result) == run(made)).all()


def test_layers_keep_their_names_and_lose_their_old_constants():
    made = model(
        "n = BatchNormalization (images, g, s, m, v)  layer = Conv (n, w)  logits = Relu (layer)",
        {"w": (5, 4, 1, 1)} | NORM,
    )
    result = rewrite.prepare(made)
    assert [node.name for node in result.graph.node] == ["layer", "logits"]
    assert len(result.graph.initializer) == 2  # weight and bias


@pytest.mark.parametrize(
    ("mean", "expected", "logits"),
    [
        ("ReduceMean <keepdims = 1> (images, last)", ["GlobalAveragePool"], "batch, d, e, f"),
        ("ReduceMean (images, negative)", ["GlobalAveragePool"], "batch, d, e, f"),
        ("ReduceMean <keepdims = 0> (images, last)", ["GlobalAveragePool", "Flatten"], "batch, d"),
        ("ReduceMean <keepdims = 1> (images, channels)", ["ReduceMean"], "batch, d, e, f"),
        ("ReduceMean <keepdims = 1> (images, one)", ["ReduceMean"], "batch, d, e, f"),
    ],
)
def test_the_mean_over_a_map_is_one_pooling_operator(mean, expected, logits):
    made = model(f"logits = {mean}", {}, logits=logits)
    for name, axes in {"last": [2, 3], "negative": [-1, -2], "channels": [1], "one": [3]}.items():
        if name in mean:
            made.graph.initializer.append(numpy_helper.from_array(np.array(axes), name))
    result = rewrite.prepare(made)
    assert kinds(result) == expected and run(result) == pytest.approx(run(made), rel=1e-5, abs=1e-6)
    onnx.checker.check_model(result, full_check=True)
