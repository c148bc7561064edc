"""What holds for every feature loss: precision, gradients, projectors that can be repeated and saved,
degenerate maps.
"""

import pytest
import torch
from torch import nn

from distill import losses
from distill.losses.base import Outputs
from distill.losses.feature import base
from runtime.errors import UsageError

NAMES = list(losses.FEATURE)
LEARNING = [name for name in NAMES if name not in ("at", "rkd")]


class Head(nn.Module):
    """A teacher whose last layers are an average and a classifier."""

    def __init__(self, channels=6, classes=5):
        super().__init__()
        self.fc = nn.Linear(channels, classes)
        self.requires_grad_(False)

    def get_classifier(self):
        return self.fc


TARGET = torch.tensor([0, 1, 2, 4])


def outputs(seed=0, dtype=torch.float32, sizes=((8, 4), (4, 2)), batch=4):
    """(student, teacher, teacher model): two stages of other channels and sizes; the teacher's logits are
    those of its head.
    """
    torch.manual_seed(seed)
    model = Head().to(dtype)
    s = [torch.randn(batch, c, size, size, dtype=dtype) for c, (size, _) in zip((3, 4), sizes, strict=True)]
    t = [torch.randn(batch, c, size, size, dtype=dtype) for c, (_, size) in zip((5, 6), sizes, strict=True)]
    logits = torch.randn(batch, 5, dtype=dtype)
    return Outputs(logits, s), Outputs(model.fc(t[-1].mean((2, 3))), t), model


def prepared(name, student, teacher, model, seed=1):
    torch.manual_seed(seed)
    return losses.create(name).prepare(student, teacher, model)


def value_and_grads(loss, student, teacher, autocast=False):
    torch.manual_seed(2)  # MGD draws its mask
    s = Outputs(student.logits, [x.clone().requires_grad_() for x in student.features])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = loss(s, teacher, TARGET[: len(student.logits)])
    value.backward()
    return value, [x.grad for x in s.features]


def copies(of, change):
    return Outputs(of.logits, [change(x) for x in of.features])


