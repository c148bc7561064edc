"""export.checks.speed: which of two files is faster, and what it refuses."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.checks import speed
from runtime.errors import UsageError

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
    assert speed.ratio(few, many, rounds=5, threads=1) > 2
    assert speed.ratio(tmp_path / "many.onnx", few, batch=2, rounds=5, threads=1) < 0.5


def test_the_ratio_is_of_medians_so_one_slow_call_does_not_count(monkeypatch):
    monkeypatch.setattr(speed, "_interleaved", lambda *_: ([1.0, 1.0, 50.0], [2.0, 2.0, 0.1]))
    assert speed.ratio(convolutions(1), convolutions(1)) == 2


class Silent:
    def logits(self, images):
        return images


def test_no_round_begins_after_the_time_is_up():
    assert [
        len(each) for each in speed._interleaved((Silent(), Silent()), np.zeros(1), rounds=1000, seconds=0.0)
    ] == [3, 3]


def test_a_file_of_open_size_or_a_batch_of_nothing_is_an_error():
    with pytest.raises(UsageError, match="Expected C, H, W fixed"):
        speed.ratio(convolutions(1, "3, h, w"), convolutions(1), rounds=1)
    with pytest.raises(UsageError, match="batch 0, rounds 1: expected 1 or more"):
        speed.ratio(b"", b"", batch=0, rounds=1)
