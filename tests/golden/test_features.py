"""Every feature loss against the stored numbers of its original: value, gradient of the maps, gradient of its
own parameters.
"""

import numpy as np
import pytest
import torch
from torch import nn

from distill import losses
from distill.losses.base import Outputs
from distill.losses.feature import reviewkd


class Classifier(nn.Module):
    """A teacher of which only the classifier is left."""

    def __init__(self, weight, bias):
        super().__init__()
        self.fc = nn.Linear(*weight.shape[::-1]).requires_grad_(False)
        self.fc.load_state_dict({"weight": weight, "bias": bias})

    def get_classifier(self):
        return self.fc


TARGET_NORMS = {
    "none": "none",
    "over (C,H,W)": "map",
    "over C at every position": "position",
    "over channels of every token": "position",
}


def target_norm(text):
    found = [norm for words, norm in TARGET_NORMS.items() if words in text]
    assert len(found) == 1, text
    return found[0]


def settings_of(entry):
    """(name of our loss, its settings) from the entry's own parameters."""
    given = dict(entry["params"])
    kind = entry["loss"]
    if kind == "at":
        return "at", {"p": given["p"]}
    if kind == "rkd":
        if given["squared"]:
            pytest.skip("squared distances are not offered: the paper's are not squared")
        return "rkd", {key: given[key] for key in ("distance_weight", "angle_weight", "eps")}
    if kind == "fitnet":
        return "fitnets", {"regressor": given["regressor"], "relu": "always" if given["relu"] else "never"}
    if kind == "reviewkd_abf":
        assert given["interpolate"] == "nearest"
        return "reviewkd", {"mid_channels": given["mid_channels"], "pooled": False}
    if kind in ("fd", "fd_map"):
        assert given.get("loss", "smooth_l1") in ("smooth_l1", "mse")
        return "fd", {
            "target_norm": target_norm(given["target_norm"]),
            "criterion": given.get("loss", "smooth_l1"),
            "beta": given.get("beta", 2.0),
        }
    if kind == "mgd":
        return "mgd", {key: given[key] for key in ("alpha_mgd", "lambda_mgd")}
    assert kind == "srrl", f"no loss for {kind}"
    return "srrl", {
        "feature_weight": given["feature_weight"],
        "regression_weight": given["regression_weight"],
        "relu": "always",
    }


NAMES = {
    "decoder.0.": "projectors.0.",
    "reg.conv.": "regressors.0.conv.",
    "reg.bn.": "regressors.0.bn.",
    "top.conv1.0.": "fusions.0.reduce.conv.",
    "top.conv1.1.": "fusions.0.reduce.bn.",
    "top.conv2.0.": "fusions.0.expand.conv.",
    "top.conv2.1.": "fusions.0.expand.bn.",
    "fuse.conv1.0.": "fusions.1.reduce.conv.",
    "fuse.conv1.1.": "fusions.1.reduce.bn.",
    "fuse.conv2.0.": "fusions.1.expand.conv.",
    "fuse.conv2.1.": "fusions.1.expand.bn.",
    "fuse.att_conv.0.": "fusions.1.attention.",
    "mgd.align.": "align.0.",
    "mgd.generation.": "generators.0.",
    "connector.Connectors.0.": "connector.conv.",
    "connector.Connectors.1.": "connector.bn.",
}
"""Where the reference's parameters are in ours."""


def our_name(key):
    found = [ours + key.removeprefix(theirs) for theirs, ours in NAMES.items() if key.startswith(theirs)]
    assert len(found) == 1, key
    return found[0]


def close(value, expected, relative, absolute):
    value, expected = (
        np.asarray(value, dtype=np.float64).reshape(-1),
        np.asarray(expected, dtype=np.float64).reshape(-1),
    )
    return np.abs(value - expected).max() <= relative * np.abs(expected).max() + absolute


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_original(feature_case, read, monkeypatch, dtype):
    arrays = read(feature_case)
    inputs, weights = (
        {
            key.removeprefix(prefix): torch.tensor(value).to(dtype)
            for key, value in arrays.items()
            if key.startswith(prefix)
        }
        for prefix in ("in/", "param/")
    )
    wanted = feature_case["gradients_wrt"]
    for name in wanted:
        inputs[name].requires_grad_()
    deepest_first = feature_case["loss"] == "reviewkd_abf"  # x0 is the deepest map
    ours = [inputs[name] for name in (reversed(wanted) if deepest_first else wanted)]
    theirs = [
        inputs[name] for name in sorted((key for key in inputs if key.startswith("t")), reverse=deepest_first)
    ]
    parameters = {}
    if feature_case["loss"] == "reviewkd_hcl":
        value = reviewkd.hcl(ours, theirs, feature_case["params"]["levels"])
    else:
        name, settings = settings_of(feature_case)
        loss = losses.create(name, **settings)
        logits, teacher_model = torch.zeros(len(theirs[0]), 2, dtype=dtype), None
        if name == "srrl":
            teacher_model = Classifier(weights.pop("teacher_fc.weight"), weights.pop("teacher_fc.bias")).to(
                dtype
            )
            logits = teacher_model.fc(theirs[0].mean((2, 3)))
        student, teacher = Outputs(logits, ours), Outputs(logits, theirs)
        loss.prepare(student, teacher, teacher_model)
        state = {our_name(key): value for key, value in weights.items()}
        shapes = {
            key: value.shape for key, value in loss.state_dict().items() if "num_batches_tracked" not in key
        }
        assert set(state) == set(shapes)
        loss.load_state_dict({key: value.reshape(shapes[key]) for key, value in state.items()}, strict=False)
        if name == "mgd":
            monkeypatch.setattr(loss, "draw_mask", lambda x: inputs["mask"])
        value = loss(student, teacher, torch.zeros(len(theirs[0]), dtype=torch.int64))
        parameters = dict(loss.named_parameters())
    value.backward()

    duplicate = "duplicate" in feature_case["file"]
    assert value.dtype == dtype
    assert close(
        value.item(), arrays["loss64"], 1e-3 if duplicate else 1e-5 if dtype == torch.float32 else 1e-6, 0
    )
    for name in wanted:
        assert torch.isfinite(inputs[name].grad).all()
        assert duplicate or close(inputs[name].grad, arrays[f"grad64/{name}"], 1e-4, 1e-6), name
    found = {key.removeprefix("grad_param/") for key in arrays if key.startswith("grad_param/")}
    assert {our_name(key) for key in found} == {
        key for key, weight in parameters.items() if weight.grad is not None
    }
    for key in found:
        assert close(parameters[our_name(key)].grad, arrays[f"grad_param/{key}"], 1e-4, 1e-6), key
