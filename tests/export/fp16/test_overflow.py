"""export.fp16.overflow: what overflows is found by running; ONNX's reference implementation, which has a real
half, is the judge.
"""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from export.fp16 import overflow
from export.graph import rewrite
from export.int8 import quantize
from export.int8.calibrate import calibrate
from export.int8.ranges import Range
from runtime.errors import GateError, UsageError

BATCH = np.random.default_rng(1).uniform(-1, 1, (2, 4, 6, 6)).astype(np.float32)


def model(body, logits="batch, d, e, f", size=(4, 6, 6), **values):
    """A graph from `images` to `logits` with these constants; nodes are named after their output."""
    made = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 19]> agraph (float[batch, {", ".join(map(str, size))}] images)'
        f" => (float[{logits}] logits) {{ {body} }}"
    )
    made.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()
    )
    for node in made.graph.node:
        node.name = node.output[0]
    return made


def run(made, batch=BATCH):
    with np.errstate(all="ignore"):
        return ReferenceEvaluator(made).run(None, {"images": batch})[0]


def eye(factor, channels=4):
    return (factor * np.eye(channels)).reshape(channels, channels, 1, 1).astype(np.float32)


HOT = model(
    "a = Conv (images, one)  b = Conv (a, up)  r = Relu (b)  c = Conv (r, down)  s = Relu (c)  logits = Conv"
    " (s, one)",
    one=eye(1),
    up=eye(1e5),
    down=eye(1e-4),
)


# ---- what does not fit


def test_a_layer_that_reaches_1e5_is_found_and_kept_and_half_is_infinite_without():
    assert not np.isfinite(run(overflow.to_half(HOT))).all()
    result, report = overflow.convert(HOT, lambda: [BATCH])
    assert set(report["kept_fp32"]) == {"b", "r", "c"}  # makes it, passes it on, reads it
    largest = 1e5 * BATCH.max()
    assert f"r reaches {largest:.4g}, more than 16376 (65504 / 4)" in report["kept_fp32"]["c"]
    assert run(result) == pytest.approx(run(HOT), rel=2e-3, abs=1e-2)


def test_the_check_on_the_images_sees_what_onnxruntime_would_hide():
    result = overflow.to_half(HOT)
    seen = ort.InferenceSession(overflow.rounded(result).SerializeToString()).run(None, {"images": BATCH})[0]
    assert (np.isfinite(seen) == np.isfinite(run(result))).all() and not np.isfinite(seen).all()


def test_what_a_measurement_missed_is_found_in_the_fp16_graph():
    result, report = overflow.convert(HOT, lambda: [BATCH], keep={})
    assert {"b", "r", "c"} <= set(report["kept_fp32"])
    assert all("overflows in the fp16 graph" in reason for reason in report["kept_fp32"].values())
    assert np.isfinite(run(result)).all()


@pytest.mark.parametrize("keep", [None, {}])
def test_in_an_int8_graph_the_layers_around_such_a_tensor_are_kept_and_their_pairs_are_float32(keep):
    plan = quantize.lay_out(HOT, rules=quantize.Rules(few_channels=0))
    ranges = dict.fromkeys(plan.tensors, Range(-1, 1)) | {"r": Range(0, 1e5), "s": Range(0, 10)}
    quantized = quantize.quantize(HOT, plan, ranges)
    assert not np.isfinite(run(overflow.to_half(quantized))).all()
    result, report = overflow.convert(quantized, lambda: [BATCH], keep)
    assert {"b", "r", "c"} <= set(report["kept_fp32"]) and not any(
        "Linear" in name for name in report["kept_fp32"]
    )
    assert run(result) == pytest.approx(run(quantized), rel=0.02, abs=0.1)


def test_what_was_measured_before_is_not_measured_again_and_keeps_its_reason():
    _, report = overflow.convert(HOT, lambda: [BATCH], keep=dict.fromkeys(("b", "r", "c"), "because"))
    assert set(report["kept_fp32"].values()) == {"because"}


@pytest.mark.parametrize(("margin", "kept"), [(4, {"logits"}), (3, set())])
def test_the_margin_leaves_room_for_images_that_are_larger(margin, kept):
    made = model("logits = Mul (images, factor)", factor=np.float32(20000))
    batch = np.ones((1, 4, 6, 6), np.float32)
    assert set(overflow.overflowing(made, [batch], margin)) == kept  # 65504 / 4 = 16376, 65504 / 3 = 21835


def test_the_largest_of_all_batches_counts_whichever_comes_when():
    made = model("a = Abs (images)  logits = Neg (a)")
    batches = [np.full((n, 4, 6, 6), value, np.float32) for n, value in ((1, 3), (2, -20000), (1, 5))]
    assert set(overflow.overflowing(made, iter(batches))) == {"a", "logits"}
    assert overflow.overflowing(made, batches[::2]) == {}


