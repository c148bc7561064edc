"""Times as they are typed, and what is left of a budget."""

import math

import pytest

from large2small.searching.times import Clock, in_words, parse
from runtime import UsageError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5ms", 0.005), ("800us", 0.0008), ("2h", 7200), ("1h30m", 5400), ("1.5 h", 5400), ("45min", 2700)],
)
def test_a_time_has_a_unit(text, seconds):
    assert parse(text, "--budget", "2h") == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "5", "5 parsecs", "-1h", "0ms", "h", "1h30", "1e3s", "9" * 400 + "h", "nan s"]
)
def test_anything_else_is_refused_with_an_example(text):
    with pytest.raises(UsageError, match=r"--budget .*expected a time above 0 with its unit, such as 2h"):
        parse(text, "--budget", "2h")


def test_what_is_left_is_without_what_earlier_calls_took():
    now = [100.0]
    clock = Clock(3600, 600, lambda: now[0])
    assert clock.left() == 3000 and clock.words == "; 50 min left"
    now[0] += 2950
    assert clock.left() == 50 and clock.words == "; 50 s left"
    now[0] += 100
    assert clock.left() == 0
    assert Clock(None, 600).left() == math.inf and Clock(None).words == ""


def test_a_person_reads_hours_and_minutes():
    assert [in_words(each) for each in (0.4, 89, 90, 3599, 6720)] == [
        "0 s",
        "89 s",
        "2 min",
        "1 h 0 min",
        "1 h 52 min",
    ]
