"""export.qat.torch_graph: operators and families against ONNX Runtime, rounding and gradients against
hand-worked numbers.
"""

import copy

import families
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

from export.graph.view import View
from export.int8 import quantize as q
from export.int8.calibrate import calibrate
from export.qat.torch_graph import SCALE_SPEED, FakeQuant, TorchGraph, fake_quantize, scales_of
from export.qat.trainer import shared_scales
from runtime.errors import UsageError


def small(body, constants=(), size=(4, 6, 6)):
    """A graph from `images` (batch, *size) to `logits` out of ONNX's text form, with constants {name: array
    or shape}.
    """
    random = np.random.default_rng(0)
    shape = ", ".join(map(str, ("batch", *size)))
    made = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 20]> agraph (float[{shape}] images) => (float logits) '
        f"{{ {body} }}"
    )
    for name, value in dict(constants).items():
        array = (
            random.normal(size=value).astype(np.float32) if isinstance(value, tuple) else np.asarray(value)
        )
        made.graph.initializer.append(numpy_helper.from_array(array, name))
    for node in made.graph.node:
        node.name = node.output[0]
    return made


def onnx_logits(model, images):
    """Without graph optimizations: these change the order of sums, and rounding borders make more of that."""
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.intra_op_num_threads, settings.log_severity_level = 1, 3
    return ort.InferenceSession(model.SerializeToString(), settings).run(
        None, {model.graph.input[0].name: images}
    )[0]


def torch_logits(network, images):
    with torch.no_grad():
        return network(torch.from_numpy(images)).numpy()


def noise(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


FLOAT, INT = np.float32, np.int64


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        (
            "logits = Conv <strides = [2,1], pads = [1,0,2,1], group = 2> (images, w, b)",
            {"w": (6, 2, 3, 3), "b": (6,)},
        ),
        ("logits = Conv <dilations = [2,2], pads = [2,2,2,2]> (images, w)", {"w": (5, 4, 3, 3)}),
        (
            "f = Flatten (images) logits = Gemm <alpha = 0.5, beta = 2.0, transB = 1> (f, w, b)",
            {"w": (3, 144), "b": (3,)},
        ),
        ("f = Flatten <axis = 2> (images) logits = Gemm <transA = 1> (f, w)", {"w": (8, 3)}),
        ("logits = MatMul (images, w)", {"w": (6, 5)}),
        ("logits = MatMul (images, scales)", {"scales": (6, 5)}),
        ("logits = MatMul (images, grids)", {"grids": (6, 5)}),
        (
            "a = Slice (images, last, first, axis, back) logits = Slice (a, two, first, axis, back2)",
            {
                "last": INT([-1]),
                "first": INT([-(2**63)]),
                "axis": INT([-1]),
                "back": INT([-1]),
                "two": INT([4]),
                "back2": INT([-2]),
            },
        ),
        (
            "a = Add (images, b) s = Sub (a, one) m = Mul (s, b) logits = Div (m, two)",
            {"b": (4, 1, 1), "one": FLOAT(1), "two": FLOAT(2)},
        ),
        ("p = Mul (images, images) r = Sqrt (p) logits = Pow (r, three)", {"three": FLOAT(3)}),
        (
            (
                "a = Relu (images) b = LeakyRelu <alpha = 0.2> (images) c = Tanh (images) d = Sigmoid"
                " (images) logits = Concat <axis = 1> (a, b, c, d)"
            ),
            {},
        ),
        (
            (
                "a = HardSigmoid <alpha = 0.3, beta = 0.4> (images) b = HardSigmoid (images) c = HardSwish"
                " (images) d = Erf (images) logits = Concat <axis = -1> (a, b, c, d)"
            ),
            {},
        ),
        ('a = Gelu (images) b = Gelu <approximate = "tanh"> (images) logits = Add (a, b)', {}),
        (
            "a = Clip (images, low, high) b = Clip (images, , high) logits = Add (a, b)",
            {"low": FLOAT(-0.5), "high": FLOAT(0.7)},
        ),
        ("a = Softmax (images) b = Softmax <axis = 1> (images) logits = Identity (b)", {}),
        ("a = ReduceMean <keepdims = 0> (images, axes) logits = Mul (a, a)", {"axes": np.array([-1, 2])}),
        ("a = ReduceMean (images) logits = Sub (images, a)", {}),
        ("logits = ReduceL2 (images, axes)", {"axes": np.array([2, 3])}),
        (
            "a = GlobalAveragePool (images) b = Squeeze (a, axes) logits = Unsqueeze (b, front)",
            {"axes": np.array([2, 3]), "front": np.array([0, -1])},
        ),
        ("logits = MaxPool <kernel_shape = [3,3], strides = [2,2], pads = [1,1,1,1]> (images)", {}),
        (
            "n = Sub (images, ten) logits = MaxPool <kernel_shape = [2,2], pads = [0,0,1,1]> (n)",
            {"ten": FLOAT(10)},
        ),
        ("logits = MaxPool <kernel_shape = [3,3], strides = [2,2], ceil_mode = 1> (images)", {}),
        (
            (
                "a = AveragePool <kernel_shape = [3,3], pads = [1,1,1,1]> (images) b = AveragePool"
                " <kernel_shape = [3,3], pads = [1,1,1,1], count_include_pad = 1> (images) logits = Sub"
                " (a, b)"
            ),
            {},
        ),
        ("logits = Reshape (images, shape)", {"shape": np.array([0, -1, 12])}),
        ("a = Transpose (images) logits = Transpose <perm = [3,1,0,2]> (a)", {}),
        (
            "logits = Slice (images, starts, ends, axes, steps)",
            {
                "starts": np.array([1, -4]),
                "ends": np.array([2**62, -1]),
                "axes": np.array([2, -1]),
                "steps": np.array([2, 1]),
            },
        ),
        (
            "logits = Pad (images, pads, value, axes)",
            {"pads": np.array([1, 0, 2, 3]), "value": FLOAT(7), "axes": np.array([1, 3])},
        ),
        ("logits = Pad (images, pads)", {"pads": np.array([0, 1, 2, 0, 0, 0, 1, 3])}),
        ("logits = LayerNormalization <axis = -1, epsilon = 0.1> (images, w, b)", {"w": (6,), "b": (6,)}),
        (
            "logits = BatchNormalization <epsilon = 0.1> (images, w, b, m, v)",
            {"w": (4,), "b": (4,), "m": (4,), "v": np.array([1, 2, 3, 4], FLOAT)},
        ),
    ],
)
def test_every_operator_equals_onnx_runtime(body, constants):
    model = small(body, constants)
    images = noise(2, 4, 6, 6)
    expected = onnx_logits(model, images)
    found = torch_logits(TorchGraph(model), images)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def require_same(model, size):
    images = noise(3, 3, size, size)
    expected = onnx_logits(model, images)
    assert np.abs(torch_logits(TorchGraph(model), images) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_resnet20_and_convnext_equal_onnx_runtime(student_onnx, convnext_onnx):
    require_same(student_onnx, 32)
    require_same(convnext_onnx, 64)


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", ["resnet", "mobilenetv2", "mobilenetv3", "efficientnet", "repvgg", "unireplknet"]
)
def test_other_families_equal_onnx_runtime(family):
    require_same(families.graph(family), 64)


