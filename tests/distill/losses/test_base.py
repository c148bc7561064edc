"""What the losses share: one class or two from a mixed label, the cross-entropy beside them, shapes."""

import math

import pytest
import torch
from timm.data.mixup import mixup_target

from distill.losses import base
from distill.losses.base import Outputs
from runtime.errors import UsageError


def mixed(first, second, share, classes, smoothing):
    """What timm's mixup makes of two classes."""
    return mixup_target(torch.tensor([first, second]), classes, share, smoothing)[:1]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.4, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("classes", [3, 10, 1000])
def test_two_labels_gives_back_what_was_mixed(classes, share, smoothing):
    first, second, weight = base.two_labels(mixed(2, 1, share, classes, smoothing))
    shares = {first.item(): weight.item()}
    shares[second.item()] = 1 - weight.item()
    expected = {2: share, 1: 1 - share}
    for label, wanted in expected.items():
        assert shares.get(label, 0.0) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_one_class_mixed_with_itself_has_the_whole_weight(share, smoothing):
    first, _, weight = base.two_labels(mixed(4, 4, share, 7, smoothing))
    assert first.item() == 4
    assert weight.item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("share", "smoothing", "expected"), [(0.7, 0.0, 0.7), (0.3, 0.0, 0.7), (1.0, 0.2, 0.9)]
)
def test_with_two_classes_the_label_itself_is_the_weights(share, smoothing, expected):
    first, second, weight = base.two_labels(mixed(1, 0, share, 2, smoothing))
    assert {first.item(), second.item()} == {0, 1}
    assert first.item() == (1 if share > 0.5 else 0)
    assert weight.item() == pytest.approx(expected)


@pytest.mark.parametrize("classes", [2, 5])
def test_a_label_that_says_nothing_still_gives_finite_weights(classes):
    assert base.two_labels(torch.full((1, classes), 1 / classes))[2].isfinite().all()


def test_rows_of_a_batch_may_have_been_mixed_differently():
    rows = [(0, 3, 0.2), (1, 1, 0.5), (2, 0, 0.9)]
    q = torch.cat([mixed(*row, 5, 0.1) for row in rows])
    first, second, weight = base.two_labels(q)
    assert first.tolist() == [3, 1, 2]
    assert weight.tolist() == pytest.approx([0.8, 1.0, 0.9], abs=1e-6)
    assert second[[0, 2]].tolist() == [0, 0]


