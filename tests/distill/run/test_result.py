"""The last lines of a run: what was found, what was written, what comes next."""

import pytest
import torch

from distill.run.result import RoleResult, RunResult, TeacherResult
from distill.teacher import Origin


@pytest.fixture
def role(tmp_path):
    """role(top1, right=None, balanced=None) -> the best epoch of a training."""

    def make(top1, right=None, balanced=None):
        return RoleResult(
            checkpoint=str(tmp_path / "best.pth"),
            top1_percent=top1,
            epoch=3,
            loss_nats=0.5,
            images=8,
            teacher_agreement_percent=None,
            right=right,
            balanced_percent=balanced,
        )

    return make


@pytest.fixture
def taught():
    return TeacherResult(Origin("resnet56", "t.pth"), 90.0)


def lines(folder, best, **more):
    return RunResult(run=str(folder), student="resnet20", best=best, **more).summary().splitlines()


def test_the_last_lines_name_what_is_there_and_the_next_command(role, tmp_path):
    for name in ("best.pth", "report.html", "events.out.tfevents.1.host", "other.txt"):
        (tmp_path / name).touch()
    (tmp_path / "control").mkdir()
    *_, files, following = lines(tmp_path, role(50.0))
    assert files == f"files in {tmp_path}: best.pth, report.html, events.out.tfevents.1.host, control/"
    assert following == f"next: distill export onnx --int8 {tmp_path}/best.pth"


def test_the_next_command_can_be_copied(role, tmp_path):
    best = RoleResult("my runs/a/best.pth", 50.0, 1, 0.1, 8, None)
    assert lines(tmp_path, best)[-1] == "next: distill export onnx --int8 'my runs/a/best.pth'"


def test_with_a_control_the_interval_of_what_the_teacher_added_is_said(role, taught, tmp_path):
    right = torch.tensor([True] * 6 + [False] * 2)
    other = torch.tensor([True] * 5 + [False] * 3)
    said = "\n".join(lines(tmp_path, role(75.0, right), teacher=taught, control=role(62.5, other)))
    assert "12.50 points more accurate with the teacher" in said and "95 % interval" in said
    assert "cannot tell whether the teacher helps" in said and "not measured" not in said


def test_without_a_control_the_flag_that_measures_it_is_named(role, taught, tmp_path):
    assert "what the teacher added was not measured: --control trains the same student without it" in lines(
        tmp_path, role(75.0), teacher=taught
    )
    assert "not measured" not in "\n".join(lines(tmp_path, role(75.0)))


@pytest.mark.parametrize(
    ("top1", "balanced", "is_said"),
    [
        (25.0, 25.0, True),  # as good as one word
        (37.5, 37.5, False),
        (20.0, None, True),  # a run of an older version
        (24.0, 60.0, False),  # the small classes are right: not a constant answer
    ],
)
def test_what_is_no_better_than_one_word_is_said_to_be(role, tmp_path, top1, balanced, is_said):
    said = "\n".join(
        lines(tmp_path, role(top1, None, balanced), commonest_percent=25.0, constant_balanced_percent=25.0)
    )
    assert ("not better than always naming the commonest class (25.00 %)" in said) == is_said
