"""The metadata inside an artifact: written and read back, unknown, damaged, of another schema, with other classes."""

import json

import pytest

from runtime import ArtifactError, Metadata, Preprocess
from runtime.artifact import KEY, SCHEMA, first_class_difference, read_map, require_same_classes

FULL = Metadata(
    model="convnext_tiny", role="student", preprocess=Preprocess((3, 160, 224), "lanczos", 0.9, "border"),
    class_names=["tench", "Ärmel", "日本"], precision="int8", parameters=28_589_128, macs=4_456_000_000,
    training={"top1": 82.5, "epochs": 300}, quantization={"method": "percentile", "images": {"a.jpg": "ab12"}},
    verification={"max_abs": 1e-5}, lineage={"checkpoint": "00ff"}, versions={"torch": "2.11.0"})


def test_metadata_survives_the_string_map():
    entries = FULL.to_map()
    assert list(entries) == [KEY]
    assert isinstance(entries[KEY], str)
    assert read_map(entries, "a.onnx") == FULL


def test_a_file_of_another_origin_has_unknown_fields_and_not_zeros():
    found = read_map({"producer": "someone"}, "a.onnx")
    assert found.unknown() == ["preprocess", "class_names"]
    assert (found.precision, found.parameters, found.macs, found.role) == ("unknown", None, None, None)


def test_what_is_known_is_not_listed_as_unknown():
    assert FULL.unknown() == []
    assert Metadata(class_names=["a", "b"]).unknown() == ["preprocess"]


@pytest.mark.parametrize("schema", [SCHEMA + 1, SCHEMA - 1, "1", None])
def test_another_schema_is_refused_with_both_numbers(schema):
    with pytest.raises(ArtifactError, match=rf"a\.onnx: metadata schema {schema}; this runtime reads {SCHEMA}"):
        read_map({KEY: json.dumps({"schema": schema})}, "a.onnx")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", "{}"])
def test_damaged_metadata_is_refused_by_name(text):
    with pytest.raises(ArtifactError, match=r"a\.onnx: its large2small metadata is damaged"):
        read_map({KEY: text}, "a.onnx")


def test_a_field_this_version_does_not_know_is_left_out():
    values = json.loads(FULL.to_map()[KEY]) | {"added_later": 1}
    assert read_map({KEY: json.dumps(values)}, "a.onnx") == FULL


@pytest.mark.parametrize(("ours", "theirs", "words"), [
    (["a", "b"], ["a", "b"], None),
    (["a", "b", "c"], ["a", "c", "b"], "class 1 is 'b' here and 'c' there"),
    (["a", "b"], ["a", "b", "c"], "2 classes here and 3 there"),
    (["1", "10", "2"], ["1", "2", "10"], "class 1 is '10' here and '2' there"),
])
def test_the_first_class_that_differs_is_named(ours, theirs, words):
    assert first_class_difference(ours, theirs) == words
    if words is None:
        require_same_classes(ours, "m", theirs, "d")
    else:
        with pytest.raises(ArtifactError, match=rf"{words} \(m\.onnx against photos\)"):
            require_same_classes(ours, "m.onnx", theirs, "photos")


def test_an_unknown_class_list_is_compared_with_nothing():
    require_same_classes(None, "m.onnx", ["a"], "photos")
