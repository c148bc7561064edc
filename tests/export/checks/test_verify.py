"""export.checks.verify: a check that should fail, fails."""

import contextlib
import itertools
import math
from fractions import Fraction

import numpy as np
import onnx
import pytest
from function_engine import predictor_of

from export.checks import verify
from export.graph import from_torch
from runtime.artifact import Metadata
from runtime.errors import GateError
from runtime.preprocess import Preprocess

META = Metadata(preprocess=Preprocess(input_size=(3, 4, 4)), class_names=["a", "b", "c"])


def artifact(body):
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 19]> g (float[batch, 3, 4, 4] images) => (float[batch, 3]'
        f" logits) {{ {body} }}"
    )
    return from_torch.write_metadata(model, META)


MEAN = "axes = Constant <value_ints = [2, 3]> ()  logits = ReduceMean <keepdims = 0> (images, axes)"
MIXES_THE_BATCH = (
    "axes = Constant <value_ints = [2, 3]> ()  m = ReduceMean <keepdims = 0> (images, axes)"
    "first = Constant <value_ints = [0]> ()  b = ReduceMean (m, first)  logits = Sub (m, b)"
)


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(size=(20, 3, 4, 4)).astype(np.float32)


def test_equal_logits_pass_with_the_numbers():
    reference = np.array([[1.0, -20.0], [3.0, 2.0]], np.float32)
    found = verify.require_equal(reference, reference + np.float32(1e-3), 1e-4, "test")
    assert found.images == 2 and found.logit_scale == 20 and found.top1_agreement == 100
    assert found.max_abs == pytest.approx(1e-3, rel=0.01)  # within 1e-4 x 20


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (np.array([[0.0, 0.003]]), "allowed 0.002 = 0.0001 x logit scale 20"),
        (np.array([[0.0, np.nan]]), "not finite"),
    ],
)
def test_logits_further_apart_than_allowed_fail(change, said):
    reference = np.array([[1.0, -20.0]])
    with pytest.raises(GateError, match=said):
        verify.require_equal(reference, reference + change, 1e-4, "test")


def test_another_best_class_fails_however_close():
    with pytest.raises(GateError, match=r"same top-1 on 0\.00 % of 1 images"):
        verify.require_equal(np.array([[1.0, 1.00001]]), np.array([[1.00001, 1.0]]), 1e-3, "test")


def test_scale_is_at_least_1():
    reference = np.array([[0.001, 0.0]])
    assert verify.require_equal(reference, reference + 0.00005, 1e-4, "test").logit_scale == 1
    with pytest.raises(GateError):
        verify.require_equal(reference, reference + 0.0002, 1e-4, "test")


def test_parity_looks_at_every_batch_size(images, tmp_path):
    with verify.opened(artifact(MEAN), tmp_path / "mean.onnx") as predictor:
        found = verify.parity(predictor, images.mean((2, 3)), images, 1e-4)
        assert found.images == 20 and found.batch_sizes == [1, 2, 16] and found.max_abs < 1e-6
        with pytest.raises(GateError, match="ONNX against torch at batch 1"):
            verify.parity(predictor, images.mean((2, 3)) + 0.1, images, 1e-4)


def test_a_graph_that_mixes_images_of_a_batch_fails(images, tmp_path):
    with (
        verify.opened(artifact(MIXES_THE_BATCH), tmp_path / "mixed.onnx") as predictor,
        pytest.raises(GateError, match="another place or batch size"),
    ):
        verify.require_consistent(predictor, images, 0.05)


def test_accuracy_counts_what_was_counted_by_hand():
    fp32 = np.eye(3)[[0, 1, 2, 0]]
    int8 = np.eye(3)[[0, 1, 1, 1]] * 3
    found = verify.accuracy(fp32, int8, np.array([0, 1, 2, 1]))
    assert (found.images, found.reference_top1, found.candidate_top1, found.drop, found.agreement) == (
        4,
        75.0,
        75.0,
        0.0,
        50.0,
    )
    assert found.max_abs == 3.0


