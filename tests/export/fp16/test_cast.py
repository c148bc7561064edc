"""export.fp16.cast: a reader of its own checks types; ONNX's reference implementation, which has a real
half, checks numbers.
"""

import functools
from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from timm.layers import SqueezeExcite
from timm.models._efficientnet_blocks import InvertedResidual
from torch import nn

from export.fp16 import cast
from export.graph import from_torch, rewrite
from export.int8 import quantize
from export.int8.calibrate import calibrate
from export.int8.ranges import Range
from runtime.errors import UsageError

BATCH = np.random.default_rng(1).normal(size=(2, 4, 6, 6)).astype(np.float32)


def model(body, weights=(), logits="batch, d, e, f", opset=19, **values):
    """A graph from `images` (batch, 4, 6, 6) to `logits`; weights {name: shape} by chance, values given."""
    random = np.random.default_rng(0)
    made = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : {opset}]> agraph (float[batch, 4, 6, 6] images) => '
        f"(float[{logits}] logits) {{ {body} }}"
    )
    constants = {
        name: random.normal(size=shape).astype(np.float32) for name, shape in dict(weights).items()
    } | values
    made.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
    )
    for node in made.graph.node:
        node.name = node.output[0]
    return made


def run(made, batch=BATCH):
    return ReferenceEvaluator(made).run(None, {"images": batch})[0]


FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
OTHER = {"Shape": onnx.TensorProto.INT64, "Less": onnx.TensorProto.BOOL}


def type_errors(result, kept=()):
    """What a strongly typed engine would refuse or a reader of the graph regret, found by walking it with
    rules of its own.
    """
    g, found, cast = result.graph, [], {}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in g.initializer}
    known = {tensor.name: tensor.data_type for tensor in g.initializer} | {
        v.name: v.type.tensor_type.elem_type for v in g.input
    }
    for node in g.node:
        floats = [
            known[name]
            for index, name in enumerate(node.input)
            if name and known[name] in (FLOAT, HALF) and (node.op_type, index) != ("Resize", 2)
        ]
        kind = floats[0] if floats else None
        if node.op_type == "Cast":
            kind = node.attribute[0].i
            if floats:
                if floats[0] == kind or node.input[0] in cast.values() or (node.input[0], kind) in cast:
                    found.append(f"{node.name}: needless cast")
                cast[node.input[0], kind] = node.output[0]
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            if len(set(floats)) != 1 or not (constants.get(node.input[1], np.ones(1)) > 0).all():
                found.append(f"{node.name}: scale")
            kind = known[node.input[2]] if node.op_type == "QuantizeLinear" else kind
        elif node.op_type == "DynamicQuantizeLinear":
            known |= dict.fromkeys(node.output, onnx.TensorProto.UINT8) | {node.output[1]: FLOAT}
            found += [f"{node.name}: not float32"] * (floats != [FLOAT])
            continue
        elif floats and (len(set(floats)) != 1 or (kind == FLOAT) != (node.name in kept)):
            found.append(f"{node.name}: {floats}")
        known |= dict.fromkeys(node.output, OTHER.get(node.op_type, kind))
    declared = {
        value.name: value.type.tensor_type.elem_type for value in [*g.value_info, *g.input, *g.output]
    }
    found += [f"{v.name}: not float32" for v in [*g.input, *g.output] if known[v.name] != FLOAT]
    return found + [
        f"{name}: declared otherwise" for name, kind in declared.items() if kind != known.get(name)
    ]


def kinds(made):
    return Counter(node.op_type for node in made.graph.node)


def constant(made, name):
    return next(numpy_helper.to_array(tensor) for tensor in made.graph.initializer if tensor.name == name)


def inputs(made):
    return {node.name: list(node.input) for node in made.graph.node}


CHAIN = (
    "a = Conv (images, w, b)  r = Relu (a)  c = Conv (r, w, b)  logits = Sigmoid (c)",
    {"w": (4, 4, 1, 1), "b": (4,)},
)


def test_everything_is_half_between_one_cast_in_and_one_out():
    result = cast.to_half(model(*CHAIN))
    assert type_errors(result) == [] and kinds(result) == {"Cast": 2, "Conv": 2, "Relu": 1, "Sigmoid": 1}
    assert {numpy_helper.to_array(tensor).dtype for tensor in result.graph.initializer} == {
        np.dtype(np.float16)
    }
    assert run(result) == pytest.approx(run(model(*CHAIN)), abs=2e-3) and run(result).dtype == np.float32


