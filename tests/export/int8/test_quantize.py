"""export.int8.quantize: one test per rule on graphs small enough to read, then the parser's rules on whole
networks.
"""

from collections import Counter

import families
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from export.graph import rewrite
from export.graph.view import View
from export.int8 import quantize as q
from export.int8.calibrate import calibrate
from export.int8.ranges import Range
from runtime.errors import UsageError


def model(body, weights, size=(32, 8, 8), logits="batch, d, e, f"):
    """A graph from `images` to `logits` out of ONNX's text form; weights {name: shape} are filled
    by chance.
    """
    random = np.random.default_rng(0)
    text = ", ".join(map(str, ("batch", *size)))
    made = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 19]> agraph (float[{text}] images) => (float[{logits}] logits)'
        f" {{ {body} }}"
    )
    made.graph.initializer.extend(
        numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name)
        for name, shape in weights.items()
    )
    for node in made.graph.node:
        node.name = node.output[0]
    return made


def conv_chain(weight, attributes="", size=(32, 8, 8)):
    """The layer `layer` in question, then a 1 x 1 layer that makes the logits."""
    return model(
        f"layer = Conv {attributes} (images, w)  logits = Conv (layer, w_last)",
        {"w": weight, "w_last": (4, weight[0], 1, 1)},
        size,
    )


def reason(made, rules=None):
    try:
        return q.lay_out(made, rules=rules).left_float.get("layer")
    except UsageError as error:  # nothing left to quantize
        assert "nothing to quantize" in str(error)
        return next(
            r
            for r in (
                q.stays_float(n, View(made), rules or q.Rules()) for n in made.graph.node if n.name == "layer"
            )
        )


# ---- scales


def test_activation_scale_puts_the_larger_magnitude_on_127_with_zero_point_0():
    scale, zero = q.activation_scale(Range(-2.54, 1.0), floor=1e-6)
    assert scale == pytest.approx(0.02) and zero == 0 and zero.dtype == np.int8


def test_unsigned_scale_spreads_255_steps_and_holds_zero():
    scale, zero = q.activation_scale(Range(-1.0, 4.1), floor=1e-6, unsigned=True)
    assert scale == pytest.approx(0.02) and zero == 50 and zero.dtype == np.uint8
    assert q.activation_scale(Range(2.0, 5.1), 1e-6, unsigned=True) == (pytest.approx(0.02), 0)


def test_dead_tensor_gets_the_floor_which_is_still_above_zero_in_half():
    scale, _ = q.activation_scale(Range(0.0, 0.0), q.Rules().scale_floor)
    assert np.float16(scale) > 0


def test_weight_scales_are_per_channel_rounded_to_even_and_floored():
    weight = np.array([[1.27, -0.64], [0.025, 254.0], [0.0, 0.0]], np.float32).reshape(3, 2, 1, 1)
    steps, scales = q.weight_to_int8(weight, axis=0, floor=1e-6)
    assert scales == pytest.approx([0.01, 2.0, 1e-6])
    assert steps.reshape(3, 2).tolist() == [[127, -64], [0, 127], [0, 0]]
    assert q.weight_to_int8(np.array([[2.5, 127.0]], np.float32), 0, 1e-6)[0].tolist() == [
        [2, 127]
    ]  # tie to even


@pytest.mark.parametrize(
    ("node", "axis"),
    [("Conv (a, w)", 0), ("Gemm <transB = 1> (a, w)", 0), ("Gemm (a, w)", 1), ("MatMul (a, w)", 1)],
)
def test_weight_channels_are_the_outputs(node, axis):
    text = (
        '<ir_version: 9, opset_import: ["" : 19]> g (float[1] a, float[1] w) => (float[1] c) { c ='
        f" {node} }}"
    )
    assert q.channel_axis(onnx.parser.parse_model(text).graph.node[0]) == axis


# ---- which layers


