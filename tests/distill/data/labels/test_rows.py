"""Rows of stored answers: what comes back, how large they are, and published cases."""

import zlib

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from distill.data.labels.rows import LEAST, Layout, checksums, spread


def logits(n=6, classes=50, scale=4.0, seed=0):
    return scale * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed))


PIXELS = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [0.0, 300.0, -300.0])
def test_all_classes_come_back_within_the_rounding_of_16_bits(size):
    """A half has 11 significant bits, and the sum is in float32."""
    z = logits() + size
    found = Layout(50, 50).unpack(Layout(50, 50).pack(z, PIXELS))
    allowed = z.log_softmax(1).abs() * 2**-11 + abs(size) * 2**-23 + 1e-5
    assert ((found - z).abs() <= allowed).all()


@pytest.mark.parametrize("top", [1, 5, 49])
def test_the_largest_come_back_and_the_rest_is_spread_evenly(top):
    """Expected from probabilities in float64: the largest as they are, the others all alike, the same sum."""
    z = logits()
    p = z.double().softmax(1)
    values, ids = p.topk(top, dim=1)
    expected = ((1 - values.sum(1)) / (50 - top))[:, None].expand(-1, 50).scatter(1, ids, values)
    found = Layout(50, top).unpack(Layout(50, top).pack(z, PIXELS)).double().softmax(1)
    assert torch.allclose(found, expected, rtol=8e-3, atol=1e-7)
    assert torch.equal(found.argmax(1), p.argmax(1))


def test_a_teacher_that_is_certain_gives_no_infinity():
    z = torch.zeros(2, 10)
    z[0, 3] = 1e6
    z[1, 4] = -1e6
    for top in (2, 10):
        found = Layout(10, top).unpack(Layout(10, top).pack(z, PIXELS[:2]))
        assert found.isfinite().all() and found[0].argmax() == 3
        student = torch.zeros(2, 10, requires_grad=True)
        log_p = student.log_softmax(1)
        F.kl_div(log_p, found.log_softmax(1), log_target=True, reduction="batchmean").backward()
        assert student.grad.isfinite().all()
        assert (found.log_softmax(1) >= 2 * LEAST).all()


@pytest.mark.parametrize(
    ("classes", "top", "size"),
    [(10, 10, 4 + 4 + 2 * 10), (1000, 10, 4 + 4 + 2 * 10 + 2 + 2 * 10), (100_000, 10, 4 + 4 + 20 + 2 + 40)],
)
def test_the_size_of_a_row(classes, top, size):
    """Identifiers take 16 bits where they suffice."""
    assert Layout(classes, top).dtype.itemsize == size


def test_imagenet_for_30_epochs_stays_below_2_gb():
    assert 1_281_167 * 30 * Layout(1000, 10).dtype.itemsize < 2e9


def test_the_checksum_is_of_float32_in_the_order_channel_row_column():
    images = PIXELS.contiguous(memory_format=torch.channels_last)
    expected = [zlib.crc32(image.astype("<f4").tobytes()) for image in PIXELS.numpy()]
    assert checksums(images).tolist() == expected


def test_one_changed_bit_changes_the_checksum():
    changed = PIXELS.clone()
    changed[2, 0, 0, 0] = torch.nextafter(changed[2, 0, 0, 0], torch.tensor(2.0))
    assert (checksums(changed) != checksums(PIXELS)).tolist() == [False, False, True, False, False, False]


CASES = [(classes, seed, top) for classes in (20, 100, 1000) for seed in (0, 2, 4) for top in (1, 5, 10)]


@pytest.mark.parametrize(("classes", "seed", "top"), CASES)
def test_what_published_code_recovers(shared, classes, seed, top):
    """TinyViT's and FKD's own recovery of probabilities that were stored in 16 bits."""
    case = np.load(shared / "golden" / "stored_labels" / f"K{classes}_s{seed}.npz")
    ids = torch.from_numpy(case[f"top{top}/index"].astype(np.int64)).reshape(-1, top)
    p = torch.from_numpy(case[f"top{top}/value"].astype(np.float64)).reshape(-1, top)
    found = spread(ids, p.log(), (1 - p.sum(1)).log(), classes).softmax(1)
    expected = torch.from_numpy(case[f"top{top}/{'dense_smoothing' if top == 1 else 'dense'}"]).double()
    assert torch.allclose(found, expected, atol=1e-6)
    if top == 1:
        return
    student = torch.from_numpy(case["logits_student"]).double().requires_grad_()
    loss = F.cross_entropy(student, found)
    loss.backward()
    assert loss.item() == pytest.approx(float(case[f"top{top}/soft_ce"]), abs=1e-5)
    assert torch.allclose(student.grad, torch.from_numpy(case[f"top{top}/soft_ce_grad"]).double(), atol=1e-6)
