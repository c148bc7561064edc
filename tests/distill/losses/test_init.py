"""Losses by name: settings and their errors, the check before training, and what holds for every
logit loss.
"""

import contextlib
import itertools
import math
import re

import pytest
import torch

from distill import losses
from distill.losses.base import Outputs
from runtime.errors import UsageError

ON_CONSTANT_LOGITS = {"dist": 0.001, "lskd": 0.1, "lskd_dkd": 0.1}
"""Losses that are not made for a student without spread, and the eps that they recommend for one."""
OF_MIXED_LABELS = [name for name in losses.LOGIT if "mixed_labels" in losses.settings_of(name)]
PATTERNS = [(1, -1, -1), (-1, 1, -1), (-1, 1, 1), (0, 0, 0), (1, 1, 1), (2, 0, 0)]


@pytest.fixture(params=list(losses.LOGIT))
def name(request):
    return request.param


def value_and_grad(loss, student, teacher, target):
    student = student.clone().requires_grad_()
    value = loss(Outputs(student), Outputs(teacher), target)
    value.backward()
    return value, student.grad


def made(images=6, classes=5, scale=3.0, seed=0):
    """(student, teacher, labels)."""
    dice = torch.Generator().manual_seed(seed)
    student, teacher = scale * torch.randn(2, images, classes, generator=dice, dtype=torch.float64)
    return student, teacher, torch.randint(classes, (images,), generator=dice)


def mix(labels, classes, share=0.7, smoothing=0.1):
    hot = torch.full((len(labels), classes), smoothing / classes, dtype=torch.float64)
    hot = hot.scatter(1, labels[:, None], 1 - smoothing + smoothing / classes)
    return share * hot + (1 - share) * hot.flip(0)


# every logit loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [50.0, 500.0, 1e4])
def test_loss_and_gradient_are_finite_for_extreme_logits(name, size, dtype):
    for columns in (3, 2, 10):
        rows = [torch.tensor((pattern * 4)[:columns]) for pattern in PATTERNS]
        pairs = [
            (s, t)
            for s, t in itertools.product(rows, rows)
            if name not in ON_CONSTANT_LOGITS or len(set(s.tolist())) > 1
        ]
        student, teacher = (size * torch.stack(part).to(dtype) for part in zip(*pairs, strict=True))
        labels = torch.arange(len(pairs)) % columns
        for temperature in (1.0, 4.0):
            settings = {"temperature": temperature} if "temperature" in losses.settings_of(name) else {}
            loss = losses.create(name, **settings)
            for target in (labels, mix(labels, columns).float()):
                value, grad = value_and_grad(loss, student, teacher, target)
                assert value.isfinite() and grad.isfinite().all()
                assert value.dtype == torch.float32 and grad.dtype == dtype
                exact, exact_grad = value_and_grad(loss, student.double(), teacher.double(), target)
                assert value.item() == pytest.approx(exact.item(), rel=1e-4, abs=1e-4)
                if dtype == torch.float32:
                    assert (grad - exact_grad).abs().max() <= 1e-4 * exact_grad.abs().max() + 2e-6


def test_one_image_is_enough(name):
    student, teacher, labels = made(images=1)
    for s, t in (
        (student, teacher),
        (50 * student.sign(), 50 * teacher.sign()),
        (student, 100 * torch.eye(5).double()[:1]),
    ):
        for target in (labels, mix(labels, 5)):
            value, grad = value_and_grad(losses.create(name), s.float(), t.float(), target)
            assert value.isfinite() and grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_student_with_constant_logits_gets_finite_gradients(name, dtype):
    teacher, labels = made(images=4)[1].to(dtype), torch.arange(4)
    for constant in (0.0, 0.1, 50.0, -1e4):
        value, grad = value_and_grad(losses.create(name), torch.full_like(teacher, constant), teacher, labels)
        assert value.isfinite() and grad.isfinite().all()
        value, grad = value_and_grad(losses.create(name), teacher, torch.full_like(teacher, constant), labels)
        assert value.isfinite() and grad.isfinite().all()


