"""export.int8.weights: scales against brute force, biases against means computed layer by layer in
float64.
"""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from export.int8 import quantize as q
from export.int8.calibrate import calibrate
from export.int8.weights import WeightOptions, correct_biases, least_squares_int8, prepare
from runtime.errors import UsageError


def squared_error(weight, found, axis):
    """(channels,) float64."""
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    error = (found.steps.astype(np.float64) * found.scales.reshape(shape).astype(np.float64) - weight) ** 2
    return error.sum(tuple(i for i in range(weight.ndim) if i != axis))


# ---- scales


def test_a_lone_large_weight_is_clipped_when_that_makes_the_squared_error_smaller():
    weight = np.full((1, 10001), 0.0149, np.float32)  # between two steps of the full range, 1 / 127 = 0.0079
    weight[0, 0] = 1.0
    found = least_squares_int8(weight, 0, 1e-6)
    brute = min(
        ((np.clip(np.rint(weight / s), -127, 127) * s - weight) ** 2).sum()
        for s in np.linspace(0.5, 1, 2001) / 127
    )
    usual = squared_error(weight, q.weight_to_int8(weight, 0, 1e-6), 0)[0]
    assert squared_error(weight, found, 0)[0] <= 1.05 * brute < 0.7 * usual
    assert found.steps[0, 0] == 127 and found.scales[0] < 1 / 127


@pytest.mark.parametrize(("shape", "axis"), [((6, 70, 5, 5), 0), ((1750, 7), 1)])
def test_no_channel_is_worse_than_with_its_largest_magnitude_and_heavy_tails_are_better(shape, axis):
    weight = np.random.default_rng(0).standard_t(3, shape).astype(np.float32)
    found, usual = least_squares_int8(weight, axis, 1e-6), q.weight_to_int8(weight, axis, 1e-6)
    ours, theirs = squared_error(weight, found, axis), squared_error(weight, usual, axis)
    assert found.steps.shape == shape and found.steps.dtype == np.int8 and found.scales.dtype == np.float32
    assert (ours <= theirs).all() and (ours < theirs).mean() > 0.5


def test_weights_that_are_steps_times_scale_are_found_again():
    random = np.random.default_rng(0)
    steps = random.integers(-127, 128, (8, 16, 3, 3))
    steps[:, 0, 0, 0] = 127
    scales = random.uniform(1e-3, 1, 8).astype(np.float32)
    found = least_squares_int8(steps.astype(np.float32) * scales[:, None, None, None], 0, 1e-6)
    assert np.array_equal(found.steps, steps) and found.scales == pytest.approx(scales, rel=1e-6)


def test_dead_channel_gets_the_floor():
    found = least_squares_int8(np.zeros((2, 3, 1, 1), np.float32), 0, 1e-6)
    assert found.scales.tolist() == pytest.approx([1e-6, 1e-6]) and not found.steps.any()


# ---- biases

BODY = (
    "a = Conv (images, w1, b1)  r = Relu (a)  b = Conv (r, w2)  t = Relu (b)  m = GlobalAveragePool (t)  "
    "f = Flatten (m)  g = Gemm <transB = 1> (f, w3, b3)  h = Relu (g)  logits = MatMul (h, w4)"
)
SHAPES = {"w1": (16, 16, 1, 1), "b1": (16,), "w2": (24, 16, 1, 1), "w3": (20, 24), "b3": (20,), "w4": (20, 5)}
LAYERS = {"a": "w1", "b": "w2", "g": "w3"}


@pytest.fixture(scope="module")
def small():
    """A convolution with a bias, one without, a Gemm, and a MatMul that stays float; weights with coarse
    scales.
    """
    random = np.random.default_rng(0)
    made = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 19]> agraph (float[batch, 16, 6, 6] images) => '
        f"(float[batch, k] logits) {{ {BODY} }}"
    )
    for name, shape in SHAPES.items():
        made.graph.initializer.append(
            numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name)
        )
    for node in made.graph.node:
        node.name = node.output[0]
    return made


