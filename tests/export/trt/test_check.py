"""The checks of a plan against its ONNX file, on engines whose faults are known: numpy functions behind a
predictor.
"""

from types import SimpleNamespace

import numpy as np
import pytest
from function_engine import given, predictor_of

from export.trt import check
from runtime.artifact import Metadata
from runtime.errors import GateError
from runtime.records import EngineCheck, Judged, Quantization, Verification

WEIGHTS = np.random.default_rng(0).normal(size=(3 * 4 * 4, 5)).astype(np.float32)
IMAGES = np.random.default_rng(1).normal(size=(300, 3, 4, 4)).astype(np.float32)


def network(batch):
    return batch.reshape(len(batch), -1) @ WEIGHTS


def engine_of(change=lambda batch, logits: logits, batch_sizes=((1, 8),)):
    """A predictor of `network` whose logits `change` may spoil."""
    return predictor_of(lambda batch: change(batch, network(batch)), batch_sizes, IMAGES.shape[1:])


def test_static_plan_is_only_asked_for_its_size():
    engine = engine_of(batch_sizes=[(4, 4)])
    found = check.consistency(engine, IMAGES, 0.01)
    assert set(given(engine)) == {4} and found["batch_sizes"] == [4, 4] and found["batch_spread"] is None


def test_smallest_and_largest_batch_over_all_profiles_are_compared():
    engine = engine_of(batch_sizes=[(1, 2), (4, 16)])
    assert check.consistency(engine, IMAGES, 0.01)["batch_sizes"] == [1, 16]
    assert given(engine) == [16, 16, *[1] * 16]


def test_equal_engine_passes_with_its_numbers():
    found = check.consistency(engine_of(), IMAGES, 1e-4)
    assert found["batch_sizes"] == [1, 8] and found["row_spread"] == 0 and found["batch_spread"] < 1e-4
    same = check.agreement(network(IMAGES), network(IMAGES), "int8", False)
    assert same.agreement == 100 and same.max_abs == 0 and same.images == 300


@pytest.mark.parametrize("wrong", [1, 8])
def test_engine_that_gives_nan_at_one_batch_size_is_refused(wrong):
    spoilt = engine_of(lambda batch, logits: logits * np.nan if len(batch) == wrong else logits)
    with pytest.raises(GateError, match="differ by nan"):
        check.consistency(spoilt, IMAGES, 0.05)


def test_images_are_regrouped_without_holding_more_than_one_call_takes():
    parts = [IMAGES[start : start + 5] for start in range(0, 300, 5)]
    found = list(check.chunks(parts, 32))
    assert [len(each) for each in found] == [32] * 9 + [12]
    np.testing.assert_array_equal(np.concatenate(found), IMAGES)
    assert [len(each) for each in check.chunks([IMAGES[:7]], 2)] == [2, 2, 2, 1]


@pytest.mark.parametrize(
    "change",
    [
        lambda batch, logits: logits + np.arange(len(batch))[:, None],  # depends on the place
        lambda batch, logits: logits + len(batch),  # depends on the batch size
    ],
)
def test_engine_that_mixes_images_is_refused(change):
    with pytest.raises(GateError, match="at another place or batch size"):
        check.consistency(engine_of(change), IMAGES, 0.05)


def test_engine_that_decides_otherwise_is_refused():
    reference = network(IMAGES)
    swapped = reference.copy()
    swapped[:4] = -swapped[:4]  # 4 of 300: more than one in a hundred
    check.agreement(reference, np.where(np.arange(300)[:, None] < 2, swapped, reference), "int8", False)
    with pytest.raises(GateError, match=r"same class on 98\.67 % of 300 images"):
        check.agreement(reference, swapped, "int8", False)


@pytest.mark.parametrize(
    ("images", "flips", "passes"), [(300, 3, True), (300, 4, False), (20, 1, True), (20, 2, False)]
)
def test_decisions_may_differ_on_one_image_in_a_hundred_however_close_the_logits(images, flips, passes):
    reference = np.tile(np.float32([5, 5 + 1e-3]), (images, 1))
    swapped = np.where(np.arange(images)[:, None] < flips, reference[:, ::-1], reference)
    if passes:
        assert check.agreement(reference, swapped, "int8", False).agreement == pytest.approx(
            100 - 100 * flips / images
        )
    else:
        with pytest.raises(GateError, match="does not decide as its ONNX file"):
            check.agreement(reference, swapped, "int8", False)


