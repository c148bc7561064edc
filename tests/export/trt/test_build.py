"""The rules before and around a build that need no TensorRT; builds are in test_trt_command.py."""

import re

import pytest

from export.trt import build
from export.trt.build import Profile, Settings
from runtime.errors import ArtifactError, UsageError


@pytest.mark.parametrize("sizes", [(0, 1, 2), (2, 1, 4), (1, 8, 4), (-1, -1, -1)])
def test_profile_the_builder_would_refuse_late_is_refused_first(sizes):
    with pytest.raises(UsageError, match=re.escape(",".join(map(str, sizes)))):
        build.check_profiles([Profile(1, 1, 1), Profile(*sizes)])


def test_no_profile_is_refused():
    with pytest.raises(UsageError, match="no batch size"):
        build.check_profiles([])


@pytest.mark.parametrize(
    ("profiles", "dynamic"), [([(4, 4, 4)], False), ([(1, 4, 8)], True), ([(1, 1, 1), (8, 8, 8)], True)]
)
def test_static_is_one_profile_of_one_size(profiles, dynamic):
    assert Settings(profiles=tuple(Profile(*sizes) for sizes in profiles)).dynamic is dynamic


@pytest.mark.parametrize(
    ("version", "highest"),
    [
        ("10.3.0.30", 20),
        ("10.7.0", 20),
        ("10.9.0.34", 22),
        ("10.13.3.9", 24),
        ("10.16.1.11", 24),
        ("11.0.0.114", 25),
        ("11.4.0", 25),
    ],
)
def test_opset_that_this_parser_does_not_read(version, highest):
    build.check_opset(highest, version)
    with pytest.raises(
        ArtifactError, match=f"opset {highest + 1}; TensorRT {re.escape(version)} reads up to {highest}"
    ):
        build.check_opset(highest + 1, version)


def test_what_helps_is_said_where_it_is_known():
    reason = "Error Code 10: Could not find any implementation for node conv1 + PWN(relu)."
    assert build._advice(reason).endswith("Leave that layer float: --exclude 'conv1'")
    assert build._advice("CUDA error: out of memory").endswith(
        "Give a smaller --workspace, --opt-level or batch"
    )
    assert build._advice("something else") == "something else"