def test_parameters_are_called_as_in_the_graph_and_do_not_include_constants_of_formulas(convnext_onnx):
    names = set(dict(TorchGraph(convnext_onnx).named_parameters()))
    constants = {tensor.name: tensor for tensor in convnext_onnx.graph.initializer}
    assert names <= set(constants)
    assert {node.input[1] for node in convnext_onnx.graph.node if node.op_type == "Conv"} <= names
    assert not [name for name in names if not constants[name].dims]  # sqrt(2), 1 and 1/2 of GELU


def test_an_unknown_operator_is_named():
    with pytest.raises(UsageError, match="node logits: operator Mish cannot be trained"):
        TorchGraph(small("logits = Mish (images)"))


# ---- fake quantization


def rounded(x, scale, zero=0, lowest=-128, highest=127, axis=None):
    """(values, d/dx, d/dlog(scale)) for a gradient of 1 everywhere."""
    x, start = torch.tensor(x, requires_grad=True), torch.tensor(scale)
    learned = torch.zeros_like(start, requires_grad=True)
    y = fake_quantize({"grid": FakeQuant("x", "s", axis, zero, lowest, highest)}, x, start, learned)
    y.sum().backward()
    return y.tolist(), x.grad.tolist(), (learned.grad / SCALE_SPEED).tolist()


def test_ties_go_to_even_and_what_does_not_fit_saturates():
    y, by_x, _ = rounded([[0.5, 1.5, 2.5, -0.5, 300.0, -300.0]], 1.0)
    assert y == [[0.0, 2.0, 2.0, 0.0, 127.0, -128.0]]
    assert by_x == [[1.0, 1.0, 1.0, 1.0, 0.0, 0.0]]


def test_an_unsigned_grid_reaches_from_its_zero_point():
    y, _, _ = rounded([[-12.0, -10.4, 245.2, 246.0]], 1.0, zero=10, lowest=0, highest=255)
    assert y == [[-10.0, -10.0, 245.0, 245.0]]


def test_gradient_of_the_scale_worked_out_by_hand():
    # steps of 1/2: 0.8 is 1.6 steps, rounded to 2: 2 - 1.6 = 0.4; 100 saturates at 127; -0.3 is -0.6 steps:
    # -1 + 0.6 = -0.4; -90 saturates at -128. Sum -1; times the scale 1/2 for its logarithm; times 1 / sqrt(4
    # values x 128 steps)
    _, _, by_log_scale = rounded([[0.8, 100.0, -0.3, -90.0]], 0.5)
    assert by_log_scale == pytest.approx((0.4 + 127 - 0.4 - 128) * 0.5 / (4 * 128) ** 0.5)


