"""distill.run.report.collect: what a run folder says, also when its files say something strange."""

import json

import pytest

from distill.run.report import collect
from runtime.errors import ArtifactError, UsageError

HUGE = '{"best": {"top1_percent": -1NONE}, "gain_points": 1NONE}'.replace("NONE", "0" * 400)


def test_the_epochs_are_those_of_metrics_jsonl_without_other_lines(finished):
    run = collect.read_run(finished)
    assert [epoch.epoch for epoch in run.history] == [1, 2, 3] == [epoch.epoch for epoch in run.control]
    assert run.history[1] == collect.Epoch(2, 42.0, 0.5, 0.75)
    assert run.number("best", "top1_percent") == 43.0 and run.number("control", "top1_percent") is None
    assert run.name == "run" and run.class_names == ["blue", "green", "red"]


@pytest.mark.parametrize(
    "line",
    [
        *(
            '{"epoch": "1"}',
            "[1]",
            "null",
            "{",
            '{"epoch": NaN}',
            '{"epoch": true}',
            "[" * 100_000,
            "\x00\xff",
        ),
        '{"epoch": 1' + "0" * 400 + "}",
    ],
)
def test_a_line_that_is_not_an_epoch_is_left_out(line):
    found = collect.history(f'{line}\n{{"epoch": 2, "val_top1_percent": "x", "val_loss_nats": Infinity}}\n')
    assert found == [collect.Epoch(2, None, None, None)]


@pytest.mark.parametrize(
    "content", ["[]", "3", "{", '{"best": 5, "gain_points": [], "erf": {"a": 1}}', "", HUGE]
)
def test_a_strange_result_counts_as_none(finished, content):
    (finished / "result.json").write_text(content)
    run = collect.read_run(finished)
    assert run.number("best", "top1_percent") is None and run.number("gain_points") is None


def test_receptive_fields_come_with_their_areas_in_order(finished):
    (finished / "erf").mkdir()
    for name in ("student", "erf", "teacher"):
        (finished / "erf" / f"{name}.png").write_bytes(b"\x89PNG " + name.encode())
    (finished / "erf" / "a.png").write_bytes(b"<script>")
    areas = {"name": "student", "thresholds": [0.2, 0.99], "reference": {"area_ratios": [0.125, None]}}
    (finished / "result.json").write_text(json.dumps({"erf": [areas, 5]}))
    fields = collect.read_run(finished).fields
    assert [(field.label, field.png) for field in fields] == [
        ("teacher", b"\x89PNG teacher"),
        ("student", b"\x89PNG student"),
    ]
    assert fields[1].areas == [("20 %", "12.5 %"), ("99 %", "more than was tried")]


def test_what_is_not_a_run_is_refused_in_one_line(finished, tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        collect.read_run(tmp_path / "none")
    with pytest.raises(UsageError, match="has no best"):
        collect.read_run(tmp_path)
    (finished / "best.pth").write_bytes(b"junk")
    with pytest.raises(ArtifactError):
        collect.read_run(finished)