def test_descriptions_of_tensors_follow_their_types_and_those_of_no_tensor_go():
    made = model(*CHAIN)
    made.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(name, FLOAT, [None, 4, 6, 6]) for name in ("a", "r", "gone")
    )
    result = cast.to_half(made, {"r"})
    assert type_errors(result, {"r"}) == [] and [value.name for value in result.graph.value_info] == [
        "a",
        "r",
    ]


def test_numbers_in_constant_nodes_become_half_without_a_cast():
    result = cast.to_half(model("a = Constant <value_floats = [2.0]> ()  logits = Mul (images, a)"))
    assert kinds(result) == {"Cast": 2, "Mul": 1} and constant(result, "a").tolist() == [2]


def test_kept_nodes_compute_in_float32_with_no_cast_between_them():
    result = cast.to_half(model(*CHAIN), {"r", "c"})
    assert type_errors(result, {"r", "c"}) == []
    assert inputs(result)["r"] == ["a_float"] and inputs(result)["c"] == ["r", "w", "b"]
    assert inputs(result)["a"] == ["images_half", "w_half", "b_half"] and kinds(result)["Cast"] == 4
    assert constant(result, "w").dtype == np.float32 and constant(result, "w_half").dtype == np.float16


def test_a_kept_node_at_either_end_of_the_graph_needs_no_cast_there():
    result = cast.to_half(model(*CHAIN), {"a", "logits"})
    assert type_errors(result, {"a", "logits"}) == []
    assert inputs(result)["a"][0] == "images" and kinds(result)["Cast"] == 2


def test_a_cast_is_shared_by_all_readers():
    made = model(
        "a = Relu (images)  b = Neg (a)  c = Abs (a)  d = Sqrt (c)  e = Add (b, d)  logits = Add (e, a)"
    )
    result = cast.to_half(made, {"b", "c"})
    assert type_errors(result, {"b", "c"}) == []
    assert inputs(result)["b"] == inputs(result)["c"] == ["a_float"] and inputs(result)["logits"] == [
        "e",
        "a",
    ]


def test_an_output_that_is_also_read_inside_is_half_there():
    made = model("a = Relu (images)  logits = Neg (a)  d = Abs (logits)")
    made.graph.output.append(onnx.helper.make_tensor_value_info("d", FLOAT, ["batch", 4, 6, 6]))
    result = cast.to_half(made)
    assert type_errors(result) == [] and inputs(result)["d"] == ["logits_half"] and kinds(result)["Cast"] == 3


OPERATORS = [
    "logits = Clip (images, low, high)",
    "a = Pow (images, two)  logits = Sqrt (a)",
    "logits = Erf (images)",
    "logits = Softmax <axis = 1> (images)",
    "logits = ReduceMean <keepdims = 1> (images, axes)",
    "logits = GlobalAveragePool (images)",
    "logits = HardSigmoid (images)",
    "logits = HardSwish (images)",
    "logits = LayerNormalization <axis = -1> (images, gain, gain)",
    "logits = Pad (images, pads, two)",
    "logits = BatchNormalization (images, one, one, one, one)",
    "a = MaxPool <kernel_shape = [2,2]> (images)  logits = Neg (a)",
    "logits = Concat <axis = 1> (images, images, other)",
    "logits = LeakyRelu <alpha = 0.1> (images)",
    "a = Constant <value_float = 2.0> ()  logits = Mul (images, a)",
    "a = Constant <value = float[1] {2.0}> ()  logits = Div (images, a)",
    "a = Less (images, two)  logits = Where (a, images, two)",
    "a, b = Split <axis = 1, num_outputs = 2> (images)  logits = Mul (a, b)",
    "logits = Max (images, two)",
    "a = ReduceL2 <keepdims = 1> (images, axes)  logits = Div (images, a)",
    "a = Shape (images)  b = Cast <to = 1> (a)  c = ReduceMean <keepdims = 0> (b)  logits = Mul (images, c)",
    "a, s, z = DynamicQuantizeLinear (images)  logits = DequantizeLinear (a, s, z)",
]


@pytest.mark.parametrize("body", OPERATORS)
def test_operators_agree_in_type_and_compute_the_same(body):
    made = model(
        body,
        {"gain": (6,), "other": (1, 1, 6, 6)} if "other" not in body else {"other": (2, 1, 6, 6)},
        low=np.float32(-0.5),
        high=np.float32(0.5),
        two=np.float32(2),
        axes=np.array([2, 3]),
        pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        one=np.ones(4, np.float32),
    )
    used = {name for node in made.graph.node for name in node.input}
    for tensor in [tensor for tensor in made.graph.initializer if tensor.name not in used]:
        made.graph.initializer.remove(tensor)
    result = cast.to_half(made)
    assert type_errors(result) == []
    assert run(result) == pytest.approx(run(made), rel=4e-3, abs=4e-3)


