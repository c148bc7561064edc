"""Triton's model folder: a config that the published schema reads back, whole folders, older
versions kept.
"""

import os
from pathlib import Path

import pytest
import triton_schema
from google.protobuf import text_format

from export.triton import repository
from export.triton.repository import Model, Serving, Tensor, Word
from runtime import GateError, MissingError, UsageError
from runtime.files import sha256

DYNAMIC = [Tensor("image", "float32", (-1, 3, 224, 200))], [Tensor("logits", "float32", (-1, 10))]
FIXED = [Tensor("image", "float32", (4, 3, 224, 200))], [Tensor("logits", "float32", (4, 10))]


@pytest.fixture(scope="module")
def schema():
    return triton_schema


@pytest.fixture
def read(schema):
    """A function from the text of a config to the message."""
    return lambda text: text_format.Parse(text, schema.message())


def model(kind=".onnx", tensors=DYNAMIC, **changes):
    values = {
        "path": Path(f"student{kind}"),
        "inputs": tensors[0],
        "outputs": tensors[1],
        "labels": ["cat", "dog"],
    }
    return Model(**values | changes)


def serving(**changes):
    return Serving(**{"name": "student", "max_batch": 8, "device": "cpu"} | changes)


def test_the_table_of_facts_is_the_published_schema(schema):
    published = pytest.importorskip("tritonclient.grpc.model_config_pb2").ModelConfig.DESCRIPTOR.file
    messages = published.message_types_by_name
    for name, fields in schema.FIELDS.items():
        outer, _, inner = name.rpartition(".")
        found = messages[outer].nested_types_by_name[inner] if outer else messages[name]
        for field, number, kind in fields:
            theirs = found.fields_by_name[field]
            plain = (
                kind[0]
                if isinstance(kind, list)
                else (
                    kind if isinstance(kind, int) else schema.ENUM if kind.startswith("=") else schema.MESSAGE
                )
            )
            assert (theirs.number, theirs.type) == (number, plain), (name, field)
            repeated = (
                theirs.is_repeated if hasattr(theirs, "is_repeated") else theirs.label == 3
            )  # protobuf 7 has no label
            assert repeated == (isinstance(kind, list) or str(kind).startswith("[")), (name, field)
            if isinstance(kind, str):
                assert (theirs.enum_type or theirs.message_type).full_name == "inference." + kind.strip("[]=")
    for name, values in schema.ENUMS.items():
        enum = (
            messages["ModelInstanceGroup"].enum_types_by_name["Kind"]
            if "." in name
            else published.enum_types_by_name[name]
        )
        assert values.items() <= {each.name: each.number for each in enum.values}.items()


def test_a_model_of_free_batch_size_leaves_the_batch_out_of_its_dims(read, schema):
    found = read(repository.config(model(), serving(preferred=(2, 8), max_delay_us=700, instances=3)))
    assert (found.name, found.platform, found.backend) == ("student", "onnxruntime_onnx", "onnxruntime")
    assert (found.max_batch_size, found.default_model_filename) == (8, "model.onnx")
    assert [(each.name, each.data_type, list(each.dims)) for each in found.input] == [
        ("image", 11, [3, 224, 200])
    ]
    assert [(each.name, list(each.dims), each.label_filename) for each in found.output] == [
        ("logits", [10], "labels.txt")
    ]
    (group,) = found.instance_group
    assert (group.count, group.kind, list(group.profile)) == (
        3,
        schema.ENUMS["ModelInstanceGroup.Kind"]["KIND_CPU"],
        [],
    )
    assert list(found.dynamic_batching.preferred_batch_size) == [2, 8]
    assert found.dynamic_batching.max_queue_delay_microseconds == 700