def test_logits_beyond_half_are_never_stored_in_half():
    made = model("a = Conv (images, one)  logits = Mul (a, factor)", one=eye(1), factor=np.float32(1e6))
    result, _ = overflow.convert(made, lambda: [BATCH])
    assert run(result) == pytest.approx(run(made), rel=2e-3)


@pytest.mark.parametrize(
    ("body", "values", "reason"),
    [
        (
            "logits = Mul (images, x)",
            {"x": np.array([1e5, 0, 0, 0, 0, 0], np.float32)},
            "x holds 1e+05, more than 65504",
        ),
        (
            "logits = Add (images, x)",
            {"x": np.float32(1e-12)},
            "x loses 100% of its norm in half (1 values become zero)",
        ),
        (
            "x = Constant <value_float = 100000.0> ()  logits = Mul (images, x)",
            {},
            "x holds 1e+05, more than 65504",
        ),
        (
            "logits = Clip (images, , x)",
            {"x": np.float32(3.4e38)},
            None,
        ),  # no bound at all, as exporters write it
        ("logits = Where (c, images, x)", {"x": np.float32("-inf"), "c": np.array(True)}, None),
        (
            "logits = Mul (images, x)",
            {"x": np.array([1, 1e-12, 0, 0, 0, 0], np.float32)},
            None,
        ),  # what is lost does not count
    ],
)
def test_constants_that_half_cannot_hold(body, values, reason):
    found = overflow.overflowing(model(body, **values), [np.zeros((1, 4, 6, 6), np.float32)])
    assert found == ({} if reason is None else {"logits": f"constant {reason}"})


@pytest.mark.parametrize(
    ("mean", "logits"),
    [
        ("ReduceMean <keepdims = 1> (images, axes)", "b, c, d, e"),
        ("ReduceMean <keepdims = 0> (images, axes)", "b, c"),
        ("GlobalAveragePool (images)", "b, c, d, e"),
    ],
)
def test_a_mean_is_kept_when_its_sum_could_overflow(mean, logits):
    made = model(f"logits = {mean}", logits, (4, 64, 64), axes=np.array([2, 3]))
    batch = np.full((1, 4, 64, 64), -5, np.float32)
    batch[:, :, :, 32:] = 5  # 64 x 64 x 5 = 20480 in some order, the mean is 0
    assert overflow.overflowing(made, [batch]) == {
        "logits": "it adds up to 2.048e+04, more than 16376 (65504 / 4)"
    }
    assert overflow.overflowing(made, [batch / 2]) == {}


@pytest.mark.parametrize(
    ("op", "value", "limit"), [("ReduceL2", 2.1, 2), ("ReduceSumSquare", 2.1, 2), ("ReduceSum", 4.2, 4)]
)
def test_a_norm_is_kept_when_what_it_adds_up_could_overflow(op, value, limit):
    """64 x 64 values: their squares add up to 4096 x value^2, their magnitudes to 4096 x value; both must
    stay below 16376.
    """
    made = model(
        f"s = {op} (images, axes)  logits = Mul (s, small)",
        "b, c, d, e",
        (4, 64, 64),
        axes=np.array([2, 3]),
        small=np.float32(1e-2),
    )
    signs = np.where(np.arange(64) % 2, 1, -1).astype(np.float32)  # the sum itself is 0
    batch = np.broadcast_to(signs, (1, 4, 64, 64)).astype(np.float32)
    kept = {"s", "logits"} if op == "ReduceSumSquare" else {"s"}  # whose own result is too large, too
    assert set(overflow.overflowing(made, [np.float32(value) * batch])) == kept
    assert overflow.overflowing(made, [np.float32(limit - 0.1) * batch]) == {}


NORMALIZE = (
    "f = Flatten (images)  n = ReduceL2 <keepdims = 1> (f, one)  c = Clip (n, least)  s = Shape (f)  e ="
    " Expand (c, s)  d = Div (f, e)  logits = MatMul (d, w)"
)


def test_what_keeps_a_division_from_zero_is_kept_and_what_it_guards():
    """torch's F.normalize: its 1e-12 is 0 in half, and an image whose features are all zero would
    be 0 / 0.
    """
    made = model(
        NORMALIZE, "batch, e", one=np.array([1]), least=np.float32(1e-12), w=np.ones((144, 3), np.float32)
    )
    batch = np.concatenate([BATCH, np.zeros_like(BATCH[:1])])
    result, report = overflow.convert(made, lambda: [batch])
    assert (
        set(report["kept_fp32"]) == {"c", "e", "d"} and "1e-12 of c becomes zero" in report["kept_fp32"]["d"]
    )
    assert np.isfinite(run(result, batch)).all() and run(result, batch) == pytest.approx(
        run(made, batch), rel=5e-3, abs=5e-3
    )
    coarse = model(
        NORMALIZE, "batch, e", one=np.array([1]), least=np.float32(1e-3), w=np.ones((144, 3), np.float32)
    )
    assert overflow.badly_rounded(coarse) == {}