@pytest.mark.parametrize(
    ("weight", "attributes", "size", "expected"),
    [
        ((32, 32, 3, 3), "", (32, 8, 8), None),
        ((16, 3, 3, 3), "", (3, 8, 8), None),  # first layer, square, 16 outputs
        ((8, 3, 3, 3), "", (3, 8, 8), None),  # first layer: a multiple of 8 is enough
        ((10, 3, 3, 3), "", (3, 8, 8), "few channels"),  # neither side a multiple of 8
        ((16, 3, 1, 3), "", (3, 8, 8), "few channels"),  # not square
        ((32, 1, 3, 3), "<group = 32>", (32, 8, 8), None),  # depthwise 3 x 3
        ((32, 1, 1, 5), "<group = 32>", (32, 8, 8), "few channels"),  # 1 x k strip
        ((12, 1, 3, 3), "<group = 12>", (12, 8, 8), "few channels"),
        ((32, 1, 7, 7), "<group = 32, pads = [3,3,3,3]>", (32, 8, 8), "large grouped kernel"),
        ((32, 1, 5, 51), "<group = 32, pads = [2,25,2,25]>", (32, 8, 8), "large grouped kernel"),
        ((32, 32, 1, 1), "", (32, 1, 1), "1 x 1 map (squeeze and excitation)"),
    ],
)
def test_layers_that_stay_float(weight, attributes, size, expected):
    assert reason(conv_chain(weight, attributes, size)) == expected


def test_the_layer_that_makes_the_logits_stays_float_unless_asked_for():
    made = conv_chain((32, 32, 3, 3))
    assert q.lay_out(made).left_float == {"logits": "makes the logits"}
    assert (
        q.lay_out(conv_chain((32, 32, 1, 1)), rules=q.Rules(classifier=True, few_channels=4)).left_float == {}
    )


def test_the_cpu_placement_quantizes_a_matrix_that_makes_the_logits_and_no_convolution():
    gemm = model(
        "c = Conv (images, w)  m = GlobalAveragePool (c)  f = Flatten (m)  logits = Gemm (f, w2)",
        {"w": (32, 32, 1, 1), "w2": (32, 4)},
    )
    assert q.lay_out(gemm, "cpu").left_float == {} and q.lay_out(gemm, "tensorrt").left_float == {
        "logits": "makes the logits"
    }
    assert q.lay_out(gemm, "cpu", q.Rules(classifier=False)).left_float == {"logits": "makes the logits"}
    assert q.lay_out(conv_chain((32, 32, 1, 1)), "cpu").left_float == {"logits": "makes the logits"}


@pytest.mark.parametrize(
    ("placement", "depthwise", "three", "seven"),
    [
        ("tensorrt", None, None, "large grouped kernel"),
        ("tensorrt", "int8", None, None),
        ("cpu", None, None, None),
        ("tensorrt", "float", "grouped convolution", "grouped convolution"),
        ("cpu", "float", "grouped convolution", "grouped convolution"),
    ],
)
def test_depthwise_policy(placement, depthwise, three, seven):
    made = model(
        "a = Conv (images, w0)  three = Conv <group = 32> (a, w1)  seven = Conv <group = 32> (three, w2)  "
        "logits = Conv (seven, w3)",
        {"w0": (32, 32, 1, 1), "w1": (32, 1, 3, 3), "w2": (32, 1, 7, 7), "w3": (4, 32, 1, 1)},
        (32, 16, 16),
    )
    found = q.lay_out(made, placement, q.Rules(depthwise=depthwise)).left_float
    assert (found.get("three"), found.get("seven")) == (three, seven)


def test_every_layer_that_reads_the_image_can_be_left_float():
    made = model(
        "r = Relu (images)  a = Conv (r, w1)  b = Conv (images, w2)  s = Add (a, b)  c = Conv (s, w3)  "
        "logits = Conv (c, w4)",
        dict.fromkeys(("w1", "w2", "w3", "w4"), (32, 32, 1, 1)),
    )
    found = q.lay_out(made, rules=q.Rules(first=False))
    assert found.layers == ["c"] and found.left_float["a"] == found.left_float["b"] == "reads the image"


