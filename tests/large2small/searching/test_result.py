"""What is said of the candidates, from values worked out by hand."""

import pytest

from large2small.searching import result
from large2small.searching.candidates import Candidate
from large2small.searching.journal import Timed, Trained
from large2small.searching.result import Found, Point, shown
from runtime.cli.terminal import console


def point(name, outcome, trained=None, ms=1.0):
    return Point(Candidate(name, (), 32), outcome, Timed(1.0, ms, 0.9, 1.1) if ms else None, trained)


def test_the_interval_of_an_accuracy_is_wilsons():
    """8 of 10: (0.8 + 0.1921 +- 1.96 sqrt(0.016 + 0.0096)) / 1.3841, as in Wilson's paper."""
    low, high = point("a", "winner", Trained(1.0, 80.0, 10, 3)).interval
    assert (low, high) == pytest.approx((49.02, 94.33), abs=0.01)
    assert point("a", "over 5 ms").interval is None


def test_every_candidate_is_a_row_with_what_is_known_of_it(tmp_path):
    points = [
        point("best", "winner", Trained(1.0, 80.0, 10, 3)),
        point("slow", "over 5 ms", ms=7.25),
        point("bad", "failed: cannot be built\x1b[31m", ms=None),
    ]
    found = Found(tmp_path, 5.0, points, None, "", 12.0, [], [{"kind": "load", "text": "it was busy"}], "d")
    printer = console()
    with printer.capture() as caught:
        printer.print(shown(found))
    text = caught.get()
    for said in ("best @32", "80.00", "49.02 to 94.33", "7.25", "over 5 ms", "warning: it was busy"):
        assert said in " ".join(text.split())
    assert "\x1b[31m" not in text
    plain = found.to_dict()["search"]
    assert [each["outcome"] for each in plain["candidates"]][1] == "over 5 ms"
    assert plain["candidates"][2]["latency_p50_ms"] is None and plain["winner"] is None


def test_a_page_says_that_accuracies_after_other_numbers_of_epochs_do_not_compare():
    alike = [point(name, "dropped", Trained(1.0, 50.0, 10, 3)) for name in "ab"]
    assert result._unlike([*alike, point("c", "over 5 ms")]) == []
    (warning,) = result._unlike([*alike, point("d", "winner", Trained(1.0, 80.0, 10, 9))])
    assert "(2 after 3 epochs, 1 after 9 epochs)" in warning["text"]