@pytest.mark.parametrize("name", ON_CONSTANT_LOGITS)
def test_the_recommended_eps_keeps_the_gradient_of_constant_logits_small(name):
    teacher, labels = made(images=4, classes=10)[1].float(), torch.arange(4)
    grads = [
        value_and_grad(losses.create(name, eps=eps), torch.zeros_like(teacher), teacher, labels)[1]
        .abs()
        .max()
        .item()
        for eps in (losses.settings_of(name)["eps"], ON_CONSTANT_LOGITS[name])
    ]
    assert grads[0] > 1e4
    assert grads[1] < 100


def test_no_gradient_flows_to_the_teacher(name):
    student, teacher, labels = made()
    teacher.requires_grad_()
    _, grad = value_and_grad(losses.create(name), student, teacher, labels)
    assert grad.abs().sum() > 0
    assert teacher.grad is None


def test_the_gradient_is_the_slope_of_the_value(name):
    student, teacher, labels = made(images=4, scale=1.0)
    for target in (labels, mix(labels, 5)):
        loss = losses.create(name)
        assert torch.autograd.gradcheck(
            lambda s, f=loss, y=target: f(Outputs(s), Outputs(teacher), y), student.requires_grad_()
        )


def test_autocast_changes_nothing(name):
    student, teacher, labels = made(images=8, classes=20)
    student, teacher = student.float(), teacher.float()
    plain, grad = value_and_grad(losses.create(name), student, teacher, labels)
    student.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = losses.create(name)(Outputs(student), Outputs(teacher), labels)
    value.backward()
    assert torch.equal(value, plain)
    assert torch.equal(grad, student.grad)


def test_double_precision_stays_double(name):
    assert losses.create(name)(*map(Outputs, made()[:2]), made()[2]).dtype == torch.float64


def test_the_order_of_images_does_not_matter(name):
    student, teacher, labels = made()
    forwards, backwards = (
        losses.create(name)(Outputs(student[rows]), Outputs(teacher[rows]), labels[rows]).item()
        for rows in (range(6), range(5, -1, -1))
    )
    assert forwards == pytest.approx(backwards, rel=1e-12)


def test_only_differences_of_logits_count_unless_the_loss_says_otherwise(name):
    student, teacher, labels = made()
    shift = torch.arange(6.0)[:, None]
    values = [
        losses.create(name)(Outputs(student + a), Outputs(teacher - b), labels).item()
        for a, b in ((0, 0), (shift, shift))
    ]
    assert (values[0] == pytest.approx(values[1], rel=1e-9)) == losses.is_shift_invariant(name)


def test_nothing_waits_for_the_device(name, monkeypatch):
    """Tensors of the meta device have no values: reading one back, as `.item()` and `if tensor`
    do, raises.
    """
    monkeypatch.setattr(
        torch, "autocast", lambda *_, **__: contextlib.nullcontext()
    )  # which does not know that device
    student = torch.randn(4, 5, device="meta", requires_grad=True)
    teacher = torch.randn(4, 5, device="meta")
    for target in (torch.zeros(4, dtype=torch.int64, device="meta"), torch.rand(4, 5, device="meta")):
        settings = [{}] + ([{"mixed_labels": "both"}] if name in OF_MIXED_LABELS else [])
        for chosen in settings:
            losses.create(name, **chosen)(Outputs(student), Outputs(teacher), target).backward()
    assert student.grad.shape == (4, 5)


def test_different_classes_are_refused(name):
    with pytest.raises(UsageError, match="same classes"):
        losses.create(name)(
            Outputs(torch.zeros(4, 10)), Outputs(torch.zeros(4, 11)), torch.zeros(4, dtype=torch.int64)
        )


# mixed labels


def test_these_losses_need_one_class():
    """Each loss's own file of tests has its settings; these four are the ones whose papers have one class."""
    assert {"nkd", "dkd", "lskd_dkd", "ofa"} <= set(OF_MIXED_LABELS)