@pytest.mark.parametrize(
    ("attributes", "weight", "stays"),
    [
        ("kernel_shape = [3,3], strides = [2,2]", (16, 3, 3, 3), True),
        ("strides = [2,2]", (16, 3, 3, 3), True),  # torch 2.11 leaves kernel_shape out, which ONNX allows
        ("strides = [2,2]", (16, 3, 7, 7), False),
        ("kernel_shape = [3,3]", (16, 3, 3, 3), False),
        ("kernel_shape = [7,7], strides = [2,2]", (16, 3, 7, 7), False),
    ],
)
def test_a_light_first_layer_stays_float_in_the_cpu_placement_unless_asked_for(attributes, weight, stays):
    made = model(
        f"layer = Conv <{attributes}> (images, w)  b = Conv (layer, w2)  logits = Conv (b, w2)",
        {"w": weight, "w2": (16, 16, 1, 1)},
        (3, 16, 16),
    )
    assert (q.lay_out(made, "cpu").left_float.get("layer") == "reads the image") == stays
    assert (
        "layer" in q.lay_out(made, "cpu", q.Rules(first=True)).layers
        and "layer" in q.lay_out(made, "tensorrt").layers
    )


def test_layers_without_an_int8_form_stay_float_and_say_why():
    made = model(
        "a = Conv (images, w1)  t = ConvTranspose (a, w2)  d = Conv (t, a)  logits = Conv (t, w3)",
        dict.fromkeys(("w1", "w2", "w3"), (32, 32, 1, 1)),
    )
    found = q.lay_out(made).left_float
    assert "transposed" in found["t"] and found["d"] == "the weight is not a constant matrix"


def test_exclude_is_a_glob_and_says_how_many_it_matched():
    made = model(
        "a = Conv (images, w1)  b = Conv (a, w2)  logits = Conv (b, w3)",
        {"w1": (32, 32, 1, 1), "w2": (32, 32, 1, 1), "w3": (32, 32, 1, 1)},
    )
    found = q.lay_out(made, rules=q.Rules(exclude=("[a]",)))
    assert found.layers == ["b"] and found.left_float["a"] == "excluded" and found.excluded == {"[a]": 1}


def test_exclude_without_a_match_is_an_error():
    with pytest.raises(UsageError, match="matched 0 of 2 nodes"):
        q.lay_out(conv_chain((32, 32, 3, 3)), rules=q.Rules(exclude=("layer9*",)))


# ---- where

RESIDUAL = (
    (
        "a = Conv (images, w1)  r = Relu(a)  b = Conv (r, w2)  s = Add (b, r)  t = Relu(s)  logits = Conv"
        " (t, w3)"
    ),
    {"w1": (32, 32, 1, 1), "w2": (32, 32, 1, 1), "w3": (4, 32, 1, 1)},
)


def test_only_the_skip_input_of_a_residual_add_is_quantized():
    found = q.lay_out(model(*RESIDUAL))
    assert found.edges == [("a", 0), ("b", 0), ("s", 1)]
    assert found.tensors == ["images", "r"]  # one pair for r, shared by the convolution and the Add


def test_of_two_convolutions_into_an_add_the_shorter_branch_is_the_skip():
    found = q.lay_out(
        model(
            "a = Conv (images, w1)  b = Conv (a, w2)  short = Conv (images, w3)  s = Add (short, b)  "
            "logits = Conv (s, w4)",
            dict.fromkeys(("w1", "w2", "w3", "w4"), (32, 32, 1, 1)),
        )
    )
    assert ("s", 0) in found.edges and ("s", 1) not in found.edges


def test_an_add_without_a_quantized_convolution_is_left_alone():
    found = q.lay_out(
        model(
            "a = Conv (images, w1)  r = Relu(a)  s = Add (r, images)  logits = Conv (s, w2)",
            {"w1": (32, 32, 1, 1), "w2": (32, 32, 1, 1)},
        )
    )
    assert found.edges == [("a", 0)]  # an activation stands between, so the Add does not fuse


def test_cpu_placement_also_quantizes_outputs_after_their_activation():
    made = model(*RESIDUAL)
    found = q.lay_out(made, "cpu")
    assert set(found.tensors) == {"images", "r", "b", "t"}  # not a or s: a ReLU follows
    assert {("s", 0), ("s", 1), ("logits", 0)} <= set(found.edges)