def test_what_onnx_fixes_to_float32_stays_so_the_scales_of_a_resize():
    made = model(
        'logits = Resize <mode = "nearest"> (images, , scales)', scales=np.array([1, 1, 2, 2], np.float32)
    )
    result = cast.to_half(made)
    assert type_errors(result) == [] and constant(result, "scales").dtype == np.float32
    assert inputs(result)["logits"][0] == "images_half"


def test_constants_beyond_half_become_infinite_and_show():
    made = model(
        "a = Mul (images, big)  logits = Mul (a, small)", big=np.float32(1e6), small=np.float32(1e-6)
    )
    assert not np.isfinite(run(cast.to_half(made))).all() and np.isfinite(run(made)).all()


# ---- Q/DQ


def quantized(body, weights, placement="tensorrt", spread=4.0):
    made = model(body, weights, "batch, d, e, f")
    plan = quantize.lay_out(made, placement, quantize.Rules(few_channels=0, classifier=True))
    return quantize.quantize(made, plan, dict.fromkeys(plan.tensors, Range(-spread, spread)))


TWO = (
    "a = Conv (images, w, b)  r = Relu (a)  c = Conv (r, v, b)  s = Add (c, r)  logits = Neg (s)",
    {"w": (4, 4, 1, 1), "v": (4, 4, 1, 1), "b": (4,)},
)


@pytest.mark.parametrize("placement", ["tensorrt", "cpu"])
def test_around_int8_layers_everything_is_half(placement):
    made = quantized(*TWO, placement)
    result = cast.to_half(made)
    assert type_errors(result) == []
    before, after = kinds(made), kinds(result)
    assert (
        after.pop("Cast") == 1 and after == before
    )  # the image is quantized as it is; only the logits are cast
    assert run(result) == pytest.approx(run(made), abs=0.15)  # a few steps of 4 / 127


def test_a_kept_int8_layer_has_a_float32_pair_of_the_same_steps():
    made = quantized(*TWO)
    result = cast.to_half(made, {"c"})
    assert type_errors(result, {"c"}) == []
    producer = {name: node for node in result.graph.node for name in node.output}
    data, weight = (producer[name] for name in inputs(result)["c"][:2])
    assert data.op_type == weight.op_type == "DequantizeLinear"  # and no Cast between pair and layer
    assert constant(result, data.input[1]).dtype == constant(result, weight.input[1]).dtype == np.float32
    skip = producer[inputs(result)["s"][1]]
    assert skip.op_type == "DequantizeLinear" and constant(result, skip.input[1]).dtype == np.float16
    assert data.input[0] == skip.input[0]  # one QuantizeLinear feeds both
    assert constant(result, data.input[1]) == constant(result, skip.input[1])  # as numbers, not only nearly
    assert run(result) == pytest.approx(run(made), abs=0.15)


def test_a_pair_read_by_kept_nodes_alone_is_float32():
    result = cast.to_half(quantized(*TWO), {"c", "s"})
    assert type_errors(result, {"c", "s"}) == []
    assert sum(node.op_type == "DequantizeLinear" for node in result.graph.node) == 4


def test_scales_do_not_become_zero():
    made = quantized(*TWO)
    for tensor in made.graph.initializer:
        if tensor.name == "v_scale":
            tensor.CopyFrom(
                numpy_helper.from_array(np.array([1e-9, 1e-3, 1e-3, 1e-3], np.float32), tensor.name)
            )
    scale = constant(cast.to_half(made), "v_scale")
    assert scale.dtype == np.float16 and scale[0] == np.float16(2**-24) and (scale > 0).all()


# ---- whole networks


@pytest.fixture(scope="module")
def mobilenet_onnx():
    """Inverted residuals with depthwise layers, squeeze and excitation, and activations that are several
    nodes.
    """
    torch.manual_seed(0)
    gate = functools.partial(SqueezeExcite, rd_ratio=0.25)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1),
        nn.Hardswish(),
        InvertedResidual(16, 16, act_layer=nn.SiLU, se_layer=gate),
        InvertedResidual(
            16, 24, 5, 2, act_layer=nn.ReLU6, se_layer=functools.partial(gate, gate_layer=nn.Hardsigmoid)
        ),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 7),
    )
    return from_torch.to_onnx(from_torch.merge(network), (3, 32, 32))