def test_a_drop_above_the_budget_fails_and_says_what_to_try():
    found = verify.accuracy(np.eye(2)[[0, 1]], np.eye(2)[[0, 0]], np.array([0, 1]))
    verify.require_small_drop(found, 50.0)
    with pytest.raises(
        GateError,
        match=r"int8 .* 50\.00 points below fp32's 100\.00 % on 2 images; at most 49\.9 allo.*--calib",
    ):
        verify.require_small_drop(found, 49.9)
    with pytest.raises(GateError, match=r"fp16 top-1 is 50\.00 %.*Export fp32, or allow more"):
        verify.require_small_drop(found, 49.9, "fp16")


def test_too_low_an_agreement_fails_whatever_top1_is():
    found = verify.accuracy(np.eye(2)[[0, 0, 1, 1]], np.eye(2)[[1, 0, 0, 1]], np.array([0, 0, 0, 0]))
    assert (found.drop, found.agreement) == (0, 50)
    verify.require_agreement(found, 50.0)
    verify.require_agreement(found, None)
    with pytest.raises(GateError, match=r"fp16 .* 50\.00 % of 4 images; at least 50\.1 asked.*min-agreement"):
        verify.require_agreement(found, 50.1, "fp16")


def test_metadata_that_does_not_read_back_fails(tmp_path):
    verify.require_opens(artifact(MEAN), META, tmp_path)
    with pytest.raises(GateError, match="does not read back"):
        verify.require_opens(artifact(MEAN), Metadata(model="other"), tmp_path)


# ---- flips: interval, test, worst class


@pytest.mark.parametrize(
    ("lost", "won", "images", "low", "high"),
    [
        (26, 4, 40, 31.26438, 73.49752),  # example of Bonett and Price's R function CIpropWS
        (26, 4, 48, 25.48067, 62.51933),
    ],
)  # example of ci.prop.ps in R package statpsych (Bonett)
def test_interval_of_the_drop_equals_its_authors_examples(lost, won, images, low, high):
    assert verify.paired_interval(verify.Flips(images, lost, won)) == pytest.approx((low, high), abs=1e-5)


@pytest.mark.parametrize(("lost", "won"), [(0.01, 0.01), (0.03, 0.01), (0.1, 0.05), (0.0, 0.02), (0.3, 0.2)])
def test_interval_holds_the_true_drop_95_times_of_100(lost, won):
    n, covered = 60, 0.0
    for b, c in itertools.product(
        range(n + 1), repeat=2
    ):  # every table that n images can give, with its probability
        if b + c <= n:
            probability = (
                math.comb(n, b) * math.comb(n - b, c) * lost**b * won**c * (1 - lost - won) ** (n - b - c)
            )
            low, high = verify.paired_interval(verify.Flips(n, b, c))
            covered += probability * (low <= 100 * (lost - won) <= high)
    assert 0.94 < covered <= 1 + 1e-9


def test_no_flips_on_few_images_is_not_certainty():
    low, high = verify.paired_interval(verify.Flips(200, 0, 0))
    assert -low == pytest.approx(high) and 1 < high < 2  # 3 / n, the rule of three, is 1.5 points


def test_mcnemar_equals_tossing_every_flip_as_a_coin():
    for lost, won in [(1, 5), (0, 6), (3, 3), (2, 4)]:
        as_uneven = sum(
            abs(2 * sum(toss) - 6) >= abs(lost - won) for toss in itertools.product((0, 1), repeat=6)
        )
        assert verify.mcnemar_p(verify.Flips(50, lost, won)) == pytest.approx(as_uneven / 2**6)
    assert verify.mcnemar_p(verify.Flips(21, 1, 7)) == pytest.approx(0.0703125)  # 2 x (1 + 8) / 256
    assert verify.mcnemar_p(verify.Flips(9, 0, 0)) == 1
    assert 0 < verify.mcnemar_p(verify.Flips(10**4, 2100, 1900)) < 0.01  # no overflow


def test_accuracy_counts_flips_both_ways_and_measures_kl():
    fp32 = np.log(np.array([[3.0, 1.0], [1.0, 3.0], [1.0, 3.0], [3.0, 1.0]]))
    int8 = np.array([[1e-9, 0.0]] * 4)  # guesses class 0, with even odds
    found = verify.accuracy(fp32, int8, np.array([0, 1, 1, 1]))
    assert (found.right_to_wrong, found.wrong_to_right, found.drop) == (2, 0, 50)
    assert found.kl_nats == pytest.approx(3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2))  # 0.1308 nats
    reverse = verify.accuracy(int8, fp32, np.array([0, 1, 1, 1]))
    assert (reverse.right_to_wrong, reverse.wrong_to_right, reverse.drop) == (0, 2, -50)
    assert (reverse.drop_low_points, reverse.drop_high_points) == pytest.approx(
        (-found.drop_high_points, -found.drop_low_points)
    )


