"""Which networks words and files mean."""

import pytest

from large2small.searching.candidates import Candidate, candidates, lines
from runtime import UsageError


def names(*words, size=0):
    return [each.name for each in candidates(lines(words), size)]


def test_alternatives_make_a_candidate_for_each_combination():
    assert names("resnet20 width=0.5|1 img_size=32|64") == [
        "resnet20 width=0.5 @32",
        "resnet20 width=0.5 @64",
        "resnet20 width=1 @32",
        "resnet20 width=1 @64",
    ]


def test_a_size_comes_from_the_line_then_the_flag_then_the_network():
    assert names("resnet20", "resnet18", size=0) == ["resnet20 @32", "resnet18 @224"]
    assert names("resnet20 img_size=16", "resnet18", size=96) == ["resnet20 @16", "resnet18 @96"]


def test_a_pattern_means_all_that_match_and_ours_this_projects_small_ones():
    assert names("resnet26[dt]", "resnet20", size=8) == ["resnet26d @8", "resnet26t @8", "resnet20 @8"]
    assert names("ours") == ["resnet20 @32", "resnet32 @32", "resnet44 @32", "resnet56 @32"]


def test_a_file_has_a_candidate_a_line_and_comments(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("# narrow\nresnet20 width=0.5  # half\n\nresnet32 dims=[1,2]|[3,4]\n")
    assert names(str(file), "resnet20", size=8) == [
        "resnet20 width=0.5 @8",
        "resnet32 dims=[1,2] @8",
        "resnet32 dims=[3,4] @8",
        "resnet20 @8",
    ]


def test_what_is_said_twice_is_one_candidate():
    assert names("resnet20", "resnet2[0]", "ours")[:2] == ["resnet20 @32", "resnet32 @32"]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("nosuchnet_*", "no network matches nosuchnet_"),
        ("resnet2O", "no architecture called 'resnet2O'; did you mean"),
        ("resnet20 width", "width: expected KEY=VALUE"),
        ("resnet20 width=1|", "expected KEY=VALUE"),
        ("resnet20 width=1 width=2", "each key once"),
        ("resnet20 img_size=0", "a side in pixels"),
        ("resnet20 img_size=5000", "a side in pixels"),
        ("resnet18.a1_in1k", "fresh weights"),
        ("hf-hub:timm/resnet18", "fresh weights"),
        ("local-dir:x", "fresh weights"),
        ("", "expected a network's name"),
    ],
)
def test_what_is_not_a_candidate_is_refused_in_one_line(word, said):
    with pytest.raises(UsageError, match=said) as caught:
        candidates(lines([word]), 0)
    assert "\n" not in str(caught.value)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(UsageError, match="nothing in it"):
        lines([str(tmp_path / "empty.txt")])


def test_folders_are_plain_short_and_never_the_same():
    some = [
        Candidate("resnet20", (), 32),
        Candidate("resnet20", ("width=0.5",), 32),
        Candidate("a", ("dims=[1,2]",), 32),
        Candidate("a", ("dims=[1_2]",), 32),
        Candidate("a", ("x=1", "y=2"), 32),
        Candidate("a", ("x=1+y=2",), 32),
        Candidate("a", ("x=../../b",), 32),
        Candidate("a", (f"x={'9' * 300}",), 32),
    ]
    folders = [each.folder for each in some]
    assert folders[:2] == ["resnet20+32px", "resnet20+width=0.5+32px"]
    assert len(set(folders)) == len(some)
    assert all("/" not in each and "[" not in each and len(each) < 100 for each in folders)
