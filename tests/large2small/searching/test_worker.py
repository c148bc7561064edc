"""A candidate with fresh weights as an ONNX file, which needs no accuracy."""

from tiny_training import TINY, write_noise

import runtime
from large2small.searching import worker


def test_fresh_weights_become_an_int8_file_that_runs(tmp_path, monkeypatch):
    """As fp32 they do in the whole search (tests/large2small/commands/test_search.py)."""
    monkeypatch.chdir(tmp_path)
    write_noise(tmp_path / "d", 16, 8)
    target = tmp_path / "candidates" / "a.onnx"
    target.parent.mkdir()
    worker.untrained(target, True, ["--data", "npz:d", "--student", "resnet20", "--teacher", "none", *TINY])
    with runtime.load(target) as predictor:
        assert predictor.metadata.precision == "int8"
        assert len(predictor.metadata.class_names) == 4
        assert predictor.metadata.preprocess.input_size == (3, 16, 16)
    files = sorted(file.name for file in tmp_path.rglob("*") if file.is_file())
    assert files == ["a.onnx", "train.npz", "val.npz"]  # and nothing of the training that was tried
