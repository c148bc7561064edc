"""Every student family in the tensorrt placement: what NVIDIA's parser and kernels ask for, read from the
finished graph alone.

The reader below shares no code with the quantizer. Where TensorRT for RTX is installed (it parses and builds
without a GPU) every graph is built as well.
"""

import subprocess
import sys
from collections import defaultdict
from importlib.util import find_spec

import numpy as np
import onnx
import pytest
from families import FAMILIES, graph
from onnx import numpy_helper
from rtx_script import PARSE

from export.graph import rewrite
from export.int8 import quantize
from export.int8.calibrate import calibrate

INT8_LAYERS = {
    "cifar resnet": 19,
    "replknet": 26,
    "unireplknet": 14,
    "resnet": 20,
    "convnext": 12,
    "repvgg": 22,
}
"""How many layers become int8, counted by hand."""
SLOW = (
    "efficientnet",
    "inception",
    "densenet",
    "mobilenetv3",
    "regnet",
    "repvgg",
    "mobilenetv2",
    "resnet",
    "unireplknet",
    "replknet",
)
EVERY = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in FAMILIES]
MOVES = ("MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Pad", "Identity")
POINTWISE = ("Relu", "Clip", "HardSwish", "HardSigmoid", "LeakyRelu", "Gelu", "Elu", "Sigmoid")


@pytest.fixture(scope="module")
def int8():
    """int8(family) -> (fp32 graph, plan, int8 graph), made once."""
    made = {}

    def get(family):
        if family not in made:
            side = FAMILIES[family][2]
            fp32 = rewrite.prepare(graph(family))
            plan = quantize.lay_out(fp32, "tensorrt")
            batch = np.random.default_rng(0).normal(size=(2, 3, side, side)).astype(np.float32)
            made[family] = (
                fp32,
                plan,
                quantize.quantize(fp32, plan, calibrate(fp32, plan.tensors, [batch], "minmax")),
            )
        return made[family]

    return get


class Reader:
    """The finished graph as an engine's parser sees it."""

    def __init__(self, model):
        self.nodes = model.graph.node
        self.values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.maker = {output: node for node in self.nodes for output in node.output}
        self.readers = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.readers[name].append(node)
        self.opset = {entry.domain: entry.version for entry in model.opset_import}[""]

    def of(self, *kinds):
        return [node for node in self.nodes if node.op_type in kinds]

    def scale(self, tensor):
        """The scale of the pair that quantizes `tensor`, or None."""
        pairs = [node for node in self.readers[tensor] if node.op_type == "QuantizeLinear"]
        return self.values[pairs[0].input[1]].item() if pairs else None

    def is_weight_pair(self, node):
        return node.op_type == "DequantizeLinear" and node.input[0] in self.values

    def from_pair(self, tensor):
        return tensor in self.maker and self.maker[tensor].op_type == "DequantizeLinear"


def zero_points_and_scales(g):
    for node in g.of("QuantizeLinear", "DequantizeLinear"):
        zero, scale = g.values[node.input[2]], g.values[node.input[1]]
        if zero.dtype != np.int8 or zero.any() or zero.shape != scale.shape:
            yield f"{node.name}: zero point"
        with np.errstate(over="ignore"):  # these networks were never trained: some of their maps are huge
            in_half = scale.astype(np.float16)
        if scale.dtype != np.float32 or not (scale > 0).all() or not (in_half > 0).all():
            yield f"{node.name}: scale"
        if not g.is_weight_pair(node) and scale.ndim:
            yield f"{node.name}: activation not per tensor"


def one_pair_per_tensor(g):
    for node in g.of("QuantizeLinear"):
        if sum(reader.op_type == "QuantizeLinear" for reader in g.readers[node.input[0]]) != 1:
            yield f"{node.input[0]}: several pairs"
        if g.from_pair(node.input[0]):
            yield f"{node.input[0]}: a pair behind a pair"
        after = g.readers[node.output[0]]
        if [n.op_type for n in after] != ["DequantizeLinear"] or list(after[0].input[1:]) != list(
            node.input[1:]
        ):
            yield f"{node.name}: not undone by one DequantizeLinear with its scale"


def both_inputs_of_a_layer(g):
    for node in g.of("Conv", "Gemm", "MatMul"):
        data, weight = (g.from_pair(name) for name in node.input[:2])
        if data != weight:
            yield f"{node.name}: one-sided"
        if weight:
            pair = g.maker[node.input[1]]
            steps, scales, axis = g.values[pair.input[0]], g.values[pair.input[1]], pair.attribute[0].i
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            if axis != (0 if node.op_type == "Conv" or transposed else 1) or scales.shape != (
                steps.shape[axis],
            ):
                yield f"{node.name}: weight not per output channel"
            if steps.min() < -127:
                yield f"{node.name}: weight not symmetric"
        if len(node.input) > 2 and g.values[node.input[2]].dtype != np.float32:
            yield f"{node.name}: bias is not a float constant"


