"""export.graph.precision: what is counted as int8, fp16 and fp32, and the share of multiply-accumulates, on
graphs counted by hand.
"""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.graph import precision
from export.int8 import calibrate, quantize


def model(
    nodes, constants, inputs=(("x", ["batch", 3, 8, 8]),), outputs=(("y", None),), kind=TensorProto.FLOAT
):
    """A graph of one float input; constants by name."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs],
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def pair(tensor, zero="zero"):
    return [
        helper.make_node("QuantizeLinear", [tensor, "scale", zero], [f"{tensor}_q"]),
        helper.make_node("DequantizeLinear", [f"{tensor}_q", "scale", zero], [f"{tensor}_dq"]),
    ]


WEIGHTS = {
    "w": np.ones((5, 3, 3, 3), np.int8),
    "f": np.ones((4, 5, 1, 1), np.float32),
    "scale": np.float32(0.1),
    "zero": np.uint8(3),
    "zero_w": np.int8(0),
}
WEIGHT = helper.make_node("DequantizeLinear", ["w", "scale", "zero_w"], ["w_dq"])


@pytest.fixture
def mixed():
    """An int8 convolution 3 to 5 channels, 3 x 3, 8 x 8 to 6 x 6; then a float one 5 to 4 channels, 1 x 1,
    that reads int8.
    """
    nodes = [
        *pair("x"),
        WEIGHT,
        helper.make_node("Conv", ["x_dq", "w_dq"], ["a"], "one"),
        helper.make_node("Relu", ["a"], ["r"]),
        *pair("r"),
        helper.make_node("Conv", ["r_dq", "f"], ["b"], "two"),
        helper.make_node("MaxPool", ["r_dq"], ["m"], kernel_shape=[1, 1]),
        helper.make_node("Concat", ["b", "m"], ["y"], axis=1),
    ]
    return model(nodes, WEIGHTS)


def test_precisions_and_macs_are_those_counted_by_hand(mixed):
    rows = {row.operator: row for row in precision.table(mixed)}
    int8, fp32 = 5 * 6 * 6 * 3 * 3 * 3, 4 * 6 * 6 * 5
    assert rows["Conv"].count == {"int8": 1, "fp32": 1}  # an int8 input alone makes no int8 layer
    assert rows["Conv"].macs == {"int8": int8, "fp32": fp32}
    assert (
        rows["Relu"].count == {"fp32": 1}
        and rows["MaxPool"].count == {"int8": 1}
        and rows["Concat"].count == {"fp32": 1}
    )
    assert "QuantizeLinear" not in rows
    assert precision.shares(list(rows.values())) == pytest.approx(
        {"int8": 100 * int8 / (int8 + fp32), "fp16": 0, "fp32": 100 * fp32 / (int8 + fp32), "other": 0}
    )
    assert precision.conversions(mixed) == {"QuantizeLinear": 2, "DequantizeLinear": 3, "Cast": 0}
    assert next(row.operator for row in precision.table(mixed)) == "Conv"  # the costliest first


def test_half_and_whole_integers_are_told_apart():
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["h", "half"], ["c"]),
        helper.make_node("Shape", ["c"], ["s"]),
        helper.make_node("Cast", ["c"], ["y"], to=TensorProto.FLOAT),
    ]
    rows = {
        row.operator: row.count
        for row in precision.table(model(nodes, {"half": np.ones((2, 3, 1, 1), np.float16)}))
    }
    assert rows == {"Conv": {"fp16": 1}, "Shape": {"other": 1}}


@pytest.mark.parametrize(
    ("node", "constants", "shape", "macs"),
    [
        (("MatMul", ["x", "w"]), {"w": np.ones((7, 5), np.float32)}, ["batch", 2, 3, 7], 2 * 3 * 5 * 7),
        (("Gemm", ["x", "w"], {"transB": 1}), {"w": np.ones((5, 7), np.float32)}, ["batch", 7], 5 * 7),
        (
            ("Conv", ["x", "w"], {"group": 6}),
            {"w": np.ones((6, 1, 3, 3), np.float32)},
            ["batch", 6, 8, 8],
            6 * 6 * 6 * 9,
        ),
        (
            ("ConvTranspose", ["x", "w"]),
            {"w": np.ones((6, 4, 2, 2), np.float32)},
            ["batch", 6, 3, 3],
            6 * 9 * 4 * 4,
        ),
    ],
)
def test_each_multiplying_operator_is_counted_by_hand(node, constants, shape, macs):
    operator, read, more = (*node, {})[:3]
    made = model(
        [helper.make_node(operator, read, ["y"], **more)], constants, inputs=(("x", [1, *shape[1:]]),)
    )
    (row,) = precision.table(made)
    assert row.macs == {"fp32": macs} and row.macs_known


def test_images_of_free_size_are_counted_at_the_size_given_or_not_at_all():
    made = model(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        {"w": np.ones((2, 3, 1, 1), np.float32)},
        inputs=(("x", ["batch", 3, "h", "w_"]),),
    )
    assert precision.table(made, (4, 5))[0].macs == {"fp32": 2 * 3 * 4 * 5}
    unknown = precision.table(made)
    assert precision.shares(unknown) is None and unknown[0].to_dict() == {
        "operator": "Conv",
        "count": {"fp32": 1},
        "macs": None,
    }


def test_a_real_network_has_the_macs_torch_counts_and_as_many_int8_layers_as_planned(
    student_onnx, convnext_onnx, digits_batch
):
    assert (
        sum(row.macs.total() for row in precision.table(student_onnx)) == 40_551_040
    )  # test_graph has it by hand
    for placement, int8, fp32 in (("tensorrt", 19, 1), ("cpu", 20, 0)):
        made = quantize.lay_out(student_onnx, placement)
        ranges = calibrate.calibrate(
            student_onnx, made.tensors, [digits_batch[:4]], "minmax", unsigned=placement == "cpu"
        )
        rows = precision.table(quantize.quantize(student_onnx, made, ranges))
        counts = {
            name: sum(row.count[name] for row in rows if row.operator in ("Conv", "Gemm"))
            for name in ("int8", "fp32")
        }
        assert counts == {"int8": int8, "fp32": fp32} and len(made.layers) == int8
    assert precision.shares(precision.table(convnext_onnx)) == {"int8": 0, "fp16": 0, "fp32": 100, "other": 0}


def test_the_model_itself_is_left_alone(mixed):
    before = mixed.SerializeToString(deterministic=True)
    precision.table(mixed, (8, 8))
    assert mixed.SerializeToString(deterministic=True) == before