@pytest.mark.parametrize("name", OF_MIXED_LABELS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.7, 1.0])
def test_both_classes_are_weighted_by_the_share_they_were_mixed_with(name, share, smoothing):
    student, teacher, labels = made(images=6, classes=7)
    labels[0] = labels[-1]  # one pair of equal classes
    value, grad = value_and_grad(
        losses.create(name, mixed_labels="both"), student, teacher, mix(labels, 7, share, smoothing)
    )
    alone = student.clone().requires_grad_()
    one_class = losses.create(name)
    by_hand = (
        sum(
            weight * one_class(Outputs(alone[i : i + 1]), Outputs(teacher[i : i + 1]), y[i : i + 1])
            for i in range(6)
            for weight, y in ((share, labels), (1 - share, labels.flip(0)))
        )
        / 6
    )
    by_hand.backward()
    assert value.item() == pytest.approx(by_hand.item(), rel=1e-9)
    assert torch.allclose(grad, alone.grad, atol=1e-9)


@pytest.mark.parametrize("name", OF_MIXED_LABELS)
def test_by_default_a_mixed_label_counts_as_its_largest_class(name):
    student, teacher, labels = made()
    loss = losses.create(name)
    value = loss(
        Outputs(student), Outputs(teacher), mix(labels, 5, share=0.3)
    )  # the partner's share is the larger
    assert torch.equal(value, loss(Outputs(student), Outputs(teacher), labels.flip(0)))


@pytest.mark.parametrize("name", OF_MIXED_LABELS)
def test_both_is_the_same_for_labels_that_are_not_mixed(name):
    student, teacher, labels = made()
    assert torch.equal(
        losses.create(name, mixed_labels="both")(Outputs(student), Outputs(teacher), labels),
        losses.create(name)(Outputs(student), Outputs(teacher), labels),
    )


# settings


def test_an_unknown_loss_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match=r"no loss called 'nkdd'.*did you mean nkd\?"):
        losses.create("nkdd")


@pytest.mark.parametrize(
    ("name", "setting", "answer"),
    [
        (
            "kl",
            "temprature",
            r"kl has no setting 'temprature'; did you mean temperature\? It has: temperature",
        ),
        ("nkd", "gama", r"did you mean gamma\?"),
        ("kl", "gamma", "kl has no setting 'gamma'"),
        ("binary_kl", "temperature", r"binary_kl has no setting 'temperature'\. It has none"),
    ],
)
def test_an_unknown_setting_is_answered_with_the_nearest(name, setting, answer):
    for ask in (losses.create, lambda *a, **s: losses.warnings_of(*a, 10, 8, **s)):
        with pytest.raises(UsageError, match=answer):
            ask(name, **{setting: 2.0})


@pytest.mark.parametrize(
    ("name", "setting"), [("kl", "temperature"), ("ofa", "eps"), ("lskd", "eps"), ("dist", "eps")]
)
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, "warm", None, True, [1.0]])
def test_what_is_divided_by_must_be_above_0(name, setting, value):
    with pytest.raises(UsageError, match=f"{setting} .*: expected a number above 0"):
        losses.create(name, **{setting: value})


@pytest.mark.parametrize(
    ("name", "setting"), [("nkd", "gamma"), ("dkd", "alpha"), ("dkd", "beta"), ("mlkd", "gamma")]
)
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "much"])
def test_a_weight_must_be_0_or_more(name, setting, value):
    with pytest.raises(UsageError, match=f"{setting} .*: expected a number of 0 or more"):
        losses.create(name, **{setting: value})
    assert losses.create(name, **{setting: 0})


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        (4.0, "expected a list"),
        ([], "expected a list"),
        ([4, 0], "temperatures 0: expected a number above 0"),
    ],
)
def test_temperatures_are_a_list_of_numbers_above_0(value, answer):
    with pytest.raises(UsageError, match=answer):
        losses.create("mlkd", temperatures=value)


def test_a_rule_for_mixed_labels_is_one_of_two():
    with pytest.raises(UsageError, match=r"mixed_labels 'bth': expected argmax or both; did you mean both\?"):
        losses.create("dkd", mixed_labels="bth")


def test_numbers_may_be_text_and_integers_as_yaml_gives_them():
    student, teacher, labels = made()
    plain = losses.create("lskd", temperature=2.0, eps=0.01)(Outputs(student), Outputs(teacher), labels)
    assert torch.equal(
        losses.create("lskd", temperature=2, eps="1e-2")(Outputs(student), Outputs(teacher), labels), plain
    )


