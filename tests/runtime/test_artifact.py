"""The metadata inside an artifact: written and read back, unknown, damaged, of another schema, with other
classes. Its seal.
"""

import hashlib
import json
import math
import random
import re

import numpy as np
import onnx
import pytest

import runtime
from runtime import ArtifactError, Metadata, Preprocess
from runtime.artifact import (
    BLOCK,
    KEY,
    SCHEMA,
    SEAL_KEY,
    check_file,
    check_seal,
    first_class_difference,
    read_map,
    require_same_classes,
    seal,
)
from runtime.records import Agreement, Quantization, Verification

FULL = Metadata(
    model="convnext_tiny",
    role="student",
    preprocess=Preprocess((3, 160, 224), "lanczos", 0.9, "border"),
    class_names=["tench", "Ärmel", "日本"],
    precision="int8",
    parameters=28_589_128,
    macs=4_456_000_000,
    training={"top1": 82.5, "epochs": 300},
    quantization=Quantization(method="percentile", images=[["a.jpg", "ab12"]], more={"later": 1}),
    verification=Verification(parity=Agreement(max_abs=1e-5)),
    lineage={"checkpoint": {"sha256": "00ff"}},
    versions={"torch": "2.11.0"},
)


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


@pytest.mark.parametrize("schema", [SCHEMA + 1, 0, "1", None])
def test_another_schema_is_refused_with_both_numbers(schema):
    with pytest.raises(
        ArtifactError, match=rf"a\.onnx: metadata schema {schema}; this runtime reads {SCHEMA}"
    ):
        read_map({KEY: json.dumps({"schema": schema})}, "a.onnx")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", "{}"])
def test_damaged_metadata_is_refused_by_name(text):
    with pytest.raises(ArtifactError, match=r"a\.onnx: its large2small metadata is damaged"):
        read_map({KEY: text}, "a.onnx")


@pytest.mark.parametrize(
    "change",
    [
        *({"exif": value} for value in ("rotate", 6, None, [])),
        *({"mean": value} for value in (5, None, "abc", ["a", "b", "c"], [0, 0], [0, 0, math.inf], {"r": 0})),
        *({"std": value} for value in (0, [1, 1, 0], [1, 1, "1"])),
        *({"crop_pct": value} for value in ("1", None, 0, [1], 1e308, 1e-310, 10**400, 150, 0.001)),
        *({"mean": [0, 0, value]} for value in (1e308, -1e308, 1001, 10**400)),
        *({"std": [value, 1, 1]} for value in (1e308, 1e-310, 1e-7)),
        *({"input_size": [3, *value]} for value in ((16385, 8), (8, 10**12), (10**400, 8))),
        {"input_size": [3, 20, 40], "crop_pct": 21},
        *({"input_size": value} for value in (224, [3, "8", 8], [3, 8.5, 8], [3, 8])),
        {"gamma": 2.2},
    ],
    ids=lambda change: str(change)[:50],
)
def test_preprocessing_that_this_version_cannot_do_is_refused_by_name(change):
    values = json.loads(Metadata(preprocess=Preprocess()).to_map()[KEY])
    values["preprocess"] |= change
    reason = "preprocessing cannot be used here|large2small metadata is damaged .*too large"
    with pytest.raises(ArtifactError, match=rf"a\.onnx: its ({reason})"):
        read_map({KEY: json.dumps(values)}, "a.onnx")


@pytest.mark.parametrize("damaged", ["center", 7, [1]])
def test_preprocessing_of_another_type_is_damaged(damaged):
    values = json.loads(Metadata().to_map()[KEY]) | {"preprocess": damaged}
    with pytest.raises(ArtifactError, match=r"a\.onnx: its preprocessing is damaged"):
        read_map({KEY: json.dumps(values)}, "a.onnx")


def test_a_field_this_version_does_not_know_is_left_out():
    values = json.loads(FULL.to_map()[KEY]) | {"added_later": 1}
    assert read_map({KEY: json.dumps(values)}, "a.onnx") == FULL


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        (["a", "b"], ["a", "b"], None),
        (["a", "b", "c"], ["a", "c", "b"], "class 1 is 'b' here and 'c' there"),
        (["a", "b"], ["a", "b", "c"], "2 classes here and 3 there"),
        (["1", "10", "2"], ["1", "2", "10"], "class 1 is '10' here and '2' there"),
    ],
)
def test_the_first_class_that_differs_is_named(ours, theirs, words):
    assert first_class_difference(ours, theirs) == words
    if words is None:
        require_same_classes(ours, "m", theirs, "d")
    else:
        with pytest.raises(ArtifactError, match=rf"{words} \(m\.onnx against photos\)"):
            require_same_classes(ours, "m.onnx", theirs, "photos")


def test_an_unknown_class_list_is_compared_with_nothing():
    require_same_classes(None, "m.onnx", ["a"], "photos")


@pytest.fixture(params=["onnx", "json", "class called like the seal"])
def content(request, tiny, tmp_path):
    """What is to be sealed, of either kind."""
    if request.param == "json":
        return json.dumps(json.loads(FULL.to_map()[KEY]), indent=1).encode()
    names = ["blue", "green", "red"]
    if request.param != "onnx":  # the same words, and what looks like a whole seal, inside the metadata
        names[1] = f'{SEAL_KEY}": "{"0" * 64}", "{SEAL_KEY}ed": "sha256"'
    meta = tiny.metadata(class_names=names)
    return tiny.write(tmp_path / "plain.onnx", meta=meta, sealed=False).read_bytes()


def is_found(content):
    """Does the seal alone say that these bytes are not what was sealed?"""
    try:
        return check_seal(content, "a.onnx") is not True
    except ArtifactError:
        return True