def test_every_channel_of_a_weight_has_its_own_scale_and_gradient():
    y, by_x, by_log_scale = rounded([[0.3, 1.0], [0.3, 100.0]], [0.5, 0.2], lowest=-127, axis=0)
    assert y[0] == [0.5, 1.0] and y[1] == pytest.approx([0.4, 25.4])
    assert by_x == [[1.0, 1.0], [1.0, 0.0]]
    assert by_log_scale == pytest.approx([0.4 * 0.5 / 254**0.5, (0.5 + 127) * 0.2 / 254**0.5], rel=1e-5)


@pytest.fixture(scope="module", params=["tensorrt", "cpu"])
def quantized(request, student_onnx, digits_batch):
    """(fp32 graph, int8 graph, which scales are one)."""
    made = q.lay_out(student_onnx, request.param)
    ranges = calibrate(
        student_onnx, made.tensors, [digits_batch], "minmax", unsigned=q.PLACEMENTS[request.param].unsigned
    )
    return student_onnx, q.quantize(student_onnx, made, ranges), shared_scales(made, View(student_onnx))


def test_the_fake_quantized_network_is_the_int8_graph(quantized, digits_batch):
    """Sums in another order move a value over a rounding border now and then; that is far below what int8
    itself changes.
    """
    fp32, int8, shared = quantized
    expected, of_float = onnx_logits(int8, digits_batch), onnx_logits(fp32, digits_batch)
    found = torch_logits(TorchGraph(fp32, int8, shared), digits_batch)
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.98
    assert np.abs(found - expected).mean() < 0.25 * np.abs(of_float - expected).mean()


BRANCHES = (
    "a = Conv <pads = [1,1,1,1]> (images, wa) r = Relu (a) b = Conv <pads = [1,1,1,1]> (images, wb) cat ="
    " Concat <axis = 1> (r, b) c = Conv <pads = [1,1,1,1]> (cat, wc) p = GlobalAveragePool (c) f = Flatten"
    " (p) logits = Gemm <transB = 1> (f, w, bias)"
)


@pytest.mark.parametrize("placement", q.PLACEMENTS)
@pytest.mark.parametrize("exclude", [(), ("c",)], ids=["all", "without c"])
def test_a_concat_of_two_signs_and_a_float_layer_behind_it_train_as_they_ship(placement, exclude):
    """The cpu placement gives each input of a Concat its own zero point, and a float layer its pair through a
    Clip.
    """
    fp32, images = (
        small(
            BRANCHES,
            {
                "wa": (16, 4, 3, 3),
                "wb": 0.2 * noise(16, 4, 3, 3),
                "wc": 0.1 * noise(16, 32, 3, 3),
                "w": (5, 16),
                "bias": (5,),
            },
        ),
        noise(32, 4, 6, 6),
    )
    fp32.graph.output[0].CopyFrom(
        onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 5])
    )
    rules = q.Rules(first=True, exclude=exclude)
    made = q.lay_out(fp32, placement, rules)
    assert ("c" in made.layers) == (not exclude)
    assert {"r", "b"} <= set(made.tensors) or (placement, *exclude) == ("tensorrt", "c")
    ranges = calibrate(fp32, made.tensors, [images], "minmax", unsigned=q.PLACEMENTS[placement].unsigned)
    int8 = q.quantize(fp32, made, ranges, rules)
    expected, of_float = onnx_logits(int8, images), onnx_logits(fp32, images)
    found = torch_logits(TorchGraph(fp32, int8, shared_scales(made, View(fp32))), images)
    assert np.abs(found - expected).mean() < 0.02 * np.abs(of_float - expected).mean()


def test_gradients_reach_every_weight_and_every_scale(quantized, digits_batch):
    network = TorchGraph(*quantized)
    network(torch.from_numpy(digits_batch[:8])).square().sum().backward()
    without = [
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert without == []


def test_tensors_with_one_scale_share_one_parameter(quantized):
    """ResNet-20's shortcuts slice and pad a map that is quantized before and after: one scale on
    all sides.
    """
    fp32, int8, shared = quantized
    view = View(fp32)
    padded = next(node for node in fp32.graph.node if node.op_type == "Pad")
    source = view.producer[padded.input[0]].input[0]
    assert shared[padded.output[0]] == source
    network = TorchGraph(fp32, int8, shared)
    assert (
        f"{source}_scale" in network.state_dict() and f"{padded.output[0]}_scale" not in network.state_dict()
    )


def test_scales_start_where_calibration_put_them(quantized):
    fp32, int8, shared = quantized
    view = View(int8)
    for tensor, scale in scales_of(TorchGraph(fp32, int8, shared)).items():
        assert (scale.numpy() == view.constant(f"{shared.get(tensor, tensor)}_scale")).all()


def test_a_copy_computes_the_same_by_itself(quantized, digits_batch):
    network = TorchGraph(*quantized)
    duplicate = copy.deepcopy(network)
    before = torch_logits(network, digits_batch[:4])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)
    assert (torch_logits(duplicate, digits_batch[:4]) == before).all()