@pytest.fixture(scope="module")
def batches():
    random = np.random.default_rng(1)
    return [random.gamma(2.0, size=(n, 16, 6, 6)).astype(np.float32) for n in (8, 8, 3)]


def stored(made):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}


def coarse(made):
    """Int8 weights rounded down, not to the nearest, in 10 steps to the largest: their errors have a mean."""
    found, values = {}, stored(made)
    for name in LAYERS:
        weight = values[LAYERS[name]]
        scales = (np.abs(weight).reshape(len(weight), -1).max(1) / 10).astype(np.float32)
        found[name] = q.Int8Weight(
            np.floor(weight / scales.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.int8), scales
        )
    return found


def outputs(made, names, batch):
    probed = onnx.ModelProto.FromString(made.SerializeToString())
    probed.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    )
    as_written = ort.SessionOptions()  # no fused integer kernels: they round the bias to int32
    as_written.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(probed.SerializeToString(), as_written, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, {"images": batch}), strict=True))


def channel_means(made, batch):
    return {
        name: value.astype(np.float64).mean(tuple(i for i in range(value.ndim) if i != 1))
        for name, value in outputs(made, list(LAYERS), batch).items()
    }


def rounded(made, weights, biases):
    """The float graph with rounded weights and these biases, by hand."""
    result = onnx.ModelProto.FromString(made.SerializeToString())
    for name, (steps, scales) in weights.items():
        node = next(node for node in result.graph.node if node.name == name)
        tensor = next(tensor for tensor in result.graph.initializer if tensor.name == node.input[1])
        value = steps.astype(np.float32) * scales.reshape(-1, *[1] * (steps.ndim - 1))
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
        if name in biases:
            result.graph.initializer.append(numpy_helper.from_array(biases[name], f"bias of {name}"))
            del node.input[2:]
            node.input.append(f"bias of {name}")
    return result


def test_corrected_layers_put_out_the_float_means(small, batches):
    weights, everything = coarse(small), np.concatenate(batches)
    biases = correct_biases(small, weights, batches)
    wanted, before, after = (
        channel_means(graph, everything)
        for graph in (small, rounded(small, weights, {}), rounded(small, weights, biases))
    )
    for name in LAYERS:
        assert np.abs(after[name] - wanted[name]).max() < 0.02 * np.abs(before[name] - wanted[name]).max(), (
            name
        )


def test_correction_equals_the_one_made_layer_after_layer(small, batches):
    """By another road: correct one layer, measure the next on the graph that this gives."""
    weights, one, values = coarse(small), batches[0], stored(small)  # with one batch both are the same
    quick, slow = correct_biases(small, weights, [one]), {}
    old = {"a": values["b1"], "b": np.zeros(24), "g": values["b3"]}
    wanted = channel_means(small, one)
    for name in LAYERS:
        found = channel_means(rounded(small, weights, slow), one)
        slow[name] = (old[name].astype(np.float64) + wanted[name] - found[name]).astype(np.float32)
    for name in LAYERS:
        assert quick[name].dtype == np.float32 and quick[name] == pytest.approx(slow[name], abs=1e-3), name


def test_batches_count_by_their_images(small):
    weights, random = coarse(small), np.random.default_rng(2)
    many, few = (
        random.gamma(2.0, size=(9, 16, 6, 6)).astype(np.float32),
        random.gamma(4.0, size=(1, 16, 6, 6)).astype(np.float32),
    )
    together, apart = (correct_biases(small, weights, b)["a"] for b in ([many, few], [many]))
    alone = correct_biases(small, weights, [few])["a"]
    assert (
        together == pytest.approx(0.9 * apart + 0.1 * alone, abs=1e-5) and np.abs(apart - alone).max() > 1e-3
    )


def test_biases_of_weights_that_need_no_rounding_stay(small, batches):
    exact = {
        name: q.Int8Weight(weight.steps, np.ones_like(weight.scales))
        for name, weight in coarse(small).items()
    }
    biases, values = correct_biases(rounded(small, exact, {}), exact, batches), stored(small)
    assert (
        np.array_equal(biases["a"], values["b1"])
        and np.array_equal(biases["g"], values["b3"])
        and not biases["b"].any()
    )