def test_the_seal_is_the_hash_of_the_whole_with_its_own_digits_as_zeros(content):
    sealed = seal(content)
    digits = re.search(rb"[0-9a-f]{64}", sealed).group()
    assert sealed.index(digits) < 40  # at the very start, so before any name in the file that looks like one
    blanked = sealed[: sealed.index(digits)] + b"0" * 64 + sealed[sealed.index(digits) + 64 :]
    assert hashlib.sha256(blanked).hexdigest().encode() == digits
    assert check_seal(sealed, "a.onnx") is True


def test_every_changed_byte_is_found(content):
    sealed = seal(content)
    chance = random.Random(0)
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1 << chance.randrange(8)
        with pytest.raises(ArtifactError, match=r"a\.onnx: changed since it was written"):
            check_seal(bytes(changed), "a.onnx")


def test_every_cut_and_everything_added_is_found(content):
    sealed = seal(content)
    start = re.search(
        rb"[0-9a-f]{64}", sealed
    ).start()  # a shorter piece is neither valid ONNX nor valid JSON
    for length in range(start, len(sealed)):
        assert is_found(sealed[:length]) and is_found(sealed[-length:])
    for more in (b"\0", b"\n", b" ", sealed, b"\x72\x06\x0a\x01a\x12\x01b"):
        assert is_found(sealed + more) and is_found(more + sealed)
    middle = len(sealed) // 2
    assert is_found(sealed[:middle] + sealed[middle + 1 :]) and is_found(
        sealed[:middle] + b"x" + sealed[middle:]
    )


def test_what_is_sealed_is_still_what_it_was(tiny, tmp_path, content):
    sealed = seal(content)
    if content.startswith(b"{"):
        values = json.loads(sealed)
        assert {key: values[key] for key in json.loads(content)} == json.loads(content)
        assert set(values) - set(json.loads(content)) == {SEAL_KEY, f"{SEAL_KEY}ed"}
        return
    onnx.checker.check_model(sealed)
    before, after = onnx.load_from_string(content), onnx.load_from_string(sealed)
    kept = [entry for entry in after.metadata_props if not entry.key.startswith(SEAL_KEY)]
    assert kept == list(before.metadata_props) and after.graph == before.graph
    (tmp_path / "sealed.onnx").write_bytes(sealed)
    (tmp_path / "plain.onnx").write_bytes(content)
    image = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)
    with (
        runtime.load(tmp_path / "plain.onnx", verify=False) as plain,
        runtime.load(tmp_path / "sealed.onnx") as other,
    ):
        assert np.array_equal(plain.logits(image), other.logits(image)) and plain.metadata == other.metadata


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"a": 1}', b"\x08\x09"], ids=["empty", "empty object", "object", "onnx"]
)
def test_a_file_without_a_seal_has_none_and_is_not_an_error(content, tmp_path):
    assert check_seal(content, "a") is False
    (tmp_path / "a").write_bytes(content)
    assert check_file(tmp_path / "a") is False


@pytest.mark.parametrize("kind", ["onnx", "json"])
def test_a_file_that_lost_its_whole_seal_is_found(tiny, tmp_path, kind):
    """Both entries, so that it looks as if it never had one; its metadata says that it did."""

    def of_schema(schema):
        entries = json.loads(tiny.metadata().to_map()[KEY]) | {"schema": schema}
        if kind == "json":
            return json.dumps({KEY: entries}).encode()
        model = onnx.load(tiny.write(tmp_path / "plain.onnx"))
        onnx.helper.set_model_props(model, {"theirs": "x", KEY: json.dumps(entries)})
        return model.SerializeToString()

    with pytest.raises(ArtifactError, match="its SHA-256 seal does not hold"):
        check_seal(of_schema(2), "a.onnx")
    assert check_seal(of_schema(1), "a.onnx") is False  # not all of them had one
    assert check_seal(of_schema("two"), "a.onnx") is False  # what reads the metadata says what is wrong
    sealed = bytearray(seal(of_schema(2)))
    for key in (SEAL_KEY.encode(), f"{SEAL_KEY}ed".encode()):
        place = sealed.index(key)
        sealed[place + 3] ^= 1
    with pytest.raises(ArtifactError, match="its SHA-256 seal does not hold"):
        check_seal(bytes(sealed), "a.onnx")


def test_a_file_that_another_tool_wrote_anew_is_found(tiny, tmp_path):
    sealed = tiny.write(tmp_path / "plain.onnx", meta=tiny.metadata()).read_bytes()
    model = onnx.load_from_string(sealed)
    beside = json.dumps(json.loads(seal(b'{"a": 1}')), indent=2)
    for again in (
        model.SerializeToString(),
        beside.encode(),
    ):  # all as before, in another order or with other spaces
        with pytest.raises(ArtifactError, match="changed since"):
            check_seal(again, "a.onnx")
    del model.metadata_props[0]  # nor does it help to drop one of the two entries
    assert is_found(model.SerializeToString())


@pytest.mark.parametrize("place", [-90, -1, 0, BLOCK - 1, BLOCK, 2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 12344])
def test_a_changed_byte_in_any_block_of_a_large_file_is_found(tmp_path, place):
    """Blocks are counted from where the digits end."""
    sealed = seal(random.Random(0).randbytes(2 * BLOCK + 12345))
    place = max(0, re.search(rb"[0-9a-f]{64}", sealed).end() + place)
    path = tmp_path / "large.onnx"
    path.write_bytes(sealed)
    assert check_file(path) is True
    changed = bytearray(sealed)
    changed[place] ^= 1
    path.write_bytes(changed)
    with pytest.raises(ArtifactError, match=r"large\.onnx: changed since .* distill export onnx CKPT"):
        check_file(path)