def test_a_model_of_fixed_batch_size_keeps_it_and_is_not_batched(read):
    found = read(repository.config(model(".plan", FIXED), serving(max_batch=0, device="gpu")))
    assert (found.max_batch_size, found.platform) == (0, "tensorrt_plan")
    assert list(found.input[0].dims) == [4, 3, 224, 200] and list(found.output[0].dims) == [4, 10]
    assert not found.HasField("dynamic_batching")
    assert found.output[0].label_filename == ""  # four lists of scores laid end to end have no class 17


def test_one_image_a_call_still_has_labels(read):
    one = [Tensor("image", "float32", (1, 3, 8, 8))], [Tensor("logits", "float32", (1, 2))]
    assert (
        read(repository.config(model(".plan", one), serving(max_batch=0, device="gpu")))
        .output[0]
        .label_filename
        == "labels.txt"
    )


def test_a_plan_of_several_profiles_names_them_all(read):
    profiles = [{"min": 1, "opt": 1, "max": 1}, {"min": 1, "opt": 8, "max": 16}]
    (group,) = read(
        repository.config(model(".plan", profiles=profiles), serving(device="gpu"))
    ).instance_group
    assert (list(group.profile), group.kind) == (["0", "1"], 1)
    (group,) = read(
        repository.config(model(".plan", profiles=profiles[1:]), serving(device="gpu"))
    ).instance_group
    assert list(group.profile) == []


def test_parameters_come_back_byte_for_byte(read):
    nasty = {
        "a.preprocess": '{"mean": [0.5], "name": "a \\"quoted\\" \\\\ word"}',
        "a.note": "日本\n\t\x01é'",
    }
    found = read(repository.config(model(parameters=nasty), serving())).parameters
    assert {key: found[key].string_value for key in found} == nasty


def test_half_inputs_are_half_and_a_missing_label_list_is_not_named(read):
    half = [Tensor("image", "float16", (-1, 3, 8, 8))], [Tensor("logits", "float16", (-1, 2))]
    found = read(repository.config(model(tensors=half, labels=None), serving()))
    assert (found.input[0].data_type, found.output[0].data_type, found.output[0].label_filename) == (
        10,
        10,
        "",
    )


def test_free_image_sizes_are_minus_one(read):
    free = [Tensor("image", "float32", (-1, 3, -1, -1))], [Tensor("logits", "float32", (-1, 2))]
    assert list(read(repository.config(model(tensors=free), serving())).input[0].dims) == [3, -1, -1]


def test_the_schema_does_not_take_what_is_not_in_it(read):
    for wrong in (
        "max_batch: 8",
        'max_batch_size: "8"',
        "input { dims: 1.5 }",
        "instance_group { kind: KIND_TPU }",
    ):
        with pytest.raises(text_format.ParseError):
            read(wrong)


def test_text_format_of_nested_and_repeated_values_by_hand():
    text = repository.text_format(
        {"a": 1, "b": [1, 2], "c": {"d": Word("X"), "e": [{"f": "g"}, {"f": 'h"'}]}}
    )
    assert text == 'a: 1\nb: [1, 2]\nc {\n  d: X\n  e {\n    f: "g"\n  }\n  e {\n    f: "h\\""\n  }\n}\n'


@pytest.mark.parametrize("name", ["", "two\nlines", "ends\n", "\r"])
def test_a_class_name_that_is_not_one_line_is_refused(name):
    with pytest.raises(UsageError, match="Rename the class"):
        repository.labels_text(["cat", name])


@pytest.fixture
def artifact(tmp_path):
    """A model file and what is written of it: `put(version, ...)`."""
    path = tmp_path / "student.onnx"
    path.write_bytes(os.urandom(5000))

    def put(version=1, overwrite=False, digest=None, labels=("cat", "dog")):
        return repository.write(
            tmp_path / "repository",
            version,
            model(path=path, labels=list(labels)),
            serving(),
            digest or sha256(path),
            overwrite,
        )

    put.path, put.target = path, tmp_path / "repository" / "student"
    return put


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_folder_is_written_with_the_file_byte_for_byte(artifact):
    written = artifact()
    assert tree(artifact.target.parent) == [
        "student",
        "student/1",
        "student/1/model.onnx",
        "student/config.pbtxt",
        "student/labels.txt",
    ]
    assert (artifact.target / "1/model.onnx").read_bytes() == artifact.path.read_bytes()
    assert (artifact.target / "labels.txt").read_text() == "cat\ndog\n"
    assert all(path.is_file() for path in written) and len(written) == 3