@pytest.mark.parametrize("classes", [2, 5, 1000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_a_mixed_image_counts_as_two_images_of_its_shares(classes, smoothing, share):
    """Twenty copies, of which `share` are the one image and the rest the other, unmixed."""
    logits = torch.randn(1, classes, generator=torch.Generator().manual_seed(0)).double()
    weights = 2 * torch.arange(classes, dtype=torch.float64) / (classes - 1)  # of mean 1
    ones = round(20 * share)
    unmixed = torch.tensor([1] * ones + [0] * (20 - ones))
    for second, labels in ((0, unmixed), (1, torch.ones(20, dtype=torch.int64))):
        expected = base.weighted_cross_entropy(logits.expand(20, -1), labels, weights, smoothing)
        target = mixed(1, second, share, classes, smoothing)
        found = base.weighted_cross_entropy(logits, target, weights, smoothing)
        assert found.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_equal_weights_give_the_cross_entropy_itself(smoothing):
    logits = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    for target in (torch.tensor([4, 0]), mixup_target(torch.tensor([4, 0]), 6, 0.3, smoothing)):
        plain = base.cross_entropy(logits, target, smoothing)
        assert base.weighted_cross_entropy(logits, target, torch.ones(6), smoothing).allclose(plain)
    with pytest.raises(UsageError, match="expected class indices"):
        base.weighted_cross_entropy(logits, torch.zeros(3), torch.ones(6))


def test_the_lower_class_wins_a_tie():
    logits = torch.zeros(2, 6)
    half = torch.cat([mixed(5, 2, 0.5, 6, 0.1), mixed(0, 4, 0.5, 6, 0.0)])
    assert base.hard_labels(half, logits).tolist() == [2, 0]
    assert base.hard_labels(torch.full((2, 6), 1 / 6), logits).tolist() == [0, 0]


def test_over_labels_weighs_both_classes_image_by_image():
    logits = torch.zeros(3, 4)
    q = torch.cat([mixed(3, 1, 0.25, 4, 0.1), mixed(2, 2, 0.25, 4, 0.1), mixed(0, 3, 0.5, 4, 0.1)])
    worth = torch.tensor([[1.0, 10.0, 100.0, 1000.0]]).expand(3, 4)

    def per_image(y):
        return worth.gather(1, y).squeeze(1)

    by_hand = [0.25 * 1000 + 0.75 * 10, 100, 0.5 * 1 + 0.5 * 1000]
    assert base.over_labels(per_image, q, logits, "both").item() == pytest.approx(sum(by_hand) / 3, rel=1e-5)
    assert base.over_labels(per_image, q, logits, "argmax").item() == pytest.approx((10 + 100 + 1) / 3)
    labels = torch.tensor([1, 2, 0])
    assert base.over_labels(per_image, labels, logits, "both").item() == pytest.approx((10 + 100 + 1) / 3)


def test_an_unknown_rule_for_mixed_labels_is_refused():
    with pytest.raises(UsageError, match="mixed_labels 'first': expected argmax or both"):
        base.over_labels(lambda y: y, torch.zeros(2, dtype=torch.int64), torch.zeros(2, 3), "first")


@pytest.mark.parametrize("target", [torch.zeros(3, dtype=torch.int64), torch.zeros(4, 6), torch.zeros(4, 1)])
def test_a_target_of_another_shape_is_refused_with_both_shapes(target):
    logits = torch.zeros(4, 5)
    for use in (base.hard_labels, lambda target, logits: base.cross_entropy(logits, target)):
        with pytest.raises(
            UsageError,
            match=r"target .* logits \(4, 5\): expected class indices \(4,\) or soft labels \(4, 5\)",
        ):
            use(target, logits)


def test_cross_entropy_by_hand():
    logits = torch.tensor([[1 / 2, 1 / 4, 1 / 4], [1 / 8, 1 / 8, 3 / 4]]).log()
    hard = (math.log(4) + math.log(4 / 3)) / 2
    assert base.cross_entropy(logits, torch.tensor([1, 2])).item() == pytest.approx(hard)
    soft = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    by_hand = (0.5 * math.log(2) + 0.5 * math.log(4) + math.log(4 / 3)) / 2
    assert base.cross_entropy(logits, soft).item() == pytest.approx(by_hand)


def test_cross_entropy_smooths_indices_only():
    logits, labels = torch.tensor([[1 / 2, 1 / 4, 1 / 4]]).log(), torch.tensor([0])
    smooth = 0.8 * math.log(2) + 0.1 * math.log(4) * 2
    assert base.cross_entropy(logits, labels, 0.3).item() == pytest.approx(smooth)
    soft = torch.tensor([[1.0, 0.0, 0.0]])
    assert base.cross_entropy(logits, soft, 0.3).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_cross_entropy_is_computed_in_float32_or_wider(dtype):
    logits = torch.tensor([[300.0, -300.0]], dtype=dtype, requires_grad=True)
    value = base.cross_entropy(logits, torch.tensor([[0.25, 0.75]]))
    value.backward()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.item() == 450.0
    assert logits.grad.tolist() == [[0.75, -0.75]]


@pytest.mark.parametrize(
    ("student", "teacher"), [((4, 10), (4, 100)), ((10,), (10,)), ((4, 1), (4, 1)), ((3, 5), (4, 5))]
)
def test_logits_that_do_not_fit_are_refused_with_both_shapes(student, teacher):
    with pytest.raises(UsageError, match=r"student logits \(.*teacher logits \(.*\(N, K\)"):
        base.float_logits(Outputs(torch.zeros(student)), Outputs(torch.zeros(teacher)))


def test_the_norm_has_no_gradient_at_0():
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    length = base.norm(x, 1)
    length.sum().backward()
    assert length.tolist() == pytest.approx([0.0, 5.0], abs=1e-18)
    assert x.grad.tolist() == [[0.0, 0.0], [pytest.approx(0.6), pytest.approx(0.8)]]