def test_a_convolution_before_a_layer_norm_is_followed_by_a_pair():
    made = model(
        "a = Conv (images, w1)  t = Transpose <perm = [0,2,3,1]> (a)  n = LayerNormalization (t, g)  u ="
        " Transpose <perm = [0,3,1,2]> (n)  b = Conv (u, w2)  r = Relu (b)  v = Transpose <perm = [0,2,3,1]>"
        " (r)  o = LayerNormalization (v, g)  x = Transpose <perm = [0,3,1,2]> (o)  logits = Conv (x, w3)",
        {"w1": (32, 32, 1, 1), "w2": (32, 32, 1, 1), "w3": (4, 32, 1, 1), "g": (32,)},
    )
    assert q.lay_out(made).edges == [
        ("a", 0),
        ("b", 0),
        ("t", 0),
    ]  # not after b: an activation stands between
    assert q.lay_out(made, rules=q.Rules(exclude=("a",))).edges == [("b", 0)]


CONCAT = (
    (
        "a = Conv (images, w1)  r = Relu (a)  b = Conv (images, w2)  p = MaxPool <kernel_shape = [1,1]> (b)  "
        "c = Concat <axis = 1> (r, p)  d = Conv (c, w3)  logits = Conv (d, w4)"
    ),
    {"w1": (32, 32, 1, 1), "w2": (32, 32, 1, 1), "w3": (32, 64, 1, 1), "w4": (4, 32, 1, 1)},
)


def test_everything_around_a_concat_has_one_scale_the_union():
    made = model(*CONCAT)
    plan = q.lay_out(made)
    assert set(plan.tensors) == {"images", "r", "p", "c"} and {("c", 0), ("c", 1)} <= set(plan.edges)
    ranges = {"images": Range(-9, 9), "r": Range(0, 3), "p": Range(-1, 2), "c": Range(-1, 2.5)}
    one = Range(-1, 3)
    assert q.with_shared_ranges(plan.tensors, ranges, View(made)) == {
        "images": Range(-9, 9),
        "r": one,
        "p": one,
        "c": one,
    }


def test_two_concats_that_share_an_input_share_one_scale():
    made = model(
        "a = Relu (images)  b = Neg (images)  e = Abs (images)  c = Concat <axis = 1> (a, b)  "
        "logits = Concat <axis = 1> (b, e)",
        {},
    )
    ranges = {"a": Range(0, 3), "b": Range(-1, 2), "e": Range(0, 7), "c": Range(-1, 3), "logits": Range(0, 1)}
    assert set(q.with_shared_ranges(list(ranges), ranges, View(made)).values()) == {Range(-1, 7)}


def test_the_cpu_placement_leaves_each_input_of_a_concat_its_range():
    made = model(*CONCAT)
    plan = q.lay_out(made, "cpu")
    ranges = {name: Range(-1, 2) for name in plan.tensors} | {"r": Range(0, 3)}
    values = {t.name: numpy_helper.to_array(t) for t in q.quantize(made, plan, ranges).graph.initializer}
    assert (
        values["r_zero_point"] == 0 and values["p_zero_point"] == 85
    )  # a ReLU only fuses with a zero point of 0


def test_a_pad_with_another_number_than_zero_does_not_share_a_scale():
    text = "p = Pad (images, pads, filling)  c = Conv (p, w)  logits = Conv (c, w)"
    made = model(text, {"w": (32, 32, 1, 1)})
    made.graph.initializer.append(numpy_helper.from_array(np.array([0] * 6 + [1, 1]), "pads"))
    for filling, expected in ((0.0, Range(-9, 9)), (-3.0, Range(-3, 2))):
        del made.graph.initializer[2:]
        made.graph.initializer.append(numpy_helper.from_array(np.float32(filling), "filling"))
        ranges = {"images": Range(-9, 9), "p": Range(-3, 2)}
        assert q.with_shared_ranges(list(ranges), ranges, View(made))["p"] == expected


def test_unknown_placement_is_an_error():
    with pytest.raises(UsageError, match="tensorrt, cpu"):
        q.lay_out(model(*RESIDUAL), "dla")


def test_maxpool_shares_the_scale_of_its_input():
    made = model(
        "a = Conv (images, w1)  p = MaxPool <kernel_shape = [2,2], strides = [2,2]> (a)  b = Conv (p, w2)  "
        "logits = Conv (b, w3)",
        dict.fromkeys(("w1", "w2", "w3"), (32, 32, 1, 1)),
    )
    found = q.with_shared_ranges(
        ["images", "a", "p"], {"images": Range(-9, 9), "a": Range(-1, 2), "p": Range(0, 2)}, View(made)
    )
    assert found == {"images": Range(-9, 9), "a": Range(-1, 2), "p": Range(-1, 2)}


