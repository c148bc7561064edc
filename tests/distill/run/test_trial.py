"""A network that cannot take the images is refused before anything is written."""

import pytest
import torch

from distill import models
from distill.__main__ import main
from distill.run.trial import require_teaches, require_trains
from runtime.errors import ArtifactError, UsageError


def test_a_network_that_fits_is_left_as_it_was():
    network = models.build("resnet20", 3, {"width": 0.25})
    before = {key: value.clone() for key, value in network.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    require_trains(network, "resnet20", (3, 16, 24), 8, 3)
    assert torch.rand(1) == expected
    assert all(value.equal(before[key]) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


CASES = {
    "one channel": ["--student-args", "in_chans=1"],
    "features only": ["--student-args", "features_only=true"],
    "too small for ConvNeXt": ["--student", "convnext_atto", "--img-size", "8"],
    ("one image with batch norm on one pixel"): [
        "--batch",
        "1",
        "--img-size",
        "8",
        "--student",
        "mobilenetv2_035",
    ],
}


@pytest.mark.parametrize("case", CASES)
def test_the_reason_is_said_and_nothing_is_left(case, tree, tmp_path, capsys):
    words = ["train", "--data", str(tree(names=("ant", "bee"))), "--output", str(tmp_path / "run")]
    more = CASES[case] if "--student" in CASES[case] else ["--student", "resnet10t", *CASES[case]]
    assert main([*words, "--teacher", "none", "--epochs", "1", "--batch", "8", *more]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ") and not (tmp_path / "run").exists()


def test_norms_that_keep_their_statistics_take_one_image():
    """On maps of one pixel a batch norm refuses one image only where it computes statistics."""
    network = models.build("resnet10t", 3)
    with pytest.raises(UsageError, match="cannot take 3 x 32 x 32 images at batch 1"):
        require_trains(network, "resnet10t", (3, 32, 32), 1, 3)
    require_trains(network, "resnet10t", (3, 32, 32), 1, 3, frozen_norms=True)
    require_trains(network, "resnet10t", (3, 32, 32), 1, 3, frozen="all-but-head")
    with pytest.raises(UsageError, match="cannot take"):
        require_trains(network, "resnet10t", (3, 32, 32), 1, 3, frozen="stages:2")
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_a_teacher_whose_logits_are_nan_is_named():
    network = models.build("resnet20", 3, {"width": 0.25})
    with torch.no_grad():
        network.linear.bias[0] = float("nan")
    with pytest.raises(ArtifactError, match="teacher resnet20: its logits hold NaN"):
        require_teaches(network, "resnet20", (3, 16, 16), 3)


def test_a_wrong_number_of_logits_is_refused():
    with pytest.raises(UsageError, match=r"gives \(2, 4\) for 2 images, not logits \(2, 3\)"):
        require_trains(models.build("resnet20", 4, {"width": 0.25}), "resnet20", (3, 16, 16), 8, 3)
