"""export.graph.equalize: the same function, equal ranges, and which pairs are left alone; then a network made
fragile on purpose.
"""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from export.graph.equalize import Pair, equalize, find_pairs
from export.int8 import quantize as q
from export.int8.calibrate import calibrate

TWO = (
    "a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (images, w1, b1)  r = Relu (a)  logits = Conv"
    " (r, w2)"
)
CHAIN = (
    "a = Conv (images, w1, b1)  r = Relu (a)  d = Conv <group = 4, pads = [1, 1, 1, 1]> (r, w2, b2)  s = Relu"
    " (d)  p = MaxPool <kernel_shape = [2, 2]> (s)  logits = Conv <group = 2> (p, w3)"
)
CHAIN_SHAPES = {"w1": (4, 3, 1, 1), "b1": (4,), "w2": (4, 1, 3, 3), "b2": (4,), "w3": (6, 2, 1, 1)}


def model(body, shapes, spread=8.0):
    """A graph from `images` (batch, 3, 8, 8) to `logits`; weights of these shapes by chance, output channels
    unlike.
    """
    random = np.random.default_rng(0)
    made = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 19]> agraph (float[batch, 3, 8, 8] images) => '
        f"(float[batch, d, e, f] logits) {{ {body} }}"
    )
    for name, shape in shapes.items():
        sizes = spread ** random.uniform(-1, 1, (shape[0], *[1] * (len(shape) - 1)))
        made.graph.initializer.append(
            numpy_helper.from_array((random.normal(size=shape) * sizes).astype(np.float32), name)
        )
    for node in made.graph.node:
        node.name = node.output[0]
    return made


def run(made, batch):
    return ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"images": batch}
    )[0]


def weights(made):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}


@pytest.fixture(scope="module")
def batch():
    return np.random.default_rng(1).normal(size=(5, 3, 8, 8)).astype(np.float32)


def test_channels_of_both_layers_meet_at_the_geometric_mean_worked_out_by_hand():
    made = model(TWO, {})
    for name, shape, values in (
        ("w1", (2, 3, 1, 1), [8, 0, 0, 0, 0, -2]),
        ("b1", (2,), [4, 10]),
        ("w2", (2, 2, 1, 1), [0.5, 18, 0.125, -8]),
    ):
        made.graph.initializer.append(
            numpy_helper.from_array(np.array(values, np.float32).reshape(shape), name)
        )
    made.graph.node[0].attribute[0].ints[:] = [1, 1]
    found = weights(equalize(made)[0])
    # channel 0: r1 = 8, r2 = 0.5, both become 2 (divide by 4); channel 1: r1 = 2, r2 = 18, both become 6
    # (times 3)
    assert found["w1"].reshape(2, 3) == pytest.approx(np.array([[2, 0, 0], [0, 0, -6]]))
    assert found["b1"] == pytest.approx([1, 30])
    assert found["w2"].reshape(2, 2) == pytest.approx(np.array([[2, 6], [0.5, -8 / 3]]))


@pytest.mark.parametrize(
    ("body", "shapes"),
    [
        (TWO, {"w1": (16, 3, 3, 3), "b1": (16,), "w2": (4, 16, 1, 1)}),
        (CHAIN, CHAIN_SHAPES),
        (
            "a = Conv (images, w1)  r = LeakyRelu <alpha = 0.1> (a)  logits = Conv (r, w2)",
            {"w1": (8, 3, 1, 1), "w2": (4, 8, 3, 3)},
        ),
    ],
)
def test_logits_stay_the_same(batch, body, shapes):
    made = model(body, shapes)
    before = run(made, batch)
    equal, pairs = equalize(made)
    assert pairs and run(equal, batch) == pytest.approx(
        before, rel=1e-5, abs=1e-5 * float(np.abs(before).max())
    )
    assert not np.array_equal(weights(equal)["w1"], weights(made)["w1"])