def networks(request, name):
    """(fp32 graph, batch); every network with the layers of its kind: shortcuts, layer norm, squeeze and
    excitation.
    """
    made = request.getfixturevalue(
        {"resnet20": "student_onnx", "convnext": "convnext_onnx", "mobilenet": "mobilenet_onnx"}[name]
    )
    sides = [d.dim_value for d in made.graph.input[0].type.tensor_type.shape.dim[1:]]
    return made, np.random.default_rng(0).normal(size=(4, *sides)).astype(np.float32)


def logits_of(made, batch):
    return ort.InferenceSession(made.SerializeToString()).run(None, {"images": batch})[0]


@pytest.mark.parametrize("name", ["resnet20", "convnext", "mobilenet"])
def test_whole_networks_in_half(name, request):
    made, batch = networks(request, name)
    result = cast.to_half(made)
    assert type_errors(result) == [] and kinds(result)["Cast"] - kinds(made)["Cast"] == 2
    assert not any(tensor.data_type == FLOAT for tensor in result.graph.initializer)
    plain, scale = logits_of(made, batch), np.abs(logits_of(made, batch)).max()
    assert np.abs(logits_of(cast.rounded(result), batch) - plain).max() < 0.02 * scale
    assert np.abs(logits_of(result, batch) - plain).max() < 0.02 * scale


@pytest.mark.parametrize("placement", ["tensorrt", "cpu"])
@pytest.mark.parametrize("name", ["resnet20", "convnext", "mobilenet"])
def test_whole_quantized_networks_in_half_with_some_layers_kept(name, placement, request):
    made, batch = networks(request, name)
    made = rewrite.prepare(made)
    plan = quantize.lay_out(made, placement)
    ranges = calibrate(
        made, plan.tensors, [batch], "minmax", unsigned=quantize.PLACEMENTS[placement].unsigned
    )
    quantized = quantize.quantize(made, plan, ranges)
    assert type_errors(cast.to_half(quantized)) == []
    kept = {
        node.name
        for node in quantized.graph.node
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear")
    }
    kept = set(sorted(kept)[::3])
    result = cast.to_half(quantized, kept)
    assert type_errors(result, kept) == []
    producer = {name: node.op_type for node in result.graph.node for name in node.output}
    for node in result.graph.node:
        if node.name in plan.layers:
            assert [producer[name] for name in node.input[:2]] == ["DequantizeLinear"] * 2
    plain = logits_of(quantized, batch)
    assert np.abs(logits_of(cast.rounded(result), batch) - plain).max() < 0.15 * np.abs(plain).max()


# ---- rounded


@pytest.mark.parametrize("keep", [(), ("r", "c")])
def test_rounded_computes_in_float32_what_half_stores(keep):
    made = model(*CHAIN)
    result = cast.to_half(made, keep)
    same = cast.rounded(result)
    onnx.checker.check_model(same, full_check=True)
    assert {tensor.data_type for tensor in same.graph.initializer} == {onnx.TensorProto.FLOAT}
    assert np.abs(run(same) - run(result)).max() <= 2e-3 and np.abs(run(same) - run(made)).max() > 0


# ---- refusals


@pytest.mark.parametrize(
    ("made", "keep", "message"),
    [
        (model("logits = Relu (images)", opset=18), (), "opset 18.*Export with --opset 19"),
        (model("logits = Relu (images)"), ("layer9",), "layer9 is to stay fp32, but no node has this name"),
        (
            model(
                "a = ReduceMax <keepdims = 0> (images)  c = Cast <to = 9> (a)  logits = If (c) <then_branch ="
                " t () => (float y) { y = Identity (images) }, else_branch = e () => (float z) { z = Neg"
                " (images) }>"
            ),
            (),
            r"\(If\) holds a graph",
        ),
    ],
)
def test_what_cannot_be_half_is_refused(made, keep, message):
    with pytest.raises(UsageError, match=message):
        cast.to_half(made, keep)


def test_an_operator_unknown_to_onnx_is_refused():
    made = model("a = Relu (images)  logits = Abs (a)")
    made.graph.node[0].domain, made.graph.node[0].op_type = "elsewhere", "Special"
    made.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))
    with pytest.raises(UsageError, match=r"a \(Special\): the type of its output a is not known"):
        cast.to_half(made)
