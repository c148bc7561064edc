"""Stored teacher labels: the loss on the recovered labels is ours to get right; storing and recovering them
is not built yet.
"""

import numpy as np
import pytest
import torch

from distill.losses.base import cross_entropy


def test_the_cross_entropy_with_recovered_labels(stored_label_case, read):
    arrays = read(stored_label_case)
    stored = sorted({key.split("/")[0] for key in arrays if key.endswith("/soft_ce")})
    assert stored
    for top in stored:
        student = torch.tensor(arrays["logits_student"], requires_grad=True)
        value = cross_entropy(student, torch.tensor(arrays[f"{top}/dense"]))
        (gradient,) = torch.autograd.grad(value, student)
        assert value.item() == pytest.approx(float(arrays[f"{top}/soft_ce"]), rel=1e-5)
        np.testing.assert_allclose(gradient.numpy(), arrays[f"{top}/soft_ce_grad"], atol=1e-6)


def test_storing_and_recovering_labels(stored_label_case):
    pytest.skip(
        "left out: top-K teacher labels are neither stored nor recovered by this version (there is no distill"
        " label)"
    )
