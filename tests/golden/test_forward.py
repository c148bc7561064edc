"""Feature maps and logits of the original networks with the deterministic weights, before and
after merging.
"""

import numpy as np
import timm
import torch

from distill import models  # noqa: F401  (registers the families)
from distill.models.merge import reparameterize


def spread(arrays):
    return max(1.0, arrays["logits64"].std())


def test_forward(forward_case, read, ours, fill, noise):
    arrays, (name, arguments), salt = (
        read(forward_case),
        ours(forward_case["constructor"]),
        forward_case["salt"],
    )
    network = fill(timm.create_model(name, **arguments), salt).eval()
    np.testing.assert_array_equal(noise(arrays["x"].shape, salt), arrays["x"])
    x = torch.from_numpy(arrays["x"])
    with torch.no_grad():
        maps = network.forward_intermediates(x, intermediates_only=True)
        logits = network(x)
        merged = reparameterize(network, inplace=True, fold_batch_norm=False)(x)
    for i, found in enumerate(maps):
        assert abs(found.double().mean() - arrays[f"stage{i}_mean"]) <= 1e-5 * arrays[f"stage{i}_std"]
        assert abs(found.double().std() - arrays[f"stage{i}_std"]) <= 1e-5 * arrays[f"stage{i}_std"]
    last = arrays["stage3_map"]
    assert np.abs(maps[3][:, : last.shape[1]].numpy() - last).max() <= 2e-5 * max(1.0, last.std())
    assert np.abs(logits.numpy() - arrays["logits64"]).max() <= 2e-5 * spread(arrays)
    assert np.abs(merged.numpy() - arrays["logits64"]).max() <= 2e-5 * spread(
        arrays
    )  # what no reference can merge too
    if "logits_merged" in arrays:
        assert np.abs(merged.numpy() - arrays["logits_merged"]).max() <= 2e-5 * spread(arrays)
