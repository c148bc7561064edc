"""export.quantize: one test per rule on graphs small enough to read, then the parser's rules on whole networks."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from export import quantize as q
from export.calibrate import Range, calibrate
from export.view import View
from runtime.errors import UsageError


def model(body, weights, size=(32, 8, 8)):
    """A graph from `images` to `logits` out of ONNX's text form; weights {name: shape} are filled by chance."""
    random = np.random.default_rng(0)
    text = ", ".join(map(str, ("batch", *size)))
    made = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 19]> agraph (float[{text}] images) => (float[batch, d, e, f] logits) {{ {body} }}')
    made.graph.initializer.extend(numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name)
                                  for name, shape in weights.items())
    for node in made.graph.node:
        node.name = node.output[0]
    return made


def conv_chain(weight, attributes="", size=(32, 8, 8)):
    """The layer `layer` in question, then a 1 x 1 layer that makes the logits."""
    return model(f"layer = Conv {attributes} (images, w)  logits = Conv (layer, w_last)",
                 {"w": weight, "w_last": (4, weight[0], 1, 1)}, size)


def reason(made, rules=None):
    try:
        return q.plan(made, rules=rules).left_float.get("layer")
    except UsageError as error:  # nothing left to quantize
        assert "nothing to quantize" in str(error)
        return next(r for r in (q.stays_float(n, View(made), rules or q.Rules()) for n in made.graph.node if n.name == "layer"))


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
    assert q.weight_to_int8(np.array([[2.5, 127.0]], np.float32), 0, 1e-6)[0].tolist() == [[2, 127]]  # tie to even


@pytest.mark.parametrize(("node", "axis"), [
    ("Conv (a, w)", 0), ("Gemm <transB = 1> (a, w)", 0), ("Gemm (a, w)", 1), ("MatMul (a, w)", 1)])
def test_weight_channels_are_the_outputs(node, axis):
    text = f'<ir_version: 9, opset_import: ["" : 19]> g (float[1] a, float[1] w) => (float[1] c) {{ c = {node} }}'
    assert q.channel_axis(onnx.parser.parse_model(text).graph.node[0]) == axis


# ---- which layers

@pytest.mark.parametrize(("weight", "attributes", "size", "expected"), [
    ((32, 32, 3, 3), "", (32, 8, 8), None),
    ((16, 3, 3, 3), "", (3, 8, 8), None),                            # first layer, square, 16 outputs
    ((8, 3, 3, 3), "", (3, 8, 8), None),                             # first layer: a multiple of 8 is enough
    ((10, 3, 3, 3), "", (3, 8, 8), "few channels"),                  # neither side a multiple of 8
    ((16, 3, 1, 3), "", (3, 8, 8), "few channels"),                  # not square
    ((32, 1, 3, 3), "<group = 32>", (32, 8, 8), None),               # depthwise 3 x 3
    ((32, 1, 1, 5), "<group = 32>", (32, 8, 8), "few channels"),     # 1 x k strip
    ((12, 1, 3, 3), "<group = 12>", (12, 8, 8), "few channels"),
    ((32, 1, 7, 7), "<group = 32, pads = [3,3,3,3]>", (32, 8, 8), "large grouped kernel"),
    ((32, 1, 5, 51), "<group = 32, pads = [2,25,2,25]>", (32, 8, 8), "large grouped kernel"),
    ((32, 32, 1, 1), "", (32, 1, 1), "1 x 1 map (squeeze and excitation)"),
])
def test_layers_that_stay_float(weight, attributes, size, expected):
    assert reason(conv_chain(weight, attributes, size)) == expected


def test_the_layer_that_makes_the_logits_stays_float_unless_asked_for():
    made = conv_chain((32, 32, 3, 3))
    assert q.plan(made).left_float == {"logits": "makes the logits"}
    assert q.plan(conv_chain((32, 32, 1, 1)), rules=q.Rules(classifier=True, few_channels=4)).left_float == {}


def test_exclude_is_a_glob_and_says_how_many_it_matched():
    made = model("a = Conv (images, w1)  b = Conv (a, w2)  logits = Conv (b, w3)",
                 {"w1": (32, 32, 1, 1), "w2": (32, 32, 1, 1), "w3": (32, 32, 1, 1)})
    found = q.plan(made, rules=q.Rules(exclude=("[a]",)))
    assert found.layers == ["b"] and found.left_float["a"] == "excluded" and found.excluded == {"[a]": 1}


def test_exclude_without_a_match_is_an_error():
    with pytest.raises(UsageError, match="matched 0 of 2 nodes"):
        q.plan(conv_chain((32, 32, 3, 3)), rules=q.Rules(exclude=("layer9*",)))


# ---- where

RESIDUAL = ("a = Conv (images, w1)  r = Relu(a)  b = Conv (r, w2)  s = Add (b, r)  t = Relu(s)  logits = Conv (t, w3)",
            {"w1": (32, 32, 1, 1), "w2": (32, 32, 1, 1), "w3": (4, 32, 1, 1)})


def test_only_the_skip_input_of_a_residual_add_is_quantized():
    found = q.plan(model(*RESIDUAL))
    assert found.edges == [("a", 0), ("b", 0), ("s", 1)]
    assert found.tensors == ["images", "r"]  # one pair for r, shared by the convolution and the Add


def test_of_two_convolutions_into_an_add_the_shorter_branch_is_the_skip():
    found = q.plan(model("a = Conv (images, w1)  b = Conv (a, w2)  short = Conv (images, w3)  s = Add (short, b)  "
                         "logits = Conv (s, w4)", dict.fromkeys(("w1", "w2", "w3", "w4"), (32, 32, 1, 1))))
    assert ("s", 0) in found.edges and ("s", 1) not in found.edges