def test_nothing_is_replaced_without_being_asked(artifact):
    artifact()
    artifact.path.write_bytes(b"another")
    with pytest.raises(UsageError, match="--overwrite"):
        artifact()
    assert len((artifact.target / "1/model.onnx").read_bytes()) == 5000
    artifact(overwrite=True)
    assert (artifact.target / "1/model.onnx").read_bytes() == b"another"
    assert len(tree(artifact.target.parent)) == 5


def test_a_new_version_stands_beside_the_old_one(artifact):
    artifact()
    old = (artifact.target / "1/model.onnx").read_bytes()
    artifact.path.write_bytes(b"second")
    artifact(2, overwrite=True)
    assert (artifact.target / "1/model.onnx").read_bytes() == old
    assert (artifact.target / "2/model.onnx").read_bytes() == b"second"
    assert repository.versions(artifact.target) == [1, 2]
    with pytest.raises(
        UsageError, match=r"has version 2, which Triton would go on serving. Give --version 3"
    ):
        artifact(1, overwrite=True)


def test_what_a_servers_owner_put_into_the_folder_stays(artifact):
    artifact()
    (artifact.target / "warmup").mkdir()
    (artifact.target / "warmup/raw").write_bytes(b"pixels")
    (artifact.target / "notes.txt").write_text("mine")
    artifact(overwrite=True, labels=())
    artifact(2, overwrite=True)
    assert (artifact.target / "warmup/raw").read_bytes() == b"pixels" and (
        artifact.target / "notes.txt"
    ).read_text() == "mine"
    assert (
        repository.versions(artifact.target) == [1, 2]
        and (artifact.target / "labels.txt").read_text() == "cat\ndog\n"
    )


def test_a_folder_that_is_not_a_model_is_not_touched(artifact):
    artifact.target.mkdir(parents=True)
    (artifact.target / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="not a model of Triton's"):
        artifact(overwrite=True)
    assert (artifact.target / "thesis.tex").read_text() == "years of work"


def test_a_file_that_changes_while_it_is_copied_leaves_nothing(artifact):
    with pytest.raises(GateError, match="changed while it was copied"):
        artifact(digest="0" * 64)
    assert tree(artifact.target.parent) == []


def test_a_failure_leaves_the_old_folder_as_it_was(artifact, monkeypatch):
    artifact()
    before = {
        name: (artifact.target.parent / name).read_bytes()
        for name in tree(artifact.target.parent)
        if "." in name
    }
    with pytest.raises(UsageError, match="class name"):
        artifact(overwrite=True, labels=["cat", ""])
    monkeypatch.setattr(
        repository.shutil,
        "copyfile",
        lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    )
    with pytest.raises(MissingError, match="no space left"):
        artifact(2, overwrite=True)
    assert {
        name: (artifact.target.parent / name).read_bytes()
        for name in tree(artifact.target.parent)
        if "." in name
    } == before


def test_a_rename_that_fails_puts_the_old_folder_back(artifact, monkeypatch):
    artifact()
    rename, calls = os.rename, []
    monkeypatch.setattr(repository.files, "_exchanged", lambda *_: False)

    def second_fails(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise PermissionError(13, "Permission denied")
        rename(source, target)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(UsageError, match="cannot be written"):
        artifact(overwrite=True)
    assert len(tree(artifact.target.parent)) == 5 and len(calls) == 3


def test_a_repository_that_is_a_file_is_a_usage_error(artifact):
    artifact.target.parent.write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        artifact()