def test_maxpool_keeps_its_own_range_when_its_input_is_not_quantized():
    made = model("p = MaxPool <kernel_shape = [2,2]> (images)  logits = Conv (p, w1)", {"w1": (32, 32, 1, 1)})
    assert q.with_shared_ranges(["p"], {"p": Range(0, 2)}, View(made)) == {"p": Range(0, 2)}


def test_quantized_graph_equals_the_float_graph_on_rounded_numbers():
    made = model(
        "c = Conv <kernel_shape = [1,1]> (images, w)  logits = Conv (c, w2)",
        {"w": (16, 16, 1, 1), "w2": (4, 16, 1, 1)},
        (16, 4, 4),
    )
    batch = np.random.default_rng(1).normal(size=(2, 16, 4, 4)).astype(np.float32)
    ranges = {"images": Range(-2.0, 2.0)}
    result = q.quantize(made, q.lay_out(made), ranges)
    found = ort.InferenceSession(result.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"images": batch}
    )[0]
    w, w2 = (numpy_helper.to_array(t)[:, :, 0, 0].astype(np.float64) for t in made.graph.initializer)
    x = np.clip(np.round(batch / (2 / 127)), -128, 127) * (2 / 127)  # by hand, in float64
    step = np.abs(w).max(1, keepdims=True) / 127
    expected = np.einsum("kc,nchw->nkhw", w2 @ (np.round(w / step) * step), x)
    assert found == pytest.approx(expected, abs=1e-4)
    assert {t.name for t in result.graph.initializer if t.data_type == 1} == {
        "w2",
        "images_scale",
        "w_scale",
    }  # fp32 w is gone


def run(made, batch, optimized=True):
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    if not optimized:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(made.SerializeToString(), settings, providers=["CPUExecutionProvider"]).run(
        None, {"images": batch}
    )[0]