def test_kl_of_large_logits_is_finite():
    assert verify.mean_kl(np.array([[3000.0, 0.0]]), np.array([[0.0, 3000.0]])) == pytest.approx(3000)


def test_three_networks_on_the_same_images():
    labels = np.array([0, 1, 2, 2])
    student, fp32, int8 = np.eye(3)[[0, 1, 2, 2]], np.eye(3)[[0, 1, 2, 1]], np.eye(3)[[0, 0, 2, 2]]
    found = verify.judged(student, fp32, int8, labels, ["cat", "dog", "eel"])
    assert (found.reference_top1, found.fp32_onnx_top1, found.candidate_top1) == (100, 75, 75)
    assert (
        found.drop == found.drop_points == 25 and found.agreement == 75
    )  # against the student, not the middle one
    assert (found.fp32_onnx_right_to_wrong, found.fp32_onnx_wrong_to_right) == (1, 0)
    assert (found.worst_class.class_name, found.worst_class.drop_points) == ("dog", 100)


def test_worst_class_is_the_one_that_loses_most_and_says_how_many_images_that_is():
    labels = np.repeat([0, 1, 4], [10, 4, 8])  # classes 2 and 3 have no image
    fp32, int8 = np.eye(5)[labels], np.eye(5)[labels]
    fp32[0], int8[10], int8[14:16] = (
        np.eye(5)[3],
        np.eye(5)[3],
        np.eye(5)[3],
    )  # one won in 0; lost: 1 of 4, 2 of 8
    found = verify.worst_class(fp32, int8, labels)
    assert (found.class_name, found.index, found.images, found.classes) == (
        "4",
        4,
        8,
        3,
    )  # equal points: the larger
    assert (found.reference_top1, found.candidate_top1, found.drop_points) == (100, 75, 25)
    assert (found.right_to_wrong, found.wrong_to_right) == (2, 0)
    low, high = verify.paired_interval(verify.Flips(8, 2, 0))
    assert found.drop_low_points < low and high < found.drop_high_points  # wider: it was picked among three
    low, high = verify.paired_interval(verify.Flips(8, 2, 0), 1 - 0.05 / 3)
    assert (found.drop_low_points, found.drop_high_points) == pytest.approx((low, high))
    int8[11] = np.eye(5)[3]  # now 2 of 4 in class 1: as many images as in 4, more points
    assert verify.worst_class(fp32, int8, labels, list("abcde")).class_name == "b"


# ---- chance


def exact_tail(least, n, classes):
    """P(at least `least` of n guesses among `classes` are right), in whole numbers."""
    return Fraction(sum(math.comb(n, k) * (classes - 1) ** (n - k) for k in range(least, n + 1)), classes**n)


@pytest.mark.parametrize(
    ("least", "n", "classes"), [(0, 5, 2), (5, 5, 2), (30, 200, 10), (8, 2000, 1000), (280, 2000, 10)]
)
def test_binomial_tail_equals_exact_fractions(least, n, classes):
    assert verify.binomial_tail(least, n, 1 / classes) == pytest.approx(
        float(exact_tail(least, n, classes)), rel=1e-9
    )


def logits_with(right, n, classes):
    """(logits, labels) of a network that is right on the first `right` of n images."""
    labels = np.arange(n) % classes
    return np.eye(classes)[np.where(np.arange(n) < right, labels, (labels + 1) % classes)], labels


def test_accuracy_at_chance_has_nothing_to_preserve():
    with pytest.raises(
        GateError, match=r"10\.50 %, chance is 10\.00 % on 200 images .*: nothing to preserve\. Check"
    ):
        verify.require_better_than_chance(*logits_with(21, 200, 10))
    with pytest.raises(GateError, match="nothing to preserve"):
        verify.require_better_than_chance(*logits_with(0, 200, 10))


def test_a_single_class_cannot_be_got_wrong():
    with pytest.raises(GateError, match=r"100\.00 %, chance is 100\.00 %"):
        verify.require_better_than_chance(*logits_with(200, 200, 1))


