"""export.stages.report: the sentences below the table of an export."""

import pytest

from export.stages import report
from runtime.records import Judged, Speed

QUIET = {"pairs": 30, "batch": 1, "threads": 2, "engine": "onnxruntime", "warnings": []}


def test_intervals_are_wilsons_of_the_counted_images():
    (line,) = report.answers("int8", Judged(images=250, candidate_top1=81 / 2.5, agreement=99.2))
    # Newcombe, Statistics in Medicine 17 (1998) 857, table I: 81 of 263 by the score method; here 81 of 250
    assert line == ("95 % intervals on 250 images: top-1 26.90 to 38.43 %, agreement 97.13 to 99.78 %")
    low, high = report.share_interval(100 * 81 / 263, 263)
    assert (low, high) == pytest.approx((25.53, 36.62), abs=0.005)
    assert report.answers("int8", Judged(images=None, agreement=50)) == []


def test_a_low_agreement_is_said_although_top1_held():
    held = Judged(images=4000, candidate_top1=60.0, drop=-0.3, agreement=54.7, max_drop=1.0)
    *_, line = report.answers("int8", held)
    assert "agreement is LOW although top-1 held" in line and "on 45.3 % of the images" in line
    assert len(report.answers("int8", Judged(images=4000, candidate_top1=60.0, agreement=90.0))) == 1


@pytest.mark.parametrize(("drop", "most"), [(50.0, 100.0), (2.0, 1.0), (0.5, None), (None, 1.0)])
def test_top1_is_not_said_to_hold_where_nothing_held_it(drop, most):
    """100 points turn the check off; the other drops are above the budget, or one of both is not known."""
    lost = Judged(images=400, candidate_top1=40.0, drop=drop, agreement=48.0, max_drop=most)
    *_, line = report.answers("int8", lost)
    assert line.startswith("agreement is LOW: int8 answers otherwise than fp32 on 52.0 % of the images. To")
    assert "held" not in line and "right on others" not in line


@pytest.mark.parametrize(
    ("speed", "said"),
    [
        (
            Speed(ratio=0.5, low=0.45, high=0.6, **QUIET),
            "int8 pays on ONNX Runtime here, 2 x as fast",
        ),
        (
            Speed(ratio=1.5, low=1.2, high=1.6, **QUIET),
            "int8 does NOT pay on ONNX Runtime here: it takes",
        ),
        (Speed(ratio=0.9, low=0.8, high=1.1, **QUIET), "cannot be told: it takes 0.90 x the time of fp32"),
        (
            Speed(ratio=0.2, low=0.1, high=0.3, **QUIET | {"warnings": ["a neighbor was busy"]}),
            "but a neighbor was busy. Measure for longer on a quiet machine: distill bench compare",
        ),
    ],
)
def test_the_sentence_about_speed_says_what_is_known_and_under_what_conditions(speed, said):
    (line,) = report.pace("int8", speed)
    assert said in line and "batch 1 in memory to logits, 2 threads, 30 pairs of alternating calls" in line
    assert f"95 % interval {speed.low:.2f} to {speed.high:.2f}" in line