def nothing_between_layer_and_activation(g):
    """Also SiLU, a Sigmoid and a Mul that both read the layer, and the exact GELU, a Div and a Mul."""
    for node in g.of("Conv", "Gemm", "MatMul", "Add"):
        undone = [
            reader
            for quantized in g.readers[node.output[0]]
            if quantized.op_type == "QuantizeLinear"
            for pair in g.readers[quantized.output[0]]
            for reader in g.readers[pair.output[0]]
        ]
        if any(reader.op_type in POINTWISE for reader in undone):
            yield f"{node.name}: a pair before its activation"
        mixed = {reader.op_type for reader in g.readers[node.output[0]]}
        if {"Sigmoid", "QuantizeLinear"} <= mixed or (
            "Mul" in {r.op_type for r in undone} and "Sigmoid" in mixed
        ):
            yield f"{node.name}: a pair inside its SiLU"


def same_scale_where_values_only_move(g):
    for node in g.of("Concat", *MOVES):
        after = g.scale(node.output[0])
        data = node.input if node.op_type == "Concat" else node.input[:1]
        before = [g.values[g.maker[name].input[1]].item() for name in data if g.from_pair(name)]
        if after is not None and any(scale != after for scale in before):
            yield f"{node.name}: two scales around it"
        if node.op_type == "Concat" and after is not None and len(before) != len(node.input):
            yield f"{node.name}: joins a float map into a quantized one"


def skips_of_residual_adds(g):
    """Of the two inputs of an Add behind an int8 convolution exactly one is quantized, never the
    convolution's own.
    """
    for node in g.of("Add"):
        direct = [
            name
            for name in node.input
            if name in g.maker
            and g.maker[name].op_type == "Conv"
            and g.from_pair(g.maker[name].input[1])
            and len(g.readers[name]) == 1
        ]
        pairs = [name for name in node.input if g.from_pair(name) and not g.is_weight_pair(g.maker[name])]
        if len(pairs) > 1 or (
            direct and len(node.input) == 2 and len(pairs) != 1 and not any(n in g.values for n in node.input)
        ):
            yield f"{node.name}: {len(pairs)} quantized inputs"


def norms_behind_convolutions(g):
    for node in g.of("LayerNormalization"):
        name = node.input[0]
        while name in g.maker and g.maker[name].op_type == "Transpose":
            name = g.maker[name].input[0]
        if name in g.maker and g.maker[name].op_type == "Conv" and g.from_pair(g.maker[name].input[1]):
            yield f"{node.name}: no pair between it and the int8 convolution {g.maker[name].name}"


def batch_norms(g):
    for node in g.of("BatchNormalization"):
        before, after = g.maker.get(node.input[0]), g.readers[node.output[0]]
        if before is not None and before.op_type == "Conv" and len(g.readers[node.input[0]]) == 1:
            yield f"{node.name}: not folded into {before.name}"
        padded = any(
            value for reader in after for a in reader.attribute if a.name == "pads" for value in a.ints
        )
        if len(after) == 1 and after[0].op_type == "Conv" and not padded:
            yield f"{node.name}: not folded into {after[0].name}"


RULES = (
    zero_points_and_scales,
    one_pair_per_tensor,
    both_inputs_of_a_layer,
    nothing_between_layer_and_activation,
    same_scale_where_values_only_move,
    skips_of_residual_adds,
    norms_behind_convolutions,
    batch_norms,
)


@pytest.mark.parametrize("family", EVERY)
def test_family_obeys_the_parser(int8, family):
    _, plan, quantized = int8(family)
    reader = Reader(quantized)
    assert [broken for rule in RULES for broken in rule(reader)] == []
    assert reader.opset == 19
    layers = [node for node in reader.of("Conv", "Gemm", "MatMul") if reader.from_pair(node.input[1])]
    assert len(layers) == len(plan.layers) == INT8_LAYERS.get(family, len(plan.layers)) and len(layers) >= 10
    assert set(plan.left_float.values()) <= {
        "makes the logits",
        "large grouped kernel",
        "few channels",
        "1 x 1 map (squeeze and excitation)",
    }


BUILD = (
    PARSE
    + """
config, profile = builder.create_builder_config(), builder.create_optimization_profile()
side = int(sys.argv[2])
profile.set_shape("images", (1, 3, side, side), (2, 3, side, side), (4, 3, side, side))
config.add_optimization_profile(profile)
plan = builder.build_serialized_network(network, config)
sys.exit("; ".join(log.lines[-5:]) if plan is None or not plan.nbytes else 0)
"""
)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("tensorrt_rtx_bindings") is None, reason="TensorRT for RTX is not installed")
@pytest.mark.parametrize("family", FAMILIES)
def test_family_builds_with_tensorrt_for_rtx(int8, family, tmp_path):
    onnx.save(int8(family)[2], tmp_path / "int8.onnx")
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(tmp_path / "int8.onnx"), str(FAMILIES[family][2])],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
