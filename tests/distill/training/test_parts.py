"""How the student's images are to look, and what is said of it where a file does not tell."""

import pytest
import torch

from distill import models
from distill.recipe import Recipe
from distill.training.parts import open_start
from runtime.errors import UsageError


@pytest.fixture
def foreign(tmp_path):
    """foreign(**settings) -> (preprocessing, lines) of a student that starts from a plain state dict."""
    torch.save(models.build("resnet20", 4, {"width": 0.25}).state_dict(), tmp_path / "w.pth")
    given = {"student": "resnet20", "student_args": ("width=0.25",), "student_ckpt": str(tmp_path / "w.pth")}

    def look(**said):
        start = open_start(Recipe(**given | said))
        return start.preprocess, start.assumed

    return look


def test_only_what_is_not_said_is_assumed(foreign):
    _, (line,) = foreign()
    assert line.startswith(
        "preprocessing assumed: mean 0.485 0.456 0.406, std 0.229 0.224 0.225, 32 x 32, bil"
    )
    preprocess, (line,) = foreign(input_size=(24, 40), mean=(0.5, 0.5, 0.5))
    assert preprocess.input_size == (3, 24, 40)
    assert line == (
        "preprocessing assumed: std 0.229 0.224 0.225, bilinear; if it was trained with another: --std R G B"
        " --interpolation FILTER"
    )
    preprocess, (line,) = foreign(img_size=16, std=(0.2, 0.2, 0.2))
    assert preprocess.input_size == (3, 16, 16) and preprocess.std == (0.2, 0.2, 0.2)
    assert "assumed: mean 0.485 0.456 0.406, bilinear;" in line


def test_nothing_is_assumed_where_all_is_said(foreign):
    said = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "box", "input_size": (24, 24)}
    assert foreign(**said)[1] == []


def test_nothing_is_assumed_of_fresh_weights():
    start = open_start(Recipe(student="resnet20", input_size=(16, 24)))
    assert start.preprocess.input_size == (3, 16, 24) and start.assumed == [] and start.checkpoint is None


def test_two_sizes_are_refused(foreign):
    with pytest.raises(UsageError, match="two sizes"):
        foreign(img_size=16, input_size=(16, 16))