def test_an_add_without_a_quantized_convolution_is_left_alone():
    found = q.plan(model("a = Conv (images, w1)  r = Relu(a)  s = Add (r, images)  logits = Conv (s, w2)",
                         {"w1": (32, 32, 1, 1), "w2": (32, 32, 1, 1)}))
    assert found.edges == [("a", 0)]  # an activation stands between, so the Add does not fuse


def test_cpu_placement_also_quantizes_outputs_after_their_activation():
    made = model(*RESIDUAL)
    found = q.plan(made, "cpu")
    assert set(found.tensors) == {"images", "r", "b", "t"}  # not a or s: a ReLU follows
    assert {("s", 0), ("s", 1), ("logits", 0)} <= set(found.edges)


def test_unknown_placement_is_an_error():
    with pytest.raises(UsageError, match="tensorrt, cpu"):
        q.plan(model(*RESIDUAL), "dla")


def test_maxpool_shares_the_scale_of_its_input():
    made = model("a = Conv (images, w1)  p = MaxPool <kernel_shape = [2,2], strides = [2,2]> (a)  b = Conv (p, w2)  "
                 "logits = Conv (b, w3)", dict.fromkeys(("w1", "w2", "w3"), (32, 32, 1, 1)))
    found = q.with_shared_ranges(["images", "a", "p"], {"images": Range(-9, 9), "a": Range(-1, 2), "p": Range(0, 2)}, View(made))
    assert found == {"images": Range(-9, 9), "a": Range(-1, 2), "p": Range(-1, 2)}


def test_maxpool_keeps_its_own_range_when_its_input_is_not_quantized():
    made = model("p = MaxPool <kernel_shape = [2,2]> (images)  logits = Conv (p, w1)", {"w1": (32, 32, 1, 1)})
    assert q.with_shared_ranges(["p"], {"p": Range(0, 2)}, View(made)) == {"p": Range(0, 2)}


def test_quantized_graph_equals_the_float_graph_on_rounded_numbers():
    made = model("c = Conv <kernel_shape = [1,1]> (images, w)  logits = Conv (c, w2)",
                 {"w": (16, 16, 1, 1), "w2": (4, 16, 1, 1)}, (16, 4, 4))
    batch = np.random.default_rng(1).normal(size=(2, 16, 4, 4)).astype(np.float32)
    ranges = {"images": Range(-2.0, 2.0)}
    result = q.quantize(made, q.plan(made), ranges)
    found = ort.InferenceSession(result.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"images": batch})[0]
    w, w2 = (numpy_helper.to_array(t)[:, :, 0, 0].astype(np.float64) for t in made.graph.initializer)
    x = np.clip(np.round(batch / (2 / 127)), -128, 127) * (2 / 127)  # by hand, in float64
    step = np.abs(w).max(1, keepdims=True) / 127
    expected = np.einsum("kc,nchw->nkhw", w2 @ (np.round(w / step) * step), x)
    assert found == pytest.approx(expected, abs=1e-4)
    assert {t.name for t in result.graph.initializer if t.data_type == 1} == {"w2", "images_scale", "w_scale"}  # fp32 w is gone


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
            if before is not None and before.op_type in ("Conv", "Add") and any(
                    r.op_type == "Relu" for d in readers[n.output[0]] for r in readers[d.output[0]]):
                found.append(f"{n.name}: between a layer and its ReLU")
        if n.op_type == "DequantizeLinear" and n.input[0] in values:
            weight, axis = values[n.input[0]], next(a.i for a in n.attribute if a.name == "axis")
            if weight.dtype != np.int8 or values[n.input[1]].shape != (weight.shape[axis],) or weight.min() == -128:
                found.append(f"{n.name}: weight")
            if axis != (0 if readers[n.output[0]][0].op_type == "Conv" else axis):
                found.append(f"{n.name}: axis")
        if n.op_type in ("Conv", "Gemm"):
            quantized_inputs = [name in producer and producer[name].op_type == "DequantizeLinear" for name in n.input[:2]]
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
    made = q.plan(fp32, placement)
    return made, q.quantize(fp32, made, calibrate(fp32, made.tensors, [batch], "minmax"))


def test_resnet_obeys_the_parser(student_onnx):
    made, quantized = quantized_network(student_onnx, (3, 32, 32), "tensorrt")
    assert broken_rules(quantized, "tensorrt") == []
    assert len(made.layers) == 19 and made.left_float == {"linear": "makes the logits"}
    adds = [n for n in quantized.graph.node if n.op_type == "Add"]
    assert len(adds) == 9 and all(sum(i.endswith("_dequantized") for i in n.input) == 1 for n in adds)


def test_cpu_placement_runs_every_convolution_as_integer(student_onnx, tmp_path):
    _, quantized = quantized_network(student_onnx, (3, 32, 32), "cpu")
    settings = ort.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(quantized.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    kinds = [n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QLinearConv") == 19 and kinds.count("QLinearAdd") == 9 and "Conv" not in kinds


def test_reparameterized_network_obeys_the_parser(repvgg):
    from export import graph

    made, quantized = quantized_network(graph.to_onnx(graph.merge(repvgg), (3, 64, 64)), (3, 64, 64), "tensorrt")
    assert broken_rules(quantized, "tensorrt") == []
    assert len(made.layers) == 22


def test_convnext_keeps_its_depthwise_layers_float(convnext_onnx):
    made, quantized = quantized_network(convnext_onnx, (3, 64, 64), "tensorrt")
    assert broken_rules(quantized, "tensorrt") == []
    assert sum(reason == "large grouped kernel" for reason in made.left_float.values()) == 12
    assert sum(quantized_edge[0] not in made.layers for quantized_edge in made.edges) == 12  # a skip in each block
    assert "stages.0.blocks.0.mlp.fc2" in made.layers
