"""The schedule, from values worked out by hand."""

import pytest

from large2small.searching.halving import Round, best, rounds


@pytest.mark.parametrize(
    ("candidates", "epochs", "one_in", "expected"),
    [
        # 27 -> 9 -> 3 -> 1, and the winner trains 27: 27 / 3 / 3 / 3 = 1
        (27, 27, 3, [Round(27, 1, 9), Round(9, 3, 3), Round(3, 9, 1)]),
        # 12 / 3 = 4, 4 / 3 = 1.33 -> 2, 2 / 3 = 0.67 -> 1; 30 / 27 = 1.1, 30 / 9 = 3.3, 30 / 3 = 10
        (12, 30, 3, [Round(12, 1, 4), Round(4, 3, 2), Round(2, 10, 1)]),
        (8, 100, 2, [Round(8, 12, 4), Round(4, 25, 2), Round(2, 50, 1)]),
        # 4 / 9 and 4 / 3 are both 1 epoch: the second round would train the same again
        (9, 4, 3, [Round(9, 1, 1)]),
        (2, 1, 3, [Round(2, 1, 1)]),
        (5, 10, 8, [Round(5, 1, 1)]),
        (1, 10, 3, []),
    ],
)
def test_the_rounds_are_those_worked_out_by_hand(candidates, epochs, one_in, expected):
    assert rounds(candidates, epochs, one_in) == expected


@pytest.mark.parametrize("one_in", [2, 3, 4])
def test_every_round_goes_on_with_what_the_one_before_kept_and_one_is_left(one_in):
    for candidates in range(2, 60):
        found = rounds(candidates, 100, one_in)
        assert [each.entering for each in found] == [candidates, *(each.kept for each in found[:-1])]
        assert found[-1].kept == 1 and found[-1].epochs <= 50
        lengths = [each.epochs for each in found]
        assert lengths == sorted(set(lengths))


def test_the_most_accurate_stay_and_of_equals_the_faster():
    accuracies = {"a": 50.0, "b": 60.0, "c": 60.0, "d": 10.0}
    latencies = {"a": 1.0, "b": 2.0, "c": 1.5, "d": 0.1}
    assert best(accuracies, latencies, 3) == ["c", "b", "a"]
    assert best(accuracies, latencies, 9) == ["c", "b", "a", "d"]
