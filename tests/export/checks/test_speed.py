"""export.checks.speed: which of two files is faster, and what it refuses."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.checks import speed
from runtime.errors import UsageError
from runtime.records import Speed

pytestmark = pytest.mark.filterwarnings("ignore:.*carries no:UserWarning")


def convolutions(count, size="3, 32, 32"):
    """A file of `count` convolutions one after the other."""
    body = (
        "a0 = Conv (images, first)  "
        + "  ".join(f"a{i + 1} = Conv <pads = [1,1,1,1]> (a{i}, w)" for i in range(count))
        + f"  p = GlobalAveragePool (a{count})"
    )
    made = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 19]> g (float[batch, {size}] images) => '
        f"(float[batch, k] logits) {{ {body}  logits = Flatten (p) }}"
    )
    for name, shape in (("first", (16, 3, 1, 1)), ("w", (16, 16, 3, 3))):
        made.graph.initializer.append(numpy_helper.from_array(np.full(shape, 0.01, np.float32), name))
    return made.SerializeToString()


def test_ten_times_the_work_takes_longer_in_either_order(tmp_path):
    few, many = convolutions(2), convolutions(20)
    (tmp_path / "many.onnx").write_bytes(many)
    found = speed.measure(few, many, rounds=41, threads=1)  # the interval leaves out 13 disturbed pairs
    assert 2 < found.low <= found.ratio <= found.high
    assert (found.pairs, found.batch, found.threads, found.engine) == (41, 1, 1, "onnxruntime")
    assert speed.measure(tmp_path / "many.onnx", few, batch=2, rounds=7, threads=1).ratio < 0.5


def test_the_ratio_is_a_median_so_one_slow_call_does_not_count(monkeypatch):
    monkeypatch.setattr(speed, "_interleaved", lambda *_: ([1.0, 1.0, 50.0], [2.0, 2.0, 0.1]))
    found = speed.measure(convolutions(1), convolutions(1))
    assert (found.ratio, found.low, found.high) == (2, None, None)


def test_what_the_machine_did_meanwhile_is_kept(monkeypatch):
    monkeypatch.setattr(speed, "_interleaved", lambda *_: ([1.0] * 30, [0.5] * 24 + [2.0] * 6))
    found = speed.measure(convolutions(1), convolutions(1))
    assert any("90th percentile is 4.0 times the median" in each for each in found.warnings)
    assert found.pays is None


@pytest.mark.parametrize(
    ("recorded", "pays"),
    [
        ({"ratio": 0.5, "low": 0.4, "high": 0.9, "warnings": []}, True),
        ({"ratio": 1.5, "low": 1.1, "high": 2.0, "warnings": []}, False),
        ({"ratio": 0.9, "low": 0.7, "high": 1.1, "warnings": []}, None),
        ({"ratio": 0.1, "low": 0.1, "high": 0.2, "warnings": ["busy"]}, None),
        ({"ratio": 1.3}, False),
        ({}, None),
    ],
)
def test_a_file_pays_only_where_its_interval_and_the_machine_say_so(recorded, pays):
    assert Speed(**recorded).pays is pays


class Silent:
    def logits(self, images):
        return images


def test_no_round_begins_after_the_time_is_up():
    assert [
        len(each) for each in speed._interleaved((Silent(), Silent()), np.zeros(1), rounds=1000, seconds=0.0)
    ] == [6, 6]


def test_a_file_of_open_size_or_a_batch_of_nothing_is_an_error():
    with pytest.raises(UsageError, match="Expected C, H, W fixed"):
        speed.measure(convolutions(1, "3, h, w"), convolutions(1), rounds=1)
    with pytest.raises(UsageError, match="batch 0, rounds 1: expected 1 or more"):
        speed.measure(b"", b"", batch=0, rounds=1)