@pytest.mark.parametrize(("scale", "passes"), [(1, False), (100, True)])
def test_rows_may_differ_by_a_share_of_the_logits(scale, passes):
    engine = predictor_of(
        lambda batch: np.full((len(batch), 2), scale) + 0.5 * np.arange(len(batch))[:, None], ((4, 4),)
    )
    if passes:
        found = check.consistency(engine, IMAGES, 0.05)
        assert found["row_spread"] == 1.5 and found["allowed"] == pytest.approx(0.05 * 101.5)
    else:
        with pytest.raises(GateError, match="at another place"):
            check.consistency(engine, IMAGES, 0.05)


def test_noise_is_compared_by_size_of_the_difference_alone():
    reference = np.zeros((10, 2), np.float32)
    reference[:, 1] = 1e-4  # a flip of the class means nothing here
    assert check.agreement(reference, -reference, "int8", True).agreement == 0
    with pytest.raises(GateError, match=r"logits differ by 0\.5 of their scale"):
        check.agreement(np.ones((10, 2), np.float32), np.full((10, 2), 0.5, np.float32), "int8", True)


def test_logits_that_are_not_finite_are_refused():
    with pytest.raises(GateError, match="not finite"):
        check.agreement(network(IMAGES), np.full((300, 5), np.nan, np.float32), "fp16", True)


def test_onnx_file_whose_logits_are_not_finite_is_not_a_reference():
    with pytest.raises(GateError, match="ONNX file's own logits are not finite"):
        check.agreement(np.full((300, 5), np.nan, np.float32), network(IMAGES), "fp16", True)


def test_budget_counts_what_the_onnx_file_lost_already():
    reference = network(IMAGES)
    labels, engine = reference.argmax(1), reference.copy()
    engine[:3] = -engine[:3]  # 3 of 300 go wrong: 1 point
    meta = Metadata(precision="int8", verification=Verification(lowered=Judged(drop=0.3, agreement=99.5)))
    found = check.with_accuracy(EngineCheck(), reference, engine, labels, meta, check.Budgets(1.4, 98.0))
    assert found.top1 == pytest.approx(99) and found.onnx_top1 == 100 and found.drop == pytest.approx(1.3)
    assert found.right_to_wrong == 3 and found.wrong_to_right == 0
    with pytest.raises(
        GateError,
        match=r"top-1 is 99\.00 %, 1\.00 points below its ONNX file and 1\.30 below the fp32 student",
    ):
        check.with_accuracy(EngineCheck(), reference, engine, labels, meta, check.Budgets(1.2))


def test_agreement_with_the_student_is_what_both_steps_leave_for_sure():
    reference = network(IMAGES)
    labels, engine = reference.argmax(1), reference.copy()
    engine[:3] = -engine[:3]  # another class on 3 of 300
    meta = Metadata(precision="int8", verification=Verification(lowered=Judged(agreement=99.5)))
    check.with_accuracy(EngineCheck(), reference, engine, labels, meta, check.Budgets(5.0, 98.5))
    with pytest.raises(GateError, match=r"ONNX file on 99\.00 % .* 99\.50 %, so that only 98\.50 % are sure"):
        check.with_accuracy(EngineCheck(), reference, engine, labels, meta, check.Budgets(5.0, 98.6))


def test_ranges_of_noise_are_measured_and_held_to_nothing():
    reference = network(IMAGES)
    meta = Metadata(
        precision="int8",
        verification=Verification(lowered=Judged(drop=60.0)),
        quantization=Quantization(not_for_accuracy=True),
    )
    assert (
        check.with_accuracy(
            EngineCheck(), reference, reference, reference.argmax(1), meta, check.Budgets(1.0)
        ).drop
        == 60
    )


def test_whole_check_opens_both_files(monkeypatch):
    opened = []
    monkeypatch.setattr(check, "load", lambda path, *device: opened.append((path, *device)) or engine_of())
    meta, labels = Metadata(precision="fp32"), network(IMAGES).argmax(1)
    pair = check.Pair("a.plan", "a.onnx", meta)
    found = check.check(pair, check.Images([IMAGES[:100], IMAGES[100:]], labels), check.Budgets(0.0))
    assert opened == [("a.plan", "cuda"), ("a.onnx",)]
    assert found.top1 == 100 and found.images == 300 and not found.noise
    without = check.check(pair, None, check.Budgets(0.0))
    assert without.noise and without.top1 is None and without.images == check.NOISE


def test_noise_has_the_shape_of_the_input():
    assert check.noise(SimpleNamespace(shape=[None, 3, 8, 6]).shape).shape == (
        check.NOISE,
        3,
        8,
        6,
    )
