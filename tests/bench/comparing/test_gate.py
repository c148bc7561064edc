"""Limits, on figures made to order; the form that CI systems read."""

from xml.etree import ElementTree

import numpy as np
import pytest

from bench import stats
from bench.accuracy import Answers
from bench.comparing import gate
from bench.comparing.ratios import Ratio


def answers(classes, labels):
    classes, labels = np.array(classes), np.array(labels)
    return Answers(np.arange(len(labels)), labels, classes, classes == labels)


def calls(milliseconds, n=200, spread=0.02, seed=0):
    """Durations in ns of a quiet machine."""
    return milliseconds * 1e6 * np.exp(np.random.default_rng(seed).normal(0, spread, n))


def test_a_median_is_held_to_its_limit_and_tells_its_interval():
    fast, slow = gate.latency(calls(4.0), 5.0), gate.latency(calls(6.0), 5.0)
    assert fast.passed and not slow.passed
    low, high = stats.interval_of_median(calls(4.0))
    assert low < 4.0 < high and high - low < 0.1
    assert "at most 5 allowed, n=200" in slow.text and "95 % interval" in slow.text


def test_neighboring_calls_that_are_alike_do_not_narrow_the_interval():
    rng = np.random.default_rng(1)
    phases = np.repeat(np.exp(rng.normal(0, 0.1, 20)), 50)  # 20 phases of 50 calls each
    low, high = stats.interval_of_median(1e6 * phases * np.exp(rng.normal(0, 0.001, 1000)))
    assert high / low > 1.05


def test_flips_are_counted_in_pairs():
    labels = [0] * 10
    before, this = answers([0] * 8 + [1, 1], labels), answers([0] * 7 + [1, 0, 1], labels)
    found = gate.drop(this, before, 0.0)  # one goes wrong, one right
    assert found.passed and found.measured == 0 and "1 of 10 images become wrong, 1 right)" in found.text
    assert not gate.drop(answers([1] * 10, labels), before, 79.9).passed
    assert gate.drop(answers([1] * 10, labels), before, 80.0).passed
    same = gate.agreement(this, before, 81.0)
    assert same.measured == 80 and not same.passed and "2 of 10 images get another class" in same.text


@pytest.mark.parametrize(
    ("low", "high", "floor", "passed"),
    [
        (1.06, 1.10, None, False),
        (1.04, 1.20, None, True),  # perhaps 4 % only: nobody can tell
        (0.90, 0.95, None, True),
        (1.06, 1.10, 1.08, True),  # the one before differs from itself by more
        (1.09, 1.10, 0.95, False),
    ],
)
def test_slower_is_only_what_is_beyond_the_limit_for_sure(low, high, floor, passed):
    ratio = Ratio((low * high) ** 0.5, low, high)
    assert gate.slowdown(ratio, 5.0, floor and Ratio(floor, floor, floor)).passed is passed


def test_runs_of_other_days_are_compared_as_widely_as_both_allow():
    ratio = gate.ratio_of_runs(calls(11.0, seed=2), calls(10.0, seed=3))
    assert ratio.low < 1.1 < ratio.high and ratio.low > 1.05
    alike = gate.ratio_of_runs(calls(10.0, seed=2), calls(10.0, seed=3))
    assert alike.low < 1 < alike.high
    assert gate.ratio_of_runs(calls(10.0, n=3), calls(10.0)) is None


def test_junit_has_a_case_for_each_limit_and_a_failure_with_the_reason():
    checks = [gate.latency(calls(4.0), 5.0), gate.memory(300_000_000, 200e6)]
    text = gate.to_junit(gate.Verdict("a\x00<&>.onnx", checks), 1.5, ["onnxruntime 1"])
    suite = ElementTree.fromstring(text)[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("time")) == ("2", "1", "1.500")
    latency, memory = suite.findall("testcase")
    assert latency.find("failure") is None and latency.get("classname") == "a\\x00<&>.onnx"
    assert "peak resident memory 300.0 MB" in memory.find("failure").get("message")
    assert suite.find("system-out").text == "onnxruntime 1"