def test_a_nan_anywhere_in_a_tensor_is_found():
    """ONNX Runtime's ReduceMax passes over some."""
    made = model(
        "a = Log (images)  z = Constant <value_float = 0.0> ()  c = IsNaN (a)  logits = Where (c, z, a)"
    )
    for place in range(6):
        batch = np.ones((1, 4, 6, 6), np.float32)
        batch[0, 0, 0, place] = -1
        assert np.isnan(overflow.largest(made, ["a"], [batch])[0]["a"]), place


def test_a_layer_norm_stays_half_while_what_it_reads_fits():
    made = model("logits = LayerNormalization <axis = -1> (images, gain)", gain=np.ones(6, np.float32))
    assert (
        overflow.overflowing(made, [1000 * BATCH]) == {}
    )  # the squares do not fit, but they are float32 by definition
    assert set(overflow.overflowing(made, [60000 * BATCH])) == {"logits"}


def test_a_network_that_is_not_finite_in_fp32_is_refused():
    made = model("a = Mul (images, x)  logits = Mul (a, x)", x=np.float32(3e38))
    with pytest.raises(GateError, match="tensor logits is not finite in fp32 on one of the images"):
        overflow.overflowing(made, [BATCH])


def test_a_network_that_nothing_makes_finite_is_refused():
    made = model("a = Sub (images, images)  logits = Div (a, a)")
    with pytest.raises(GateError, match="does not stay finite in fp16, even with 1 nodes kept in fp32"):
        overflow.convert(made, lambda: [BATCH], keep={})


def test_no_images_is_an_error():
    with pytest.raises(UsageError, match="no images to find out what overflows"):
        overflow.overflowing(HOT, [])


# ---- the report


def test_the_report_counts_nodes_and_work_by_precision():
    made = model(
        "a = Conv (images, w)  r = Relu (a)  b = Conv (r, v)  logits = Conv (b, last)",
        w=np.ones((8, 4, 3, 3), np.float32),
        v=np.ones((8, 8, 1, 1), np.float32),
        last=np.ones((2, 8, 4, 4), np.float32),
    )
    plan = quantize.lay_out(made, rules=quantize.Rules(few_channels=0))
    quantized = quantize.quantize(made, plan, dict.fromkeys(plan.tensors, Range(-1, 1)))
    _, report = overflow.convert(quantized, lambda: [BATCH], keep={"logits": "a reason"})
    work = np.array(
        [8 * 16 * 4 * 9 + 8 * 16 * 8, 0, 2 * 8 * 16]
    )  # int8 a and b, nothing but a ReLU in fp16, fp32 logits
    assert report["nodes"] == {"int8": 2, "fp16": 1, "fp32": 1} and report["kept_fp32"] == {
        "logits": "a reason"
    }
    assert list(report["macs_percent"].values()) == pytest.approx(100 * work / work.sum())


# ---- a network with real accuracy


def logits_of(made, batch):
    return ort.InferenceSession(made.SerializeToString()).run(None, {"images": batch})[0]


def test_a_student_takes_the_same_decisions_in_half_at_half_the_size(student_onnx, digits_batch):
    result, report = overflow.convert(student_onnx, lambda: [digits_batch[:32]])
    plain, found = logits_of(student_onnx, digits_batch), logits_of(overflow.rounded(result), digits_batch)
    assert report["kept_fp32"] == {} and report["macs_percent"] == {"int8": 0, "fp16": 100, "fp32": 0}
    assert (
        np.abs(found - plain).max() < 0.01 * np.abs(plain).max()
        and (found.argmax(1) == plain.argmax(1)).mean() > 0.98
    )
    assert len(result.SerializeToString()) < 0.52 * len(student_onnx.SerializeToString())


@pytest.mark.parametrize("placement", ["tensorrt", "cpu"])
def test_half_around_int8_costs_next_to_nothing_beside_int8_itself(placement, student_onnx, digits_batch):
    prepared = rewrite.prepare(student_onnx)
    plan = quantize.lay_out(prepared, placement)
    ranges = calibrate(
        prepared, plan.tensors, [digits_batch[:32]], unsigned=quantize.PLACEMENTS[placement].unsigned
    )
    quantized = quantize.quantize(prepared, plan, ranges)
    result, report = overflow.convert(
        quantized, lambda: [digits_batch[:32]], keep={"layer1.1.conv1": "a reason"}
    )
    assert report["nodes"]["int8"] == len(plan.layers) and report["macs_percent"]["fp32"] == 0
    plain, int8, both = (
        logits_of(each, digits_batch) for each in (prepared, quantized, overflow.rounded(result))
    )
    assert (
        np.square(both - plain).mean() < 1.2**2 * np.square(int8 - plain).mean()
    )  # int8 in another order: half of it
    assert (both.argmax(1) == int8.argmax(1)).mean() > 0.85