def kinds_in_onnxruntime(made, folder):
    """The operators that ONNX Runtime runs in the end."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(made.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]


# ---- given weights and biases

MIXED = (
    (
        "c = Conv (images, w, bias)  p = GlobalAveragePool (c)  f = Flatten <axis = 1> (p)  m = MatMul (f,"
        " w2)  g = Gemm (m, w3)  logits = MatMul (g, w4)"
    ),
    {"w": (16, 16, 1, 1), "bias": (16,), "w2": (16, 16), "w3": (16, 16), "w4": (16, 4)},
    (16, 4, 4),
    "batch, k",
)


def test_given_weights_and_biases_are_written_in_place_of_the_own():
    made = model(*MIXED)
    plan = q.lay_out(made)
    assert plan.layers == ["c", "m", "g"]
    random = np.random.default_rng(5)
    weights = {
        "c": q.Int8Weight(
            random.integers(-127, 128, (16, 16, 1, 1)).astype(np.int8), np.full(16, 0.01, np.float32)
        ),
        "m": q.Int8Weight(
            random.integers(-127, 128, (16, 16)).astype(np.int8), np.full(16, 0.02, np.float32)
        ),
    }
    biases = {name: random.normal(size=16).astype(np.float32) for name in plan.layers}
    ranges = dict.fromkeys(plan.tensors, Range(-100.0, 100.0))
    batch = random.normal(size=(3, 16, 4, 4)).astype(np.float32)
    found = run(
        q.quantize(made, plan, ranges, weights=weights, biases=biases), batch, optimized=False
    )  # bias stays float
    own = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in made.graph.initializer}

    def rounded(x):
        return np.clip(np.round(x / (100 / 127)), -128, 127) * (100 / 127)

    third, largest = own["w3"], np.abs(own["w3"]).max(0) / 127  # max-abs per column, as no other was given
    x = (
        np.einsum("kc,nchw->nkhw", weights["c"].steps[:, :, 0, 0] * 0.01, rounded(batch))
        + biases["c"][:, None, None]
    )
    x = rounded(x.mean((2, 3))) @ (weights["m"].steps * 0.02) + biases["m"]
    x = rounded(x) @ (np.round(third / largest) * largest) + biases["g"]
    assert found == pytest.approx(x @ own["w4"], rel=1e-3, abs=1e-3)


def test_a_bias_after_a_matmul_is_replaced_where_it_is():
    made = model(
        "c = Conv (images, w)  p = GlobalAveragePool (c)  f = Flatten <axis = 1> (p)  m = MatMul (f, w2)  "
        "n = Add (bias, m)  logits = MatMul (n, w2)",
        {"w": (16, 16, 1, 1), "w2": (16, 16), "bias": (16,)},
        (16, 4, 4),
        "batch, k",
    )
    plan, given = q.lay_out(made), np.arange(16, dtype=np.float32)
    result = q.quantize(made, plan, dict.fromkeys(plan.tensors, Range(-1, 1)), biases={"m": given})
    add = next(node for node in result.graph.node if node.op_type == "Add")
    values = {t.name: numpy_helper.to_array(t) for t in result.graph.initializer}
    assert (
        sum(node.op_type == "Add" for node in result.graph.node) == 1
        and (values[add.input[0]] == given).all()
    )


def test_a_weight_that_two_layers_share_can_differ_between_them():
    made = model(
        "a = Conv (images, w)  b = Conv (a, w)  logits = Conv (b, w_last)",
        {"w": (16, 16, 1, 1), "w_last": (4, 16, 1, 1)},
        (16, 4, 4),
    )
    plan = q.lay_out(made)
    given = q.Int8Weight(np.ones((16, 16, 1, 1), np.int8), np.ones(16, np.float32))
    result = q.quantize(made, plan, dict.fromkeys(plan.tensors, Range(-1, 1)), weights={"b": given})
    values = {t.name: numpy_helper.to_array(t) for t in result.graph.initializer}
    feeds = {
        o: node.input[0]
        for node in result.graph.node
        if node.op_type == "DequantizeLinear"
        for o in node.output
    }
    steps = {
        node.name: values[feeds[node.input[1]]] for node in result.graph.node if node.name in plan.layers
    }
    assert (steps["b"] == 1).all() and not (steps["a"] == 1).all()
    alone = q.quantize(made, plan, dict.fromkeys(plan.tensors, Range(-1, 1)))
    assert (
        sum(t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4 for t in alone.graph.initializer) == 1
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weights": {"nowhere": q.Int8Weight(np.zeros(1, np.int8), np.ones(1))}}, "nowhere is not a layer"),
        (
            {"weights": {"c": q.Int8Weight(np.zeros((16, 16), np.int8), np.ones(16))}},
            "expected \\(16, 16, 1, 1\\) with",
        ),
        ({"weights": {"c": q.Int8Weight(np.zeros((16, 16, 1, 1), np.int8), np.zeros(16))}}, "scales above 0"),
        ({"weights": {"c": q.Int8Weight(np.zeros((16, 16, 1, 1)), np.ones(16))}}, "expected int8"),
        ({"biases": {"c": np.zeros(3)}}, "expected \\(16,\\)"),
    ],
)
def test_given_weights_that_do_not_fit_are_an_error(given, message):
    made = model(*MIXED)
    plan = q.lay_out(made)
    with pytest.raises(UsageError, match=message):
        q.quantize(made, plan, dict.fromkeys(plan.tensors, Range(-1, 1)), **given)


# ---- what ONNX Runtime makes of it


def test_a_dead_channel_keeps_its_bias_where_it_becomes_int32():
    made = model(
        "c = Conv (images, w, bias)  d = Conv (c, w2)  logits = Conv (d, w3)",
        {"w": (16, 16, 1, 1), "bias": (16,), "w2": (16, 16, 1, 1), "w3": (4, 16, 1, 1)},
        (16, 2, 2),
    )
    values = {t.name: t for t in made.graph.initializer}
    weight, bias = (numpy_helper.to_array(values[name]).copy() for name in ("w", "bias"))
    weight[5], bias[5] = 0, 5000.0  # in steps of 1e-6 x 1/255: 1.3e12, far beyond int32
    for name, value in (("w", weight), ("bias", bias)):
        values[name].CopyFrom(numpy_helper.from_array(value, name))
    plan = q.lay_out(made, "cpu")
    ranges = {"images": Range(0.0, 1.0), "c": Range(-10.0, 5000.0), "d": Range(-20000.0, 20000.0)}
    assert set(ranges) == set(plan.tensors)
    result = q.quantize(made, plan, ranges)
    batch = np.random.default_rng(0).random((2, 16, 2, 2)).astype(np.float32)
    plain = run(made, batch)
    assert np.abs(run(result, batch) - plain).max() < 0.05 * np.abs(plain).max()


def test_a_layer_left_float_is_not_made_int8_behind_our_back(tmp_path):
    made = model(
        "a = Conv (images, w)  r = Relu (a)  b = Conv (r, w2)  s = Relu (b)  c = Conv (s, w)  logits = Conv"
        " (c, w3)",
        {"w": (16, 16, 1, 1), "w2": (16, 16, 1, 1), "w3": (4, 16, 1, 1)},
        (16, 4, 4),
    )
    values = {t.name: t for t in made.graph.initializer}
    weight = numpy_helper.to_array(values["w2"]).copy()
    weight[0] *= 1000  # one scale for all channels would erase the others
    values["w2"].CopyFrom(numpy_helper.from_array(weight, "w2"))
    batch = np.random.default_rng(0).normal(size=(4, 16, 4, 4)).astype(np.float32)
    plan = q.lay_out(made, "cpu", q.Rules(exclude=("b",)))
    ranges = calibrate(made, plan.tensors, [batch], "minmax")
    result = q.quantize(made, plan, ranges)
    kinds = kinds_in_onnxruntime(result, tmp_path)
    assert kinds.count("QLinearConv") == 2 and sum(kind in ("Conv", "FusedConv") for kind in kinds) == 2
    difference = np.abs(run(result, batch) - run(result, batch, optimized=False)).max()
    assert difference < 0.02 * np.abs(run(made, batch)).max()


def test_a_shortcut_of_slice_and_pad_stays_integer(tmp_path):
    made = model(
        "a = Conv <strides = [2,2]> (images, w1)  s = Slice (images, zero, ends, axes, two)  p = Pad (s,"
        " pads)  t = Add (a, p)  logits = Conv (t, w2)",
        {"w1": (32, 16, 1, 1), "w2": (32, 32, 1, 1)},
        (16, 8, 8),
    )
    numbers = {
        "zero": [0, 0],
        "ends": [8, 8],
        "axes": [2, 3],
        "two": [2, 2],
        "pads": [0, 8, 0, 0, 0, 8, 0, 0],
    }
    made.graph.initializer.extend(
        numpy_helper.from_array(np.array(value), name) for name, value in numbers.items()
    )
    plan = q.lay_out(made, "cpu", q.Rules(first=True, classifier=True))
    ranges = dict.fromkeys(plan.tensors, Range(-40.0, 40.0)) | {"images": Range(-1.0, 3.0)}
    result = q.quantize(made, plan, ranges)
    pad = next(node for node in result.graph.node if node.op_type == "Pad")
    assert (
        pad.input[0] == "s_int8"
        and numpy_helper.to_array(next(t for t in result.graph.initializer if t.name == pad.input[2])) == 64
    )  # its zero is the zero point
    kinds = kinds_in_onnxruntime(result, tmp_path)
    assert (
        kinds.count("QuantizeLinear") == 1 and kinds.count("QLinearAdd") == 1
    )  # the image's is the only one
    batch = np.random.default_rng(0).uniform(-1, 3, (2, 16, 8, 8)).astype(np.float32)
    plain = run(made, batch)
    assert np.abs(run(result, batch) - plain).max() < 0.03 * np.abs(plain).max()


# ---- whole networks


def broken_rules(quantized: onnx.ModelProto, placement: str) -> list[str]:
    """What NVIDIA's parser or its documentation would object to, read from the finished graph alone."""
    g, found = quantized.graph, []
    values = {t.name: numpy_helper.to_array(t) for t in g.initializer}
    producer = {o: n for n in g.node for o in n.output}
    readers = {}
    for n in g.node:
        for name in n.input:
            readers.setdefault(name, []).append(n)
    if [e.version for e in quantized.opset_import if e.domain == ""] != [19]:
        found.append("opset")
    for n in g.node:
        if n.op_type in ("QuantizeLinear", "DequantizeLinear"):
            if len(n.input) != 3 or values[n.input[2]].dtype != np.int8 or values[n.input[2]].any():
                found.append(f"{n.name}: zero point")
            if not (np.float16(values[n.input[1]]) > 0).all() or values[n.input[1]].dtype != np.float32:
                found.append(f"{n.name}: scale")
        if n.op_type == "QuantizeLinear":
            if values[n.input[1]].ndim:
                found.append(f"{n.name}: activation not per tensor")
            if sum(r.op_type == "QuantizeLinear" for r in readers[n.input[0]]) != 1:
                found.append(f"{n.name}: more than one pair")
            before = producer.get(n.input[0])
            if (
                before is not None
                and before.op_type in ("Conv", "Add")
                and any(r.op_type == "Relu" for d in readers[n.output[0]] for r in readers[d.output[0]])
            ):
                found.append(f"{n.name}: between a layer and its ReLU")
        if n.op_type == "DequantizeLinear" and n.input[0] in values:
            weight, axis = values[n.input[0]], next(a.i for a in n.attribute if a.name == "axis")
            if (
                weight.dtype != np.int8
                or values[n.input[1]].shape != (weight.shape[axis],)
                or weight.min() == -128
            ):
                found.append(f"{n.name}: weight")
            if axis != (0 if readers[n.output[0]][0].op_type == "Conv" else axis):
                found.append(f"{n.name}: axis")
        if n.op_type in ("Conv", "Gemm"):
            quantized_inputs = [
                name in producer and producer[name].op_type == "DequantizeLinear" for name in n.input[:2]
            ]
            if len(n.input) > 2 and (n.input[2] not in values or values[n.input[2]].dtype != np.float32):
                found.append(f"{n.name}: bias is not a float constant")
            if quantized_inputs[1] and not quantized_inputs[0]:
                found.append(f"{n.name}: one-sided")
        if n.op_type == "Add" and placement == "tensorrt":
            sides = [producer[name].op_type for name in n.input if name in producer]
            if sides.count("DequantizeLinear") > 1:
                found.append(f"{n.name}: both inputs of an Add")
        if n.op_type == "BatchNormalization" and producer[n.input[0]].op_type == "Conv":
            found.append(f"{n.name}: batch norm not folded")
    return found