# the check before training


def test_nothing_is_said_about_a_loss_that_fits(name):
    student, _, _ = made(images=8, classes=10)
    assert losses.warnings_of(name, 10, 8) == []
    assert losses.warnings_of(name, 10, 8, logits=student) == []


def test_one_class_is_refused(name):
    with pytest.raises(UsageError, match=f"{name} with 1 class"):
        losses.warnings_of(name, 1, 8)


@pytest.mark.parametrize(
    ("name", "classes", "batch", "settings", "said"),
    [
        ("nkd", 2, 8, {}, ["nkd with 2 classes: .*second term is 0.*kl"]),
        ("nkd", 2, 8, {"gamma": 0}, []),
        ("dkd", 2, 8, {}, ["dkd with 2 classes: .*second term is 0.*kl"]),
        ("dkd", 2, 8, {"beta": 0}, []),
        ("dist", 2, 8, {}, ["dist with 2 classes: .*always .1 or -1.*kl"]),
        ("dist", 10, 1, {}, ["dist with batch 1: .*constant.*batch of 3 or more"]),
        ("dist", 10, 2, {}, ["dist with batch 2: .*constant.*batch of 3 or more"]),
        ("dist", 10, 1, {"gamma": 0}, []),
        ("dist", 2, 8, {"beta": 0}, []),
        ("dist", 10, 3, {}, []),
    ],
)
def test_a_term_that_vanishes_is_named(name, classes, batch, settings, said):
    warnings = losses.warnings_of(name, classes, batch, **settings)
    assert len(warnings) == len(said)
    for warning, pattern in zip(warnings, said, strict=True):
        assert re.search(pattern, warning)
        assert "\n" not in warning


@pytest.mark.parametrize(
    ("name", "classes", "batch", "settings"),
    [
        ("lskd", 2, 8, {}),
        ("lskd_dkd", 2, 8, {}),
        ("dkd", 2, 8, {"alpha": 0}),
        ("dkd", 9, 8, {"alpha": 0, "beta": 0}),
        ("lskd_dkd", 9, 8, {"alpha": 0, "beta": 0}),
        ("dist", 2, 1, {}),
        ("dist", 2, 8, {"gamma": 0}),
        ("dist", 9, 1, {"beta": 0}),
        ("dist", 9, 2, {"beta": 0}),
        ("dist", 9, 9, {"beta": 0, "gamma": 0}),
    ],
)
def test_a_loss_that_teaches_nothing_is_refused_and_its_gradient_is_0_indeed(name, classes, batch, settings):
    with pytest.raises(UsageError, match=r"with \d class.*(nothing is learned|always 0)\. Use .*kl"):
        losses.warnings_of(name, classes, batch, **settings)
    _, grad = value_and_grad(losses.create(name, **settings), *made(images=batch, classes=classes, scale=1.0))
    assert grad.abs().max() < 1e-3  # what eps leaves of it in the worst case, where 0.05 is usual


def test_mlkd_with_every_term_off_is_refused():
    with pytest.raises(UsageError, match="alpha, beta and gamma 0"):
        losses.warnings_of("mlkd", 10, 8, alpha=0, beta=0, gamma=0)
    assert losses.warnings_of("mlkd", 10, 8, alpha=0, beta=0) == []


@pytest.mark.parametrize("name", ON_CONSTANT_LOGITS)
def test_a_student_whose_first_logits_are_constant_is_refused_with_a_way_out(name):
    for constant in (0.0, 3.0):
        logits = torch.full((8, 10), constant)
        with pytest.raises(UsageError, match=f"constant.*set eps to {ON_CONSTANT_LOGITS[name]}"):
            losses.warnings_of(name, 10, 8, logits=logits)
        assert losses.warnings_of(name, 10, 8, logits=logits, eps=ON_CONSTANT_LOGITS[name]) == []
    almost = 1e-4 * torch.randn(8, 10, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UsageError, match="constant"):
        losses.warnings_of(name, 10, 8, logits=almost)
    assert losses.warnings_of(name, 10, 8, logits=1000 * almost) == []
