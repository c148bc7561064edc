"""Metadata in which a field holds something else: one line with the field's path, wherever it is read."""

import copy
import json

import onnx
import pytest
import tiny_onnx

import runtime
from runtime.artifact import KEY, read_map
from runtime.cli.front_door import main
from runtime.errors import ArtifactError

GOOD = json.loads(tiny_onnx.metadata().to_map()[KEY])
WRONG = {
    **{"model": 5, "role": ["student"], "precision": True, "class_names": "abc", "parameters": 1.5},
    **{"macs": "many", "training": [1], "lineage": "x", "versions": {"torch": 2}, "preprocess": True},
    **{"quantization": {"images": [1]}, "verification": {"lowered": {"drop": "x"}}, "engine": {"flags": 1}},
    **{"training.metrics": 5, "class_names.1": None, "preprocess.std": [[1], 1, 1]},
    **{"preprocess.input_size": [3, True, 8], "lineage.data": [], "lineage.data.evaluation": 1},
    **{"lineage.data.val_spec": {}, "lineage.data.evaluation.judged_on": {"images": 1e3, "seed": 0}},
    **{"lineage.checkpoint": "best.pth", "lineage.teacher.sha256": 7, "schema": True},
}
"""Field -> what it holds that it may not."""


def changed(field, value):
    """The metadata with `value` put in at the dotted `field`."""
    values = copy.deepcopy(GOOD)
    *above, last = field.split(".")
    place = values
    for name in above:
        place = place.setdefault(name, {}) if isinstance(place, dict) else place[int(name)]
    if isinstance(place, list):
        place[int(last)] = value
    else:
        place[last] = value
    return json.dumps(values)


@pytest.mark.parametrize("field", WRONG)
def test_the_field_is_named(field):
    with pytest.raises(ArtifactError) as found:
        read_map({KEY: changed(field, WRONG[field])}, "a.onnx")
    message = str(found.value)
    assert message.startswith("a.onnx: ") and "\n" not in message
    assert field.split(".")[-1].replace("1", "class_names") in message or field == "preprocess"


def test_the_values_of_a_good_file_stay():
    meta = read_map({KEY: json.dumps(GOOD)}, "a.onnx")
    assert json.loads(meta.to_map()[KEY]) == GOOD


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[1]", "5", '{"schema": [2]}', '{"schema": 1e999}', "\ud800"]
)
def test_what_is_no_metadata_at_all_is_refused(text):
    with pytest.raises(ArtifactError, match=r"a\.onnx: "):
        read_map({KEY: text}, "a.onnx")


@pytest.fixture
def write(tmp_path):
    """An .onnx file with the given metadata entry, as bytes."""

    def make(entry: bytes):
        path = tiny_onnx.write(tmp_path / "a.onnx")
        model = onnx.load(path)
        onnx.helper.set_model_props(model, {KEY: "?" * len(entry)})
        path.write_bytes(model.SerializeToString().replace(b"?" * len(entry), entry))
        return path

    return make


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_bytes_that_are_no_text_are_refused_by_every_engine(write, backend):
    pytest.importorskip(backend)
    with pytest.raises(ArtifactError, match=r"a\.onnx: not an ONNX file"):
        runtime.load(write(b'{"schema": 2, "model": "\xff"}'), backend=backend, verify=False)


@pytest.mark.parametrize("field", ["class_names", "versions", "training", "lineage.data.val_spec"])
def test_inspect_says_it_too(write, field, capsys):
    path = write(changed(field, WRONG[field]).encode())
    assert main(["inspect", str(path)]) == 4
    error = capsys.readouterr().err
    assert error.startswith("error: ") and field in error and error.count("\n") == 1