def test_two_layers_that_share_a_weight_are_corrected_each_with_its_own_rounding(batches):
    made = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 19]> agraph (float[batch, 16, 6, 6] images) => '
        "(float[batch, 16, 6, 6] logits) { a = Conv (images, w1)  logits = Conv (a, w1) }"
    )
    weight = np.random.default_rng(0).normal(size=(16, 16, 1, 1)).astype(np.float32)
    made.graph.initializer.append(numpy_helper.from_array(weight, "w1"))
    for node in made.graph.node:
        node.name = node.output[0]
    fine = q.weight_to_int8(weight, 0, 1e-6)
    rough = q.Int8Weight(np.floor(fine.steps / 16).astype(np.int8), fine.scales * 16)
    biases = correct_biases(made, {"a": rough, "logits": fine}, batches[:1])
    error = weight[:, :, 0, 0].astype(np.float64) - rough.steps[:, :, 0, 0] * rough.scales[:, None].astype(
        np.float64
    )
    assert biases["a"] == pytest.approx(error @ batches[0].astype(np.float64).mean((0, 2, 3)), abs=1e-4)
    assert np.abs(biases["logits"]).max() < 0.05 * np.abs(biases["a"]).max()


def test_no_image_is_an_error(small):
    with pytest.raises(UsageError, match="no calibration images"):
        correct_biases(small, coarse(small), [])


def test_matmul_is_corrected_over_all_axes_but_the_last(batches):
    random = np.random.default_rng(3)
    made = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 19]> agraph (float[batch, 16, 6, 6] images) => '
        "(float[batch, 16, 6, 4] logits) "
        "{ a = MatMul (images, w1)  r = Relu (a)  logits = MatMul (r, w2) }"
    )
    weight = random.normal(size=(6, 16)).astype(np.float32)
    made.graph.initializer.extend(
        [
            numpy_helper.from_array(weight, "w1"),
            numpy_helper.from_array(random.normal(size=(16, 4)).astype(np.float32), "w2"),
        ]
    )
    for node in made.graph.node:
        node.name = node.output[0]
    scales = np.abs(weight).max(0) / 10
    steps = np.floor(weight / scales).astype(np.int8)
    error = weight.astype(np.float64) - steps * scales.astype(np.float64)
    found = correct_biases(made, {"a": q.Int8Weight(steps, scales)}, batches[:1])
    assert found["a"] == pytest.approx(batches[0].astype(np.float64).mean((0, 1, 2)) @ error, abs=1e-4)
    assert np.abs(found["a"]).max() > 0.1


# ---- prepare


@pytest.fixture(scope="module", params=["tensorrt", "cpu"])
def case(request, small, batches):
    made = q.lay_out(small, request.param, q.Rules(classifier=True, exclude=("logits",)))
    assert made.layers == list(LAYERS)
    return made, calibrate(small, made.tensors, batches, "minmax")


def test_defaults_read_no_image_and_change_nothing(small, case):
    def never():
        raise AssertionError("images were read")

    assert prepare(small, case[0], None, WeightOptions(), never) == ({}, {})
    weights, biases = prepare(small, case[0], None, WeightOptions("mse"), never)
    assert set(weights) == set(LAYERS) and biases == {}


@pytest.mark.parametrize("scales", ["max", "mse"])
def test_options_reach_the_quantized_graph(small, batches, case, scales):
    made, ranges = case
    weights, biases = prepare(small, made, None, WeightOptions(scales, True), lambda: batches)
    values = stored(q.quantize(small, made, ranges, weights=weights, biases=biases))
    to_int8 = {"max": q.weight_to_int8, "mse": least_squares_int8}[scales]
    assert np.array_equal(weights["b"].steps, to_int8(stored(small)["w2"], 0, 1e-6).steps)
    assert np.array_equal(values["w2_scale"], weights["b"].scales) and np.array_equal(
        values["w2_int8"], weights["b"].steps
    )
    assert set(biases) == set(LAYERS) and any(np.array_equal(value, biases["b"]) for value in values.values())