def test_guessing_passes_for_better_once_in_100_at_most():
    least = next(k for k in range(201) if exact_tail(k, 200, 10) <= Fraction(1, 100))
    assert verify.require_better_than_chance(*logits_with(least, 200, 10)) <= 0.01
    with pytest.raises(GateError):
        verify.require_better_than_chance(*logits_with(least - 1, 200, 10))


def test_too_few_images_to_tell_says_so():
    with pytest.raises(GateError, match="or give more images"):
        verify.require_better_than_chance(*logits_with(3, 3, 2))  # all right, yet a coin does that once in 8


# ---- the same image, the same result


def test_consistency_tells_rows_from_batch_sizes(images, tmp_path):
    with verify.opened(artifact(MEAN), tmp_path / "mean.onnx") as predictor:
        found = verify.consistency(predictor, images, 1e-4)
    assert found["images"] == 16 and found["top1_changed"] == 0 and found["row_spread"] == 0
    assert (
        found["batch_spread"]
        <= found["allowed"]
        == 1e-4 * max(1.0, float(np.abs(images[:16].mean((2, 3))).max()))
    )


def test_int8_may_move_a_whole_step_where_half_moves_its_last_bit():
    assert verify.tolerance("int8") == verify.tolerance("int8+fp16") > verify.tolerance("fp16") > 2**-11


def test_rows_of_one_image_that_differ_are_found(images):
    uneven = predictor_of(lambda batch: batch.mean((2, 3)) + 0.5 * np.arange(len(batch))[:, None] * [1, 0, 0])
    found = verify.consistency(uneven, images, 100)
    assert found["row_spread"] == pytest.approx(7.5) and found["batch_spread"] == pytest.approx(7.5)
    means = images[:16].mean((2, 3))  # 0.5 more of class 0 from place to place: where does it overtake?
    assert (
        found["top1_changed"]
        == sum(mean[0] < max(mean[1:]) < mean[0] + 0.5 * i for i, mean in enumerate(means))
        > 0
    )
    with pytest.raises(GateError, match=r"differ by 7\.5 at another place or batch size"):
        verify.consistency(uneven, images, 0.05)


@pytest.mark.parametrize(
    "where", [lambda batch: len(batch) == 1, lambda batch: (batch == batch[:1]).all() and len(batch) > 1]
)
def test_logits_that_are_nan_at_one_batch_size_are_not_consistent(images, where):
    spoilt = predictor_of(
        lambda batch: np.full((len(batch), 3), np.nan) if where(batch) else batch.mean((2, 3))
    )
    with pytest.raises(GateError, match="differ by nan"):
        verify.consistency(spoilt, images, 100)


def test_a_graph_that_repeats_itself_passes(images, tmp_path):
    assert verify.require_repeatable(artifact(MEAN), tmp_path / "mean.onnx", images) == {
        "images": 20,
        "runs": 2,
        "sessions": 2,
        "bit_equal": True,
    }


def test_a_graph_with_noise_is_not_repeatable(images, tmp_path):
    noisy = MEAN.replace("logits", "m") + "  noise = RandomNormalLike (m)  logits = Add (m, noise)"
    with pytest.raises(GateError, match="20 images give other logits when run again"):
        verify.require_repeatable(artifact(noisy), tmp_path / "noise.onnx", images)


def test_another_result_from_a_new_session_is_found(images, tmp_path, monkeypatch):
    sessions = itertools.count()

    @contextlib.contextmanager
    def opened(content, path):
        offset = np.float32(1e-6 * next(sessions))
        yield predictor_of(lambda batch: batch.mean((2, 3)) + offset)

    monkeypatch.setattr(verify, "opened", opened)
    with pytest.raises(GateError, match="give other logits when opened again"):
        verify.require_repeatable(b"", tmp_path / "any.onnx", images)


def test_top1_hits_and_agreement_by_hand():
    logits, other = (
        np.array([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]]),
        np.array([[0.0, 9.0], [1.0, 2.0], [0.0, 1.0]]),
    )
    labels = np.array([1, 1, 0])
    assert verify.hits(logits, labels).tolist() == [True, False, False]
    assert verify.top1(logits, labels) == pytest.approx(100 / 3)
    assert verify.agreement(logits, other) == pytest.approx(200 / 3)