def quantized_network(fp32, size, placement):
    batch = np.random.default_rng(0).normal(size=(4, *size)).astype(np.float32)
    made = q.lay_out(fp32, placement)
    return made, q.quantize(fp32, made, calibrate(fp32, made.tensors, [batch], "minmax"))


def test_resnet_obeys_the_parser(student_onnx):
    made, quantized = quantized_network(student_onnx, (3, 32, 32), "tensorrt")
    assert broken_rules(quantized, "tensorrt") == []
    assert len(made.layers) == 19 and made.left_float == {"linear": "makes the logits"}
    adds = [n for n in quantized.graph.node if n.op_type == "Add"]
    assert len(adds) == 9 and all(sum(i.endswith("_dequantized") for i in n.input) == 1 for n in adds)


def test_cpu_placement_runs_everything_between_image_and_logits_on_integers(student_onnx, tmp_path):
    _, quantized = quantized_network(rewrite.prepare(student_onnx), (3, 32, 32), "cpu")
    kinds = Counter(kinds_in_onnxruntime(quantized, tmp_path))
    assert kinds == {
        "QuantizeLinear": 1,
        "Transpose": 2,
        "QLinearConv": 19,
        "QLinearAdd": 9,
        "Slice": 2,
        "Pad": 2,
        "QLinearGlobalAveragePool": 1,
        "Flatten": 1,
        "QGemm": 1,
        "Add": 1,
    }


def test_reparameterized_network_obeys_the_parser():
    made, quantized = quantized_network(families.graph("repvgg"), (3, 64, 64), "tensorrt")
    assert broken_rules(quantized, "tensorrt") == []
    assert len(made.layers) == 22


def test_convnext_keeps_its_depthwise_layers_float(convnext_onnx):
    made, quantized = quantized_network(convnext_onnx, (3, 64, 64), "tensorrt")
    view = View(convnext_onnx)
    assert broken_rules(quantized, "tensorrt") == []
    assert sum(reason == "large grouped kernel" for reason in made.left_float.values()) == 12
    others = [view.nodes[name].op_type for name, _ in made.edges if name not in made.layers]
    assert Counter(others) == {
        "Add": 12,
        "Transpose": 1,
    }  # a skip in each block, and the stem before its layer norm
    assert "stages.0.blocks.0.mlp.fc2" in made.layers
