"""RKD against plain loops over pairs and triplets, and where images coincide."""

import math

import pytest
import torch

from distill import losses
from distill.losses.base import Outputs
from runtime.errors import UsageError


def run(student, teacher, **settings):
    s = student.clone().requires_grad_()
    value = losses.create("rkd", **settings)(Outputs(s, [s]), Outputs(teacher, [teacher]), None)
    value.backward()
    return value, s.grad


def smooth(a, b):
    return 0.5 * (a - b) ** 2 if abs(a - b) < 1 else abs(a - b) - 0.5


def by_loops(s, t, distance_weight, angle_weight):
    """The definition, with python's numbers."""

    def distances(x):
        d = [[math.dist(a, b) for b in x] for a in x]
        mean = sum(map(sum, d)) / (len(x) * (len(x) - 1))
        return [[v / mean for v in row] for row in d]

    def cosine(x, i, j, k):
        a, b = ([p - q for p, q in zip(x[end], x[j], strict=True)] for end in (i, k))
        length = math.hypot(*a) * math.hypot(*b)
        return sum(p * q for p, q in zip(a, b, strict=True)) / length if length else 0.0

    n, ds, dt = len(s), distances(s), distances(t)
    pairs = sum(smooth(ds[i][j], dt[i][j]) for i in range(n) for j in range(n)) / n**2
    triplets = (
        sum(
            smooth(cosine(s, i, j, k), cosine(t, i, j, k))
            for i in range(n)
            for j in range(n)
            for k in range(n)
        )
        / n**3
    )
    return distance_weight * pairs + angle_weight * triplets


def test_distances_equal_the_value_worked_out_by_hand():
    s, t = torch.tensor([[0.0], [3.0], [4.0]]), torch.tensor([[0.0], [1.0], [3.0]])
    # student 3, 4, 1 over their mean 8/3; teacher 1, 3, 2 over their mean 2
    ours, theirs = (9 / 8, 12 / 8, 3 / 8), (1 / 2, 3 / 2, 1.0)
    by_hand = 2 * sum(smooth(a, b) for a, b in zip(ours, theirs, strict=True)) / 9
    assert run(s, t, distance_weight=1, angle_weight=0)[0].item() == pytest.approx(by_hand)


@pytest.mark.parametrize(("distance_weight", "angle_weight"), [(25, 50), (1, 0), (0, 1)])
def test_equals_loops_over_pairs_and_triplets(distance_weight, angle_weight):
    torch.manual_seed(0)
    s, t = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    value, _ = run(s, t, distance_weight=distance_weight, angle_weight=angle_weight)
    assert value.item() == pytest.approx(by_loops(s.tolist(), t.tolist(), distance_weight, angle_weight))


def test_the_last_map_is_averaged_over_positions():
    torch.manual_seed(0)
    s, t = torch.randn(4, 3, 2, 2), torch.randn(4, 5, 3, 3)
    wrong = torch.full((4, 2, 8, 8), torch.nan)
    value = losses.create("rkd")(Outputs(s, [wrong, s]), Outputs(t, [wrong, t]), None)
    assert torch.equal(value, run(s.mean((2, 3)), t.mean((2, 3)))[0])


def test_size_and_place_of_the_features_do_not_count():
    torch.manual_seed(0)
    s = torch.randn(6, 3, dtype=torch.float64)
    assert run(7 * s + 100, s)[0].item() == pytest.approx(0, abs=1e-20)


def test_images_that_coincide_send_back_a_gradient_of_ordinary_size():
    torch.manual_seed(0)
    s, t = torch.randn(6, 4), torch.randn(6, 4)
    ordinary = run(s, t)[1].abs().max()
    s[1] = s[0]
    value, grad = run(s, t)
    assert value.item() == pytest.approx(by_loops(s.tolist(), t.tolist(), 25, 50), rel=1e-4)
    assert grad.abs().max() < 10 * ordinary  # the slope of a normalized zero would be 1e12
    assert torch.equal(run(torch.ones(6, 4), t)[1], torch.zeros(6, 4))


def test_near_images_far_from_the_origin_keep_their_distances_in_float32():
    torch.manual_seed(0)
    s, t = 100 + 0.01 * torch.randn(6, 4), torch.randn(6, 4)
    value, grad = run(s, t)
    exact, exact_grad = run(s.double(), t.double())
    assert value.item() == pytest.approx(exact.item(), rel=1e-4)
    assert torch.allclose(grad.double(), exact_grad, rtol=1e-3, atol=1e-3 * exact_grad.abs().max().item())


@pytest.mark.parametrize("batch", [1, 2])
def test_fewer_than_three_images_are_refused_at_the_start_and_in_a_step(batch):
    with pytest.raises(UsageError, match=f"batch {batch}: .* 3 or more"):
        losses.warnings_of("rkd", 10, batch)
    with pytest.raises(UsageError, match="3 or more"):
        run(torch.randn(batch, 4), torch.randn(batch, 4))


def test_what_pairs_and_triplets_take_is_said_where_it_is_much():
    few, many = (
        losses.create("rkd").prepare(*[Outputs(torch.zeros(4, c), [torch.randn(4, c)])] * 2)
        for c in (16, 2048)
    )
    assert few.notes(256) == []
    assert "4.7 GB" in few.notes(1024)[0]  # of which 4.3 are cosines
    assert "0.8 GB" in many.notes(128)[0]  # measured: 0.81
    flat = losses.create("rkd", angle_weight=0).prepare(
        *[Outputs(torch.zeros(4, 16), [torch.randn(4, 16)])] * 2
    )
    assert flat.notes(1024) == []