def test_along_a_depthwise_chain_every_pair_ends_equal():
    found = weights(equalize(model(CHAIN, CHAIN_SHAPES))[0])
    leaves_a, leaves_d = np.abs(found["w1"]).max((1, 2, 3)), np.abs(found["w2"]).max((1, 2, 3))
    enters_last = [
        np.abs(found["w3"][3 * (c // 2) : 3 * (c // 2) + 3, c % 2]).max() for c in range(4)
    ]  # two groups of two inputs
    assert leaves_a == pytest.approx(leaves_d, rel=2e-3) and leaves_d == pytest.approx(enters_last, rel=2e-3)


def test_dead_channel_stays_as_it_is(batch):
    made = model(TWO, {"w1": (4, 3, 3, 3), "b1": (4,), "w2": (4, 4, 1, 1)})
    values = weights(made)
    dead_out, dead_in = values["w1"].copy(), values["w2"].copy()
    dead_out[1] = 0
    dead_in[:, 2] = 0
    made.graph.initializer[0].CopyFrom(numpy_helper.from_array(dead_out, "w1"))
    made.graph.initializer[2].CopyFrom(numpy_helper.from_array(dead_in, "w2"))
    found = weights(equalize(made)[0])
    assert np.array_equal(found["w2"][:, 1], dead_in[:, 1]) and found["b1"][1] == values["b1"][1]
    assert np.array_equal(found["w1"][2], dead_out[2]) and all(
        np.isfinite(value).all() for value in found.values()
    )


@pytest.mark.parametrize(
    ("body", "shapes", "reason"),
    [
        (
            (
                "a = Conv (images, w1)  low = Constant <value_float = 0.0> ()  high = Constant <value_float ="
                " 6.0> ()  c = Clip (a, low, high)  logits = Conv (c, w2)"
            ),
            {"w1": (8, 3, 1, 1), "w2": (4, 8, 1, 1)},
            "Clip",
        ),
        (
            "a = Conv (images, w1)  b = Conv (a, w2)  logits = Add (a, b)",
            {"w1": (8, 3, 1, 1), "w2": (8, 8, 1, 1)},
            "several readers",
        ),
        (
            "a = Conv (images, w1)  s = Sigmoid (a)  logits = Conv (s, w2)",
            {"w1": (8, 3, 1, 1), "w2": (4, 8, 1, 1)},
            "Sigmoid",
        ),
        (
            "a = Conv (images, w1)  b = Conv (a, w2)  logits = Conv (b, w2)",
            {"w1": (8, 3, 1, 1), "w2": (8, 8, 1, 1)},
            "shared",
        ),
    ],
)
def test_layers_that_scale_cannot_leave_are_named_with_a_reason(batch, body, shapes, reason):
    made = model(body, shapes)
    pairs, left_out = find_pairs(made)
    assert reason in left_out["a"] and "a" not in [pair.first for pair in pairs]
    assert np.array_equal(run(equalize(made)[0], batch), run(made, batch))


def test_residual_network_is_equalized_inside_its_blocks_only(student_onnx):
    pairs, left_out = find_pairs(student_onnx)
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)]
    assert pairs == [Pair(f"{block}.conv1", f"{block}.conv2") for block in blocks]
    assert set(left_out) == {"conv1", *(f"{block}.conv2" for block in blocks)}


def test_equalizing_restores_a_network_made_fragile(student_onnx, digits_batch):
    """Channels inside each block scaled by 1/16 to 16 and back again: the same function, most of its int8
    accuracy gone.
    """
    fragile = onnx.ModelProto.FromString(student_onnx.SerializeToString())
    values, random = weights(fragile), np.random.default_rng(0)
    for first, second in find_pairs(student_onnx)[0]:
        scale = np.exp2(random.uniform(-4, 4, len(values[f"{first}.weight"]))).astype(np.float32)
        values[f"{first}.weight"] = values[f"{first}.weight"] * scale[:, None, None, None]
        values[f"{first}.weight_bias"] = values[f"{first}.weight_bias"] * scale
        values[f"{second}.weight"] = values[f"{second}.weight"] / scale[None, :, None, None]
    for tensor in fragile.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    reference = run(student_onnx, digits_batch)

    def error(made):
        plan = q.lay_out(made)
        int8 = q.quantize(made, plan, calibrate(made, plan.tensors, [digits_batch]))
        return np.sqrt(((run(int8, digits_batch) - reference) ** 2).mean() / (reference**2).mean())

    plain, damaged, restored = error(student_onnx), error(fragile), error(equalize(fragile)[0])
    assert damaged > 3 * plain and restored < 1.5 * plain