@pytest.mark.parametrize("name", NAMES)
def test_gradient_reaches_the_student_and_the_projectors_and_never_the_teacher(name):
    student, teacher, model = outputs()
    loss = prepared(name, student, teacher, model)
    theirs = copies(teacher, lambda x: x.clone().requires_grad_())
    theirs = theirs._replace(logits=teacher.logits.clone().requires_grad_())
    value, grads = value_and_grads(loss, student, theirs)
    assert value.ndim == 0
    reached = grads[-1:] if name in ("rkd", "srrl") else grads  # these two look at the last stage
    assert all(grad is not None and grad.abs().max() > 0 for grad in reached)
    assert all(weight.grad is not None for weight in loss.parameters())
    assert any(weight.grad.abs().max() > 0 for weight in loss.parameters()) or name not in LEARNING
    assert theirs.logits.grad is None
    assert all(x.grad is None for x in theirs.features)
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_the_slope_of_the_value(name):
    student, teacher, model = outputs(dtype=torch.float64, batch=3)
    loss = prepared(name, student, teacher, model)

    def value(*features):
        torch.manual_seed(0)
        return loss(Outputs(student.logits, features), teacher, TARGET[:3])

    assert torch.autograd.gradcheck(value, [x.requires_grad_() for x in student.features], fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_maps_are_computed_in_float32_under_autocast_too(name, dtype):
    student, teacher, model = outputs()
    student, teacher = (
        Outputs(x.logits.to(dtype), [f.to(dtype) for f in x.features]) for x in (student, teacher)
    )
    loss = prepared(name, student, teacher, model)
    assert all(weight.dtype == torch.float32 for weight in loss.parameters())
    value, grads = value_and_grads(loss, student, teacher, autocast=True)
    wide = [Outputs(x.logits.float(), [f.float() for f in x.features]) for x in (student, teacher)]
    exact, exact_grads = value_and_grads(prepared(name, *wide, model), *wide)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(exact.item(), rel=1e-6)
    for grad, exact_grad in zip(grads, exact_grads, strict=True):
        assert grad is None or torch.allclose(grad, exact_grad.to(dtype))


@pytest.mark.parametrize(
    "change",
    [torch.zeros_like, torch.ones_like, lambda x: x[:1].expand_as(x), lambda x: 1e4 * x],
    ids=["zero", "constant", "all rows equal", "large"],
)
@pytest.mark.parametrize("whose", ["student", "teacher", "both"])
@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradients_are_finite_for_degenerate_maps(name, whose, change):
    student, teacher, model = outputs()
    loss = prepared(name, student, teacher, model)
    student = copies(student, change) if whose != "teacher" else student
    teacher = copies(teacher, change) if whose != "student" else teacher
    value, grads = value_and_grads(loss, student, teacher)
    assert torch.isfinite(value)
    assert all(torch.isfinite(grad).all() for grad in grads if grad is not None)
    assert all(torch.isfinite(weight.grad).all() for weight in loss.parameters())


@pytest.mark.parametrize("name", [name for name in NAMES if name != "rkd"])
def test_one_image_is_enough_for_maps_of_some_size(name):
    student, teacher, model = outputs(batch=1)
    torch.manual_seed(1)
    loss = losses.create(name, **({"pooled": False} if name == "reviewkd" else {})).prepare(
        student, teacher, model
    )
    value, grads = value_and_grads(loss, student, teacher)
    assert torch.isfinite(value)
    assert all(torch.isfinite(grad).all() for grad in grads if grad is not None)


@pytest.mark.parametrize("name", ["fitnets", "reviewkd", "srrl"])
def test_batch_norm_of_one_image_at_one_position_is_refused(name):
    student, teacher, model = outputs(sizes=((1, 1), (1, 1)), batch=1)
    loss = prepared(name, student, teacher, model)
    with pytest.raises(UsageError, match="batch of 2 or more"):
        value_and_grads(loss, student, teacher)


@pytest.mark.parametrize("name", ["fitnets", "reviewkd", "srrl", "ofa_stages"])
def test_batch_1_is_warned_of_at_the_start(name):
    assert "batch 1" in losses.warnings_of(name, 10, 1)[0]
    assert losses.warnings_of(name, 10, 2) == []


@pytest.mark.parametrize("name", LEARNING)
def test_the_same_seed_gives_the_same_projectors(name):
    student, teacher, model = outputs()
    first, again, other = (prepared(name, student, teacher, model, seed).state_dict() for seed in (1, 1, 2))
    assert list(first) == list(again)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_brings_the_projectors_back(name):
    student, teacher, model = outputs()
    saved, loaded = (prepared(name, student, teacher, model, seed) for seed in (1, 2))
    value_and_grads(saved, student, teacher)  # moves the batch norms' statistics
    loaded.load_state_dict(saved.state_dict())
    assert all(
        torch.equal(a, b)
        for a, b in zip(saved.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    assert value_and_grads(saved, student, teacher)[0] == value_and_grads(loaded, student, teacher)[0]
    assert not set(saved.state_dict()) & set(model.state_dict())


@pytest.mark.parametrize("name", [name for name in NAMES if name != "srrl"])
def test_an_unprepared_loss_prepares_itself_once(name):
    student, teacher, model = outputs()
    expected, _ = value_and_grads(prepared(name, student, teacher, model, seed=1), student, teacher)
    loss = losses.create(name)
    assert not list(loss.parameters())
    torch.manual_seed(1)
    loss.prepare(student, teacher)
    before = [weight.clone() for weight in loss.parameters()]
    loss.prepare(student, teacher)
    assert all(torch.equal(a, b) for a, b in zip(before, loss.parameters(), strict=True))
    torch.manual_seed(1)
    fresh = losses.create(name)
    fresh(student, teacher, TARGET)
    assert list(fresh.state_dict()) == list(loss.state_dict())
    assert value_and_grads(loss, student, teacher)[0] == expected


@pytest.mark.parametrize("name", LEARNING)
def test_a_sample_made_in_inference_mode_gives_projectors_that_can_be_trained(name):
    student, teacher, model = outputs()
    with torch.inference_mode():
        sample = [Outputs(x.logits.clone(), [f.clone() for f in x.features]) for x in (student, teacher)]
        loss = losses.create(name).prepare(*sample, model)
    assert all(weight.requires_grad and not weight.is_inference() for weight in loss.parameters())
    value_and_grads(loss, student, teacher)


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_the_map_they_were_made_of(name):
    student, teacher, model = outputs()
    tokens = [copies(x, lambda m: m.flatten(2).transpose(1, 2)) for x in (student, teacher)]
    value, _ = value_and_grads(prepared(name, student, teacher, model), student, teacher)
    assert value_and_grads(prepared(name, *tokens, model), *tokens)[0].item() == pytest.approx(
        value.item(), rel=1e-6
    )


def test_pairs_that_do_not_fit_are_refused():
    student, teacher, _ = outputs()
    with pytest.raises(UsageError, match="2 maps of the student and 1 of the teacher"):
        losses.create("fd")(student, teacher._replace(features=teacher.features[:1]), TARGET)
    with pytest.raises(UsageError, match="0 maps"):
        losses.create("at")(student._replace(features=()), teacher._replace(features=()), TARGET)
    with pytest.raises(UsageError, match="the same batch"):
        losses.create("fd")(student, copies(teacher, lambda x: x[:3]), TARGET)
    with pytest.raises(UsageError, match="no square"):
        losses.create("fd")(
            *(Outputs(student.logits, [torch.zeros(4, tokens, 3)]) for tokens in (17, 16)), TARGET
        )
    with pytest.raises(UsageError, match="expected a map"):
        base.as_map(torch.zeros(2, 2, 2, 2, 2))


def test_maps_of_another_size_than_prepared_for_are_refused():
    student, teacher, model = outputs()
    loss = prepared("fitnets", student, teacher, model)
    with pytest.raises(UsageError, match="another size"):
        loss(copies(student, lambda x: x[:, :, :2, :2]), teacher, TARGET)


def test_the_stages_branch_needs_no_maps_of_the_teacher():
    student, teacher, model = outputs()
    loss = prepared("ofa_stages", student, teacher, model)
    with_maps = loss(student, teacher, TARGET)
    assert loss(student, Outputs(teacher.logits), TARGET) == with_maps


def test_resize_averages_on_the_way_down_and_interpolates_on_the_way_up():
    x = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]).view(1, 1, 2, 4)
    assert base.resize(x, (2, 4)) is x
    assert base.resize(x, (1, 2)).flatten().tolist() == [(1 + 2 + 5 + 6) / 4, (3 + 4 + 7 + 8) / 4]
    row = torch.tensor([0.0, 4.0]).view(1, 1, 1, 2)
    assert base.resize(row, (1, 4)).flatten().tolist() == [
        0,
        1,
        3,
        4,
    ]  # centers at -1/4, 1/4, 3/4, 5/4 of the two pixels
    assert base.resize(x, (4, 2)).shape == (1, 1, 4, 2)  # up one way, down the other: interpolated


def test_auto_rectifies_for_teachers_without_negative_values_only():
    signed = torch.tensor([1.0, -1e-3])
    assert base.rectified("auto", signed.relu())
    assert not base.rectified("auto", signed)
    assert base.rectified("always", signed)
    assert not base.rectified("never", signed.relu())


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("fd", {"target_norm": "positoin"}, "position or map or none; did you mean position"),
        ("fd", {"beta": -1}, "beta"),
        ("reviewkd", {"pooled": "perhaps"}, "true or false"),
        ("reviewkd", {"mid_channels": 1.5}, "whole number"),
        ("mgd", {"lambda_mgd": 1}, "below 1"),
        ("at", {"p": 0.5}, "1 or more"),
        ("rkd", {"distance_weight": 0, "angle_weight": 0}, "both weights 0"),
        ("rkd", {"eps": 0}, "above 0"),
        ("fitnets", {"regressor": "sideways"}, "same"),
        ("srrl", {"weight": 1}, "no setting 'weight'"),
        ("ofa_stages", {"mixed_labels": "none"}, "argmax or both"),
    ],
)
def test_a_setting_that_is_out_of_range_is_refused(name, settings, message):
    with pytest.raises(UsageError, match=message):
        losses.create(name, **settings)
